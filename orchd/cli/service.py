"""`orchctl service install|status|uninstall`: orchd under systemd (a user's or the machine's) or launchd.

Not RPC: it writes one file and speaks to the service manager. The files lie in `units/` beside this one, `deploy/`
shows the same ones to operators, and what is written differs from them in the program's path, in `ORCHD_HOME` when it
is set, and in the log's path on a Mac.
"""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchd.errors import ServiceManagerFailed, ServiceRefused

UNITS = Path(__file__).parent / "units"
UNIT, SYSTEM_UNIT, AGENT = "orchd.service", "orchd-system.service", "io.orchd.orchd"
SYSTEM_FOLDER = Path("/etc/systemd/system")
PROGRAM = "/usr/local/bin/orchd"
"""The path that the files name until they are filled in."""
MARK = "orchctl service install"
"""In the first lines of every file that orchd wrote; a file without it is somebody else's."""

RUN_AT_LOAD = "    <key>RunAtLoad</key>"
HOME_ENTRY = """\
    <key>EnvironmentVariables</key>
    <dict>
        <key>ORCHD_HOME</key>
        <string>{}</string>
    </dict>
"""

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Step:
    """One thing to do: write `text` to `path`, remove `path`, or run `command`. `may_fail`: then go on."""

    command: tuple[str, ...] = ()
    path: Path | None = None
    text: str | None = None
    may_fail: bool = False

    def __str__(self) -> str:
        if self.command:
            return "run " + " ".join(self.command)
        return f"{'remove' if self.text is None else 'write'} {self.path}"


@dataclass(frozen=True)
class Status:
    """What the service manager says. `state` is its own word ("active", "failed", "running"), "" when not installed."""

    manager: str
    path: str
    installed: bool
    running: bool
    state: str
    detail: str


@dataclass(frozen=True)
class Service:
    """orchd as a service of one manager: `kind` is "systemd-user", "systemd-system" or "launchd"."""

    kind: str
    path: Path
    environ: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, *, system: bool, environ: Mapping[str, str] | None = None, platform: str = sys.platform) -> Service:
        """The service for this platform. Raises `ServiceRefused` where there is no manager that orchd knows."""
        env = os.environ if environ is None else environ
        home = Path(env.get("HOME") or os.path.expanduser("~"))
        if platform == "darwin":
            if system:
                raise ServiceRefused("on a Mac orchd runs as the agent of one user", hint="Leave out --system.")
            return cls("launchd", home / "Library" / "LaunchAgents" / f"{AGENT}.plist", env)
        if not platform.startswith("linux"):
            raise ServiceRefused(f"no service manager is known for {platform}", hint="Run `orchd` by your own means.")
        if system:
            return cls("systemd-system", SYSTEM_FOLDER / UNIT, env)
        config = env.get("XDG_CONFIG_HOME", "")
        folder = Path(config) if config.startswith("/") else home / ".config"
        return cls("systemd-user", folder / "systemd" / "user" / UNIT, env)

    def install_steps(self, program: Path) -> list[Step]:
        """What `install` does, in order; `program` is the path of `orchd`."""
        text = self.text(program)
        if self.kind == "launchd":
            logs = self._logs()
            return [
                Step(("mkdir", "-p", str(logs))),
                Step(path=self.path, text=text),
                Step(("launchctl", "bootout", f"{self._domain()}/{AGENT}"), may_fail=True),
                Step(("launchctl", "bootstrap", self._domain(), str(self.path))),
            ]
        return [
            Step(path=self.path, text=text),
            Step((*self._systemctl(), "daemon-reload")),
            Step((*self._systemctl(), "enable", "--now", UNIT)),
        ]

    def uninstall_steps(self) -> list[Step]:
        """What `uninstall` does, in order: nothing when it is not installed. Data and settings stay."""
        if not self.path.exists():
            return []
        self._refuse_foreign_file()
        if self.kind == "launchd":
            stop = Step(("launchctl", "bootout", f"{self._domain()}/{AGENT}"), may_fail=True)
            return [stop, Step(path=self.path)]
        return [
            Step((*self._systemctl(), "disable", "--now", UNIT), may_fail=True),
            Step(path=self.path),
            Step((*self._systemctl(), "daemon-reload"), may_fail=True),
        ]

    def text(self, program: Path) -> str:
        """The file's text with this machine's paths. Raises `ServiceRefused` for a path that it can't hold."""
        home = self.environ.get("ORCHD_HOME", "")
        if any(ord(c) < 32 for c in f"{program}{home}"):
            raise ServiceRefused("a path holds a control character", hint="Move orchd or ORCHD_HOME to a plain path.")
        if self.kind == "launchd":
            return self._agent(program, home)
        template = UNITS / (SYSTEM_UNIT if self.kind == "systemd-system" else UNIT)
        text = template.read_text(encoding="utf-8")
        start = f"ExecStart={PROGRAM}"
        extra = f"\nEnvironment={_quoted(f'ORCHD_HOME={os.path.abspath(home)}')}" if home else ""
        return text.replace(start, f"ExecStart={_quoted(str(program))}{extra}")

    def status(self, run: Run) -> Status:
        """Ask the manager. Raises `ServiceManagerFailed` when it does not answer."""
        if self.kind == "launchd":
            done = run(["launchctl", "print", f"{self._domain()}/{AGENT}"])
            state = next((line.split("=")[1].strip() for line in done.stdout.splitlines() if "state =" in line), "")
            return Status(self.kind, str(self.path), self.path.exists(), state == "running", state, "")
        asked = [*self._systemctl(), "show", UNIT, "--property=LoadState,ActiveState,SubState,StatusText"]
        done = run(asked)
        if done.returncode:
            raise ServiceManagerFailed(f"`{' '.join(asked)}` failed: {done.stderr.strip()[:300]}")
        found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        installed = found.get("LoadState") == "loaded"
        state = f"{found.get('ActiveState', '')} ({found.get('SubState', '')})" if installed else ""
        running = found.get("ActiveState") == "active"
        return Status(self.kind, str(self.path), installed, running, state, found.get("StatusText", ""))

    def check_rights(self) -> None:
        """Raises `ServiceRefused` when the file can't be written by this user, or is somebody else's."""
        if self.kind == "systemd-system" and os.geteuid() != 0:
            raise ServiceRefused(
                "the machine's services belong to root", hint="Run it with sudo, or leave out --system."
            )
        self._refuse_foreign_file()

    def _refuse_foreign_file(self) -> None:
        if self.path.exists() and MARK not in self.path.read_text(encoding="utf-8", errors="replace"):
            raise ServiceRefused(f"{self.path} was not written by orchd", hint="Move it away, then run this again.")

    def _agent(self, program: Path, home: str) -> str:
        text = (UNITS / f"{AGENT}.plist").read_text(encoding="utf-8")
        filled = text.replace(PROGRAM, _escaped(str(program))).replace(
            "/Users/YOU/Library/Logs/orchd", _escaped(str(self._logs()))
        )
        if home:
            filled = filled.replace(RUN_AT_LOAD, HOME_ENTRY.format(_escaped(os.path.abspath(home))) + RUN_AT_LOAD)
        plistlib.loads(filled.encode())
        return filled

    def _logs(self) -> Path:
        return self.path.parent.parent / "Logs" / "orchd"

    def _domain(self) -> str:
        return f"gui/{os.getuid()}"

    def _systemctl(self) -> tuple[str, ...]:
        return ("systemctl",) if self.kind == "systemd-system" else ("systemctl", "--user")


