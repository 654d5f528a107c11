"""The demo's cast: real daemons as separate processes, each with its own home, on loopback only.

Whatever happens to the demo, nothing of it stays: `Cast.close` stops the daemons and removes their homes, and if
the demo is killed before it can, the leash process does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from orchd.demo import leash
from orchd.demo.node import Node
from orchd.demo.ollama import loopback_address
from orchd.errors import DiskFull, NodeDidNotStart
from orchd.paths import Paths

#: One run writes about 60 MB, and each node keeps 256 MB free; below this the demo does not begin.
SPACE_NEEDED = 400 * 1024**2
#: A daemon's promise is to stop in under ten seconds.
STOP_SECONDS = 10.0
#: A cold start imports libp2p and DuckDB on a busy machine.
START_SECONDS = 120.0
#: Longest temporary directory in which a node's socket still has a legal length.
LONGEST_TEMPORARY = 50


class CastClosed(Exception):
    """The demo is stopping: no further node is started."""


class Cast:
    """Starts and stops the nodes. `start` may be called from any thread."""

    def __init__(self, *, keep: bool = False, more: int = 0) -> None:
        """`more` is what the homes will take beyond `SPACE_NEEDED`, in bytes. Raises `DiskFull`."""
        self.keep = keep
        self.root = Path(tempfile.mkdtemp(prefix="orchd-demo-", dir=_temporary_directory(SPACE_NEEDED + more)))
        self._lock = threading.Lock()
        self._closed = False
        #: How many nodes this cast has had.
        self.started = 0
        self._processes: dict[str, _Process] = {}
        self._leash = _Leash(None if keep else self.root)

    def start(self, name: str, *, bootstrap: str = "", settings: Mapping[str, str] | None = None) -> Node:
        """A running daemon that answers, on a new home or on the one it had before.

        Raises `NodeDidNotStart` with what the daemon said.
        """
        home = self.root / name
        for folder in (home, home / "tmp"):
            folder.mkdir(mode=0o700, exist_ok=True)
        environ = node_environment(home, bootstrap=bootstrap, settings=settings or {})
        with self._lock:
            if self._closed:
                raise CastClosed
            process = _Process(name, home, environ, self._leash)
            self._processes[name] = process
            self.started += 1
        process.wait_ready(START_SECONDS)
        return Node(name, home, Paths.from_env(environ).socket, process.ended)

    def stop(self, node: Node) -> None:
        """Stop one node that has no further part, so that it holds no memory."""
        with self._lock:
            process = self._processes.pop(node.name)
        process.stop()

    def kill(self) -> None:
        """Make every node end at once, so that whoever waits for one is woken. `close` still has to follow."""
        with self._lock:
            self._closed = True
            processes = list(self._processes.values())
        for process in processes:
            process.terminate()

    def pids(self) -> dict[str, int]:
        with self._lock:
            return {name: process.pid for name, process in self._processes.items()}

    def close(self) -> None:
        """Stop every node, remove every home. Safe to call twice."""
        self.kill()
        with self._lock:
            processes, self._processes = list(self._processes.values()), {}
        for process in processes:
            process.stop()
        if not self.keep:
            shutil.rmtree(self.root, ignore_errors=True)
        self._leash.over()

    def __enter__(self) -> Cast:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def node_environment(home: Path, *, bootstrap: str = "", settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of one node: nothing of the caller's own orchd settings, loopback only, capture on."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ORCHD_")}
    for name in ("NOTIFY_SOCKET", "JOURNAL_STREAM", "LISTEN_FDS", "LISTEN_PID"):
        environ.pop(name, None)
    return environ | {
        "ORCHD_HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "ORCHD_NET__LISTEN": "/ip4/127.0.0.1/tcp/0",
        "ORCHD_NET__BOOTSTRAP": bootstrap,
        "ORCHD_NET__MDNS": "false",
        "ORCHD_NET__CAPTURE": str(home / "capture"),
        "OLLAMA_HOST": "{}:{}".format(*loopback_address(os.environ)),
        "NO_COLOR": "1",
        **settings,
    }


def _temporary_directory(space: int) -> str:
    """Where the homes go. Raises `DiskFull` before anything is made there."""
    chosen = tempfile.gettempdir()
    if len(os.fsencode(chosen)) > LONGEST_TEMPORARY:
        chosen = "/tmp"
    free = shutil.disk_usage(chosen).free
    if free < space:
        raise DiskFull(f"{chosen} has {free // 1024**2} MB free, and the demo needs {space // 1024**2} MB")
    return chosen


class _Process:
    """One daemon in a session of its own, with a thread that tells when it has ended."""

    def __init__(self, name: str, home: Path, environ: Mapping[str, str], on_leash: _Leash) -> None:
        self.name = name
        self.ended = threading.Event()
        self._log = home / "daemon.log"
        self._leash = on_leash
        # Its own path: the end of an earlier process of this home is told to that one's socket.
        self._notify = home / f"notify-{os.urandom(4).hex()}"
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ready.bind(str(self._notify))
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "orchd.daemon"],
                env={**environ, "NOTIFY_SOCKET": str(self._notify)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=home,
                start_new_session=True,
            )
        on_leash.started(self._popen.pid)
        threading.Thread(target=self._reap, name=f"reap-{name}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def wait_ready(self, seconds: float) -> None:
        """Return at the daemon's `READY=1`. Its end wakes us too (`_reap` writes to the same socket)."""
        self._ready.settimeout(seconds)
        try:
            while True:
                message = self._ready.recv(4096)
                if b"READY=1" in message.split(b"\n"):
                    return
                if message == _ENDED:
                    raise NodeDidNotStart(f"{self.name}'s daemon ended at once: {self.last_words()}")
        except TimeoutError:
            raise NodeDidNotStart(f"{self.name}'s daemon was not ready after {seconds:.0f} s") from None
        finally:
            self._ready.close()
            self._notify.unlink(missing_ok=True)

    def last_words(self) -> str:
        """What the daemon said of its end: the line that begins with its name, else its last one."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        told = [line.removeprefix("orchd: ") for line in lines if line.startswith("orchd: ")]
        return (told or lines or ["it wrote nothing"])[-1]

    def terminate(self) -> None:
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                self._popen.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Ask it to stop; after its ten seconds kill it. Its workers are in its session and end with it."""
        self.terminate()
        self.ended.wait(STOP_SECONDS)
        for group in _groups_of_session(self.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        self.ended.wait()

    def _reap(self) -> None:
        self._popen.wait()
        self._leash.ended(self.pid)
        self.ended.set()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(_ENDED, str(self._notify))


_ENDED = b"ENDED"


def _groups_of_session(session: int) -> set[int]:
    """The process groups that are left of a session: a worker may lead a group of its own.

    Read from `/proc` (field 5 of `stat` is the group, field 6 the session); elsewhere the session's first group.
    """
    groups: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                groups.add(int(fields[2]))
    return groups if Path("/proc/self/stat").exists() else {session}


class _Leash:
    """The process that outlives us only to clean up after us (`leash.py`)."""

    def __init__(self, folder: Path | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", leash.__file__],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        self._lock = threading.Lock()
        if folder is not None:
            self._tell(f"folder {folder}")

    def started(self, group: int) -> None:
        self._tell(f"started {group}")

    def ended(self, group: int) -> None:
        self._tell(f"ended {group}")

    def over(self) -> None:
        self._tell("over")
        with self._lock, contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with self._lock, contextlib.suppress(OSError, ValueError):
            pipe.write(line + "\n")
            pipe.flush()
