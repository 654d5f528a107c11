"""Row `show-100k`: `adapter.show` by id, one of 100,000, in CPU milliseconds of the daemon for the whole call.

It reads and verifies the manifest too (who has co-signed) and looks for attestations. The peer is a row by its key in
SQLite, as JSON, decoded; without a daemon, without a signature.
"""

from __future__ import annotations

import json
import random
import sqlite3
import statistics
from collections.abc import Sequence

from benchmarks.registry import indexed
from benchmarks.registry.search import cpu_ms, percentile
from benchmarks.report import Row, lower_is_better
from benchmarks.start.daemon import Daemon, running
from orchd.rpc.client import Client

CALLS, WARM_UP, SEED = 500, 50, 7
GOAL_MS = 2.0
Stored = Sequence[tuple[str, str]]


def rows() -> list[Row]:
    home = indexed.home()
    registry = indexed.open_registry(home.data)
    stored: Stored = sorted(registry.index.stream("SELECT digest, shown FROM adapter"))
    registry.close()
    ids = random.Random(SEED).choices([id for id, _ in stored], k=CALLS)
    theirs = _by_key(stored, ids)
    with running(home.path) as daemon:
        ours = shown(daemon, ids)
    return [
        lower_is_better(
            "show-100k",
            "ms",
            percentile(ours, 95),
            ("SQLite by key", percentile(theirs, 95)),
            ("p95 ≤ 2 ms CPU", GOAL_MS),
            p50=statistics.median(ours),
            worst=max(ours),
        )
    ]


def shown(daemon: Daemon, ids: Sequence[str]) -> list[float]:
    """CPU milliseconds of the daemon for each id: the smaller of two calls, as `cpu_ms` has it."""
    with Client(daemon.socket) as client:

        def call(id: str) -> float:
            begun = daemon.cpu_s()
            assert client.call("adapter.show", adapter=id)["id"] == id
            return (daemon.cpu_s() - begun) * 1e3

        for id in ids[:WARM_UP]:
            call(id)
        return [min(call(id), call(id)) for id in ids]


def _by_key(stored: Stored, ids: Sequence[str]) -> list[float]:
    sqlite = sqlite3.connect(":memory:")
    sqlite.execute("CREATE TABLE adapter(digest TEXT PRIMARY KEY, shown TEXT)")
    sqlite.executemany("INSERT INTO adapter VALUES (?, ?)", stored)

    def show(id: str) -> None:
        [(text,)] = sqlite.execute("SELECT shown FROM adapter WHERE digest = ?", (id,))
        assert json.loads(text)["id"] == id

    return [cpu_ms(lambda id=id: show(id)) for id in ids]  # type: ignore[misc]
