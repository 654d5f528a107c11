"""pip, run in an environment: asked what is to be had, told to download it and to install it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from packaging.version import Version

from orchd.environment.needs import Needs
from orchd.environment.teller import Teller
from orchd.environment.wheels import TOGETHER_BYTES, Wheel, unpacked, wheel_of
from orchd.errors import EnvironmentNotMade, IndexUnreachable

TELLS_BYTES: Final = Version("24.1")
"""Since then `--progress-bar raw` prints how far a download is."""

FIXED: Final = ("--disable-pip-version-check", "--no-input", "--retries", "3")
ELSEWHERE: Final = ("PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_ROOT", "PYTHONPATH", "PYTHONHOME")
"""Variables that would have pip install elsewhere."""

UNREACHABLE: Final = re.compile(
    r"connection broken|Max retries exceeded|name resolution|NewConnectionError|ConnectionResetError|Read timed out"
    r"|ReadTimeoutError|IncompleteRead|ProtocolError|ProxyError|Network is unreachable"
)
CACHE: Final = "cache"
TAIL: Final = 40
POLL_SECONDS: Final = 2.0
SITE: Final = "lib/python*/site-packages"
Watch = Callable[[str], None]


class Pip:
    """The pip of the venv in `folder`; `making` is where its temporary files go. `keep` is a descriptor that it holds
    open while it runs."""

    def __init__(self, folder: Path, making: Path, needs: Needs, teller: Teller, *, keep: int) -> None:
        self._folder = folder
        self._making = making
        self._needs = needs
        self._teller = teller
        self._keep = keep
        self._constraints = making / "constraints.txt"
        self._constraints.write_text(needs.constraints, encoding="utf-8")

    @staticmethod
    def environment(temporary: Path) -> dict[str, str]:
        """This process's variables, but for those that would lead pip or Python elsewhere."""
        found = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
        return found | {"TMPDIR": str(temporary), "PYTHONSAFEPATH": "1"}

    def look_up(self) -> tuple[tuple[str, ...], list[Wheel]]:
        """pip's options that name the index, and what it would download from there. Raises."""
        torch = self._needs.torch
        words: tuple[str, ...] = ("--index-url", self._needs.index_url) if self._needs.index_url else ()
        try:
            return words, self._resolve(words)
        except EnvironmentNotMade:
            if not torch.index:
                raise
        self._teller.log(f"the index has no such build of torch; {torch.index} is asked too")
        words = (*words, "--extra-index-url", torch.index)
        return words, self._resolve(words)

    def _resolve(self, words: Sequence[str]) -> list[Wheel]:
        self._teller.phase("looking up packages")
        report = self._making / "report.json"
        asked = self._lines("asked.txt", self._needs.requirements)
        cache = ("--cache-dir", str(self._making / CACHE))
        self._run(
            "install", "--dry-run", *cache, "--quiet", "--report", str(report), *self._pinned(), *words, "-r", asked
        )
        items: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
        return [wheel_of(item) for item in items]

    def download(self, wheels: Sequence[Wheel], folder: Path, words: Sequence[str], watch: Watch) -> None:
        """Fetch these wheels; each is checked against the digest that the index gave. Raises."""
        lines = self._lines("fetch.txt", [one.requirement for one in wheels])
        bar = "raw" if self._version() >= TELLS_BYTES else "off"
        had = self._making / CACHE  # an index that gives no metadata apart had to give whole wheels
        cached = sum(file.stat().st_size for file in had.rglob("*")) > TOGETHER_BYTES
        cache = ("--cache-dir", str(had)) if cached else ("--no-cache-dir",)
        options = ("--no-deps", "--dest", str(folder), "--progress-bar", bar, *cache, *self._pinned(constraints=False))
        self._run("download", *options, *words, "-r", lines, watch=watch)

    def install(self, files: Sequence[Path]) -> None:
        """Install these wheels from the disk, telling which are there. Raises."""
        (site,) = self._folder.glob(SITE)
        total, before, done = unpacked(files), _bytes_below(site), threading.Event()

        def tell() -> None:
            while not done.wait(POLL_SECONDS):
                there = self._installed()
                left = [file.name for file in files if _distribution(file.name) not in there]
                at = min(total, max(0, _bytes_below(site) - before))
                self._teller.phase("installing", at, total, " ".join(left[0].split("-")[:2]) if left else "")

        thread = threading.Thread(target=tell)
        thread.start()
        try:
            self._run("install", "--no-index", "--no-deps", "--no-cache-dir", "--quiet", *map(str, files))
        finally:
            done.set()
            thread.join()

    def renew(self) -> None:
        """Put the pinned pip in the place of the one that came with Python, which may be years old: older ones download
        everything to look something up, and none before 24.1 says how far it is. Raises `IndexUnreachable`."""
        version = self._needs.pinned().get("pip", "")
        if not version or self._version() >= Version(version):
            return
        folder = self._making / "pip"
        words = ("--index-url", self._needs.index_url) if self._needs.index_url else ()
        with suppress(EnvironmentNotMade):  # an index without pip: the old one works too
            if not list(folder.glob("pip-*.whl")):
                self._run("download", "--no-deps", "--dest", str(folder), *self._pinned(), *words, "pip")
            (file,) = folder.glob("pip-*.whl")
            self._run("install", "--no-index", "--no-deps", "--no-cache-dir", "--quiet", str(file))

    def _installed(self) -> set[str]:
        """The packages that are there whole: their RECORD is written last."""
        records = self._folder.glob(f"{SITE}/*.dist-info/RECORD")
        return {one.parent.name.removesuffix(".dist-info").lower() for one in records}

    def _version(self) -> Version:
        found = [one.partition("-")[2] for one in self._installed() if one.startswith("pip-")]
        return max(map(Version, found), default=Version("0"))

    def _pinned(self, *, constraints: bool = True) -> tuple[str, ...]:
        only = ("--only-binary", ":all:")
        return (*only, "-c", str(self._constraints)) if constraints else only

    def _lines(self, name: str, lines: Sequence[str]) -> str:
        file = self._making / name
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(file)

    def _run(self, verb: str, *words: str, watch: Watch | None = None) -> None:
        """Run pip to its end; what it says goes to the log."""
        command = [str(self._folder / "bin" / "python"), "-m", "pip", verb, *FIXED, *words]
        tail: list[str] = []
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self.environment(self._making / "tmp"),
            cwd=self._making,
            pass_fds=(self._keep,),
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if watch is not None:
                    watch(line)
                if not line.startswith("Progress "):
                    tail = [*tail[1 - TAIL :], line.rstrip()]
                    self._teller.log(line.rstrip())
        if process.returncode:
            raise self._failed(verb, tail)

    def _failed(self, verb: str, tail: Sequence[str]) -> EnvironmentNotMade | IndexUnreachable:
        said = [line for line in tail if line.startswith("ERROR:")] or list(tail[-1:])
        detail = f"`pip {verb}`: {' '.join(said).removeprefix('ERROR: ')[:400] or 'no word why'}"
        if UNREACHABLE.search("\n".join(tail)):
            return IndexUnreachable(f"the package index can't be reached: {detail}", hint=self._by_hand())
        return EnvironmentNotMade(f"the training environment could not be made: {detail}", hint=self._by_hand())

    def _by_hand(self) -> str:
        """The next step, where there is no network or another index."""
        packages = [one for one in self._needs.requirements if one != "pip"]
        command = shlex.join([self._needs.python, "-m", "pip", "install", *packages])
        return (
            "Run it again when the index answers: what was downloaded is kept. Another index: `training.index_url` in"
            f" config.toml. By hand, into orchd's own Python: {command}"
        )


def _bytes_below(folder: Path) -> int:
    """Of what came in wheels, while it is being written."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size if not name.endswith(".pyc") else 0
    return total


def _distribution(file: str) -> str:
    """`name-version` in small letters, as its dist-info folder is called."""
    return "-".join(file.split("-")[:2]).lower()
