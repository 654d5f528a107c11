"""Rows `fetch-4-providers` and `fetch-4-limited`: one adapter from four nodes over loopback, against from one.

Unlimited ones show what coordination costs, as all processes share the same cores; with limited ones four bring four
times as much. Runs are in turn; seconds are from the command to fetch until the adapter is in the registry, without the
checks of its content: a node is connected to the members of its topics before it fetches, so that connecting to four of
them or to one is no part of it. `with_connecting` is the ratio with that, too.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.net.fetch import Took, giver, take
from benchmarks.registry import large
from benchmarks.report import Row, lower_is_better

PROVIDERS = 4
#: Megabytes and runs.
SIZE, RUNS = 256, 5
LIMITED_SIZE, LIMITED_RUNS = 100, 3
#: Kilobytes a second.
LIMIT = 10_000


def rows() -> list[Row]:
    return [
        _row("fetch-4-providers", SIZE, RUNS, 0, 0.9),
        _row("fetch-4-limited", LIMITED_SIZE, LIMITED_RUNS, LIMIT, 3.6),
    ]


def _row(work: str, megabytes: int, runs: int, limit: int, least: float) -> Row:
    """`least`: how many times as fast as one provider."""
    four, one = list[Took](), list[Took]()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orchd-bench-", dir=Path.cwd())))
        adapter = large.write_adapter(place / "adapter", "F32", megabytes << 20)
        made = [
            stack.enter_context(giver(place / f"giver{number}", adapter, upload_limit=limit))
            for number in range(PROVIDERS)
        ]
        (id, _), addresses = made[0], [address for _, address in made]
        for number in range(runs):
            four.append(take(place / f"four{number}", id, addresses))
            one.append(take(place / f"one{number}", id, addresses[:1]))
    peer = statistics.median(map(_fetching, one))
    paired = statistics.median(_fetching(b) / _fetching(a) for a, b in zip(four, one, strict=True))
    whole = statistics.median(b.seconds / a.seconds for a, b in zip(four, one, strict=True))
    goal = (f"≥ {least} × one provider's speed", peer / least)
    figures = {"paired": paired, "with_connecting": whole, "megabytes": float(megabytes), "runs": float(runs)}
    return lower_is_better(work, "s", statistics.median(map(_fetching, four)), ("one provider", peer), goal, **figures)


def _fetching(took: Took) -> float:
    return took.seconds - took.connecting
