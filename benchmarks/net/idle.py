"""Rows `idle-bytes-day`, `idle-cpu` and `rss`: a daemon with twenty peers under three topics, when nothing happens.

The daemon is a process of its own; its peers are nodes in this one. The window begins when everybody has met. It has
to be longer than the longest interval (a lookup, half an hour), so that announcing again, lookups, the refresh of the
routing table and repair are in it; `ORCHD_BENCH_IDLE_S` gives another one, for a short look whose figures are no
result.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import trio

from benchmarks.net.village import village
from benchmarks.report import Row
from benchmarks.start.daemon import PROGRAMS, Daemon, running

PEERS, TOPICS = 20, ("bench/one", "bench/two", "bench/three")
WINDOW_S = float(os.environ.get("ORCHD_BENCH_IDLE_S", "1980"))
#: After everybody has met: first lookups, first repairs and what is told at a meeting, in seconds.
SETTLE_S = min(240.0, WINDOW_S)
MEETING_S = 300.0
DAY_S = 86_400
BYTES, CPU_PER_CENT, RESIDENT_MB = 20e6, 0.2, 150.0


class Idle(NamedTuple):
    """In the window: bytes on the daemon's sockets, seconds of processor time; its memory in MB, its counters."""

    bytes: int
    cpu_s: float
    resident_mb: float
    counters: dict[str, int]


async def orchctl(daemon: Daemon, *words: str) -> Any:
    command = [str(PROGRAMS / "orchctl"), *words, "--json"]
    done = await trio.run_process(command, env=daemon.environment, capture_stdout=True, stderr=subprocess.STDOUT)
    return json.loads(done.stdout)


async def measure(home: Path) -> Idle:
    async with village(PEERS, TOPICS) as found:
        (home / "config.toml").write_text(f"[net]\nbootstrap = {json.dumps(found.peers[0].network.addresses())}\n")
        with running(home) as daemon:
            for topic in TOPICS:
                await orchctl(daemon, "topic", "join", topic)
            for peer in found.peers:  # it would be content with fewer
                await orchctl(daemon, "net", "connect", peer.network.addresses()[0])
            with trio.fail_after(MEETING_S):
                while await members(daemon) < PEERS:  # noqa: ASYNC110 - of another process
                    await trio.sleep(1)
            await trio.sleep(SETTLE_S)
            before, cpu_s = await counters(daemon), daemon.cpu_s()
            await trio.sleep(WINDOW_S)
            cpu_s = daemon.cpu_s() - cpu_s
            after = await counters(daemon)
            counted = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
            return Idle(counted["bytes_in"] + counted["bytes_out"], cpu_s, daemon.resident_mb(), counted)


async def members(daemon: Daemon) -> int:
    """Of the topic that has the fewest."""
    topics: list[dict[str, int]] = (await orchctl(daemon, "net", "status"))["topics"]
    return min(one["members"] for one in topics)


async def counters(daemon: Daemon) -> dict[str, int]:
    found: dict[str, int] = (await orchctl(daemon, "net", "stats"))["stats"]["counters"]
    return found


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="orchd-bench-", dir=Path.cwd()) as name:
        idle = trio.run(measure, Path(name))
    print(json.dumps(idle.counters), file=sys.stderr)
    a_day, per_cent = idle.bytes / WINDOW_S * DAY_S, 100 * idle.cpu_s / WINDOW_S
    window = {"window_s": WINDOW_S, "peers": float(PEERS)}
    return [
        _row("idle-bytes-day", "bytes", a_day, BYTES, "≤ 20 MB", window),
        _row("idle-cpu", "%", per_cent, CPU_PER_CENT, f"≤ {CPU_PER_CENT} % of a core", window),
        _row("rss", "MB", idle.resident_mb, RESIDENT_MB, f"≤ {RESIDENT_MB:g} MB", window),
    ]


def _row(work: str, unit: str, value: float, limit: float, goal: str, figures: dict[str, float]) -> Row:
    return Row(work, unit, float(f"{value:.4g}"), "-", None, None, goal, value <= limit, figures)
