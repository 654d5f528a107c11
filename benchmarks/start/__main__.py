"""Rows `cli-help`, `status`, `rpc-p50`, `idle-rss`. usage: python -m benchmarks.start

Times are medians of the wall clock. A command and its peer run in turn, so that a busy moment of the machine hits both.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.report import Row, lower_is_better, machine, publish
from benchmarks.start.daemon import PROGRAMS, Daemon, resident_mb, running
from orchd.rpc.client import Client

STARTS, CALLS, WARM_UP = 31, 3_000, 200
HELP_TIMES_PYTHON = 6.0
STATUS_MS, RPC_US, IDLE_MB = 150.0, 400.0, 150.0
IDLE_AFTER_S = 10
BARE = [sys.executable, "-I", "-c", "pass"]
LIBRARIES = "import cryptography, duckdb, libp2p, msgspec, numpy, trio"
"""What the daemon can't do without; loaded together in an empty Python."""


def main() -> None:
    about = machine()
    with running() as daemon:
        rows = [*command_rows(daemon), rpc_row(daemon), idle_row(daemon)]
    publish("start", about, rows)


def command_rows(daemon: Daemon) -> list[Row]:
    """`orchctl --help` and `orchctl status` against a Python that does nothing."""
    orchctl = str(PROGRAMS / "orchctl")
    bare, shown, status = timed([BARE, [orchctl, "--help"], [orchctl, "status"]], daemon.environment)
    python = ("python -I -c pass", bare)
    return [
        lower_is_better("cli-help", "ms", shown, python, ("≤ 6 × peer", HELP_TIMES_PYTHON * bare), times=shown / bare),
        lower_is_better("status", "ms", status, python, ("≤ 150 ms", STATUS_MS), times=status / bare),
    ]


def timed(commands: Sequence[Sequence[str]], environment: dict[str, str]) -> list[float]:
    """Median milliseconds of each command, run in turn."""
    taken: list[list[float]] = [[] for _ in commands]
    for _ in range(STARTS):
        for command, times in zip(commands, taken, strict=True):
            begun = time.perf_counter()
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
            times.append((time.perf_counter() - begun) * 1e3)
    return [statistics.median(times) for times in taken]


def rpc_row(daemon: Daemon) -> Row:
    """One call on an open connection, through orchd's own client, against a bare echo of the same bytes."""
    with Client(daemon.socket) as client:
        rpc = latencies(lambda: client.call("identity.show"))
        status = latencies(lambda: client.call("daemon.status"))
        answer = client.call("identity.show")
    echo = echo_latencies(json.dumps({"jsonrpc": "2.0", "id": 1, "result": answer}).encode() + b"\n")
    return lower_is_better(
        "rpc-p50",
        "µs",
        statistics.median(rpc),
        ("asyncio echo", statistics.median(echo)),
        ("≤ 400 µs", RPC_US),
        p99=_percentile(rpc, 99),
        daemon_status_p50=statistics.median(status),
    )


def latencies(call: Callable[[], object]) -> list[float]:
    """Microseconds of each of `CALLS` calls, after a warm-up."""
    for _ in range(WARM_UP):
        call()
    taken = []
    for _ in range(CALLS):
        begun = time.perf_counter()
        call()
        taken.append((time.perf_counter() - begun) * 1e6)
    return taken


def echo_latencies(line: bytes) -> list[float]:
    """The same client work on a line that an asyncio server in another process sends back."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/echo.sock"
        server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.start.echo", path], stdout=subprocess.PIPE, cwd=Path.cwd()
        )
        try:
            assert server.stdout is not None
            server.stdout.readline()
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(path)
                return latencies(lambda: _echo(connection, line))
        finally:
            server.terminate()
            server.wait()


def _echo(connection: socket.socket, line: bytes) -> None:
    connection.sendall(line)
    received = b""
    while not received.endswith(b"\n"):
        received += connection.recv(65_536)


def idle_row(daemon: Daemon) -> Row:
    """Memory ten seconds after the last request, against its libraries alone."""
    threading.Event().wait(IDLE_AFTER_S)
    idle = daemon.resident_mb()
    code = f"{LIBRARIES}\nprint(flush=True); input()"
    libraries = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert libraries.stdout is not None
        libraries.stdout.readline()
        alone = resident_mb(libraries.pid)
    finally:
        libraries.kill()
        libraries.communicate()
    return lower_is_better("idle-rss", "MB", idle, ("its libraries alone", alone), ("≤ 150 MB", IDLE_MB))


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent.parent)
    main()