def program_path() -> Path:
    """`orchd` of the environment that this `orchctl` runs in, else the one on PATH. Raises `ServiceRefused`."""
    beside = Path(sys.prefix) / "bin" / "orchd"
    found = str(beside) if beside.exists() else shutil.which("orchd")
    if found is None:
        raise ServiceRefused("no program `orchd` was found", hint="Install the package first: `pip install orchd`.")
    return Path(found)


def carry_out(steps: Sequence[Step], run: Run) -> None:
    """Do the steps in order. Raises `ServiceManagerFailed` naming the command that failed and what it said.

    Then files are as they were before: a unit that no manager knows of would come to life at some later login.
    """
    before: dict[Path, bytes | None] = {}
    try:
        for step in steps:
            if step.path is not None:
                before[step.path] = step.path.read_bytes() if step.path.exists() else None
            _do(step, run)
    except ServiceManagerFailed:
        for path, content in before.items():
            _put(path, content)
        raise


def _do(step: Step, run: Run) -> None:
    if step.path is not None:
        _put(step.path, None if step.text is None else step.text.encode())
        return
    done = run(step.command)
    if done.returncode and not step.may_fail:
        said = (done.stderr or done.stdout).strip()[:300]
        raise ServiceManagerFailed(f"`{' '.join(step.command)}` failed: {said}")


def _put(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def run_command(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it says. Raises `ServiceManagerFailed` when it is not there or hangs."""
    try:
        return subprocess.run(list(command), capture_output=True, text=True, timeout=90)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise ServiceManagerFailed(f"`{command[0]}` is not here or does not answer ({type(error).__name__})") from None


def _quoted(text: str) -> str:
    """As systemd reads it (`systemd.syntax(7)`): `%` has a meaning, quotes allow spaces."""
    plain = text.replace("%", "%%")
    if any(c in plain for c in " \t\"'\\;"):
        return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return plain


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
