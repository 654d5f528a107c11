"""Rows `announce-20`, `reach-20` and `reach-50`: from announced to admitted at every other node.

All nodes run in this process, each with its own registry; whoever hears of an adapter of a quarter of a megabyte
fetches it. Announcements come every `PAUSE_S` seconds, from one node after the other. `reach` is the share of all pairs
(adapter, other node) that are through when repair has had its time; `ORCHD_BENCH_REACH` may give other figures as
`NODES,ANNOUNCEMENTS`, for a short look.
"""

from __future__ import annotations

import os

import trio

from benchmarks.net.village import RANK, Village, percentile, village
from benchmarks.report import Row

#: Nodes and announcements of each run.
RUNS = ((20, 50), (50, 20))
#: All nodes share one core for what is not in threads: one announcement is through before the next one comes.
PAUSE_S = {20: 4.0, 50: 12.0}
#: Without losses repair has nothing to do; with some it comes within its interval (ten minutes at most).
REPAIR_S = 720.0
P50_S = 1.0


async def announce(nodes: int, count: int, pause_s: float) -> Village:
    async with village(nodes) as found:
        made = []
        for number in range(count):
            peer = found.peers[number % nodes]
            made.append((peer, await trio.to_thread.run_sync(peer.make, number, RANK)))
        found.want_everything()
        for peer, manifest in made:
            await found.publish(peer, manifest)
            await trio.sleep(pause_s)
        with trio.move_on_after(REPAIR_S):
            while len(found.admitted) < found.expected:  # noqa: ASYNC110 - in many nodes
                await trio.sleep(0.1)
        return found


def rows() -> list[Row]:
    short = os.environ.get("ORCHD_BENCH_REACH")
    runs = [tuple(map(int, short.split(",")))] if short else RUNS
    found: list[Row] = []
    for nodes, count in runs:
        done = trio.run(announce, nodes, count, PAUSE_S.get(nodes, 4.0))
        delays, share = done.delays(), 100 * len(done.admitted) / done.expected
        figures = {
            "p50": percentile(delays, 0.5),
            "p95": percentile(delays, 0.95),
            "max": percentile(delays, 1.0),
            "pairs": float(done.expected),
            "announcements": float(count),
            "failed": float(len(done.failures)),
        }
        if nodes == RUNS[0][0] or short:
            p50 = round(figures["p50"], 3)
            found.append(Row(f"announce-{nodes}", "s", p50, "-", None, None, f"≤ {P50_S:g} s", p50 <= P50_S, figures))
        found.append(Row(f"reach-{nodes}", "%", round(share, 2), "-", None, None, "100 %", share == 100, figures))
    return found
