"""A real daemon in a temporary home, ready when it says so over `sd_notify`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchd.paths import Paths

READY_SECONDS = 60
STOP_SECONDS = 15
PROGRAMS = Path(sys.prefix) / "bin"


@dataclass(frozen=True)
class Daemon:
    """A daemon that runs: its process id, its socket, the environment for an `orchctl` beside it."""

    pid: int
    socket: Path
    environment: dict[str, str]

    def cpu_s(self) -> float:
        """Seconds of processor time of all its threads so far (Linux's clock of another process)."""
        return time.clock_gettime_ns((~self.pid << 3) | 2) / 1e9

    def resident_mb(self) -> float:
        """Resident memory in MB (10⁶ bytes), by `ps`, as on any Unix."""
        return resident_mb(self.pid)


@contextmanager
def running(home: Path | None = None) -> Iterator[Daemon]:
    """An idle daemon on loopback without mDNS, that nobody knows. `home` is a new folder unless it is given."""
    with tempfile.TemporaryDirectory(prefix="orchd-bench-") as made:
        folder = str(home or made)
        environment = os.environ | {
            "ORCHD_HOME": folder,
            "ORCHD_NET__LISTEN": "/ip4/127.0.0.1/tcp/0",
            "ORCHD_NET__MDNS": "false",
            "NOTIFY_SOCKET": f"{made}/notify",
        }
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, open(f"{made}/log", "wb") as log:
            ready.bind(f"{made}/notify")
            ready.settimeout(READY_SECONDS)
            process = subprocess.Popen([PROGRAMS / "orchd"], env=environment, stdout=log, stderr=log)
            try:
                _wait_ready(ready, Path(made) / "log")
                yield Daemon(process.pid, Paths.from_env(environment).socket, environment)
            finally:
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB (10⁶ bytes)."""
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024 / 1e6


def _wait_ready(ready: socket.socket, log: Path) -> None:
    try:
        while b"READY=1" not in ready.recv(4096).splitlines():
            pass
    except TimeoutError:
        raise SystemExit(f"the daemon was not ready after {READY_SECONDS} s:\n{log.read_text()[-2000:]}") from None
