"""Row `rss-100k`: by how much a daemon with 100,000 adapters is larger than one with none, after the same work.

The peer is the growth of a Python process that holds the rows as objects in a dict, as a daemon without a database
would. Also told: seconds (`start`) and seconds of processor time (`start_cpu`) until that daemon is ready.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.registry import indexed
from benchmarks.report import Row, lower_is_better
from benchmarks.start.daemon import Daemon, resident_mb, running
from orchd.registry.rows import AdapterRow
from orchd.rpc.client import Client

GOAL_MB = 100.0
ROUNDS = 20
WORK: tuple[tuple[str, dict[str, Any]], ...] = (
    ("adapter.list", {}),
    ("adapter.search", {"text": "q", "limit": 100}),
    ("adapter.search", {"modules": ["q_proj"], "sort": "loss"}),
    ("adapter.search", {"trust": ["followed"], "sort": "size"}),
    ("registry.stats", {}),
    ("trust.list", {}),
)


def rows() -> list[Row]:
    home = indexed.home()
    with running() as empty:
        before = worked(empty)
    with _timed(home.path) as (full, start, start_cpu):
        idle = full.resident_mb()
        after = worked(full)
    return [
        lower_is_better(
            "rss-100k",
            "MB",
            after - before,
            ("rows in a dict", _rows_in_memory(home.data)),
            ("growth ≤ 100 MB", GOAL_MB),
            empty=before,
            full=after,
            full_idle=idle,
            start=start,
            start_cpu=start_cpu,
        )
    ]


def worked(daemon: Daemon) -> float:
    """Resident MB after some rounds of work."""
    with Client(daemon.socket) as client:
        for _ in range(ROUNDS):
            for method, params in WORK:
                client.call(method, **params)
    return daemon.resident_mb()


@contextmanager
def _timed(home: Path) -> Iterator[tuple[Daemon, float, float]]:
    begun = time.perf_counter()
    with running(home) as daemon:
        yield daemon, time.perf_counter() - begun, daemon.cpu_s()


def _rows_in_memory(data: Path) -> float:
    """Growth in MB of a process that is handed the rows, one a line."""
    registry = indexed.open_registry(data)
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.registry.memory"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    for (shown,) in registry.index.stream("SELECT shown FROM adapter"):
        process.stdin.write(shown.encode() + b"\n")
    registry.close()
    told, _ = process.communicate()
    return float(told)


def hold() -> None:
    before, decoder = resident_mb(os.getpid()), msgspec.json.Decoder(AdapterRow)
    rows = {row.id: row for row in map(decoder.decode, sys.stdin.buffer)}
    print(resident_mb(os.getpid()) - before if rows else 0.0)


if __name__ == "__main__":
    hold()
