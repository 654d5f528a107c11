"""Row `sim-1000`: a town of 1,000 nodes for six hours of its own time, a fifth of them hostile (`tests/sim`).

`orchd` is how often a forged adapter was admitted; `seconds` the processor time that it took, `reached` the per cent of
adapters that came in time to honest nodes that want them, `revoked_and_kept` and `leaked` as they say; `median_s` and
`p95_s` are how long an adapter took to who was there. ORCHD_BENCH_SIM_NODES and ORCHD_BENCH_SIM_HOURS make it smaller.
"""

from __future__ import annotations

import os
import sys
import time

from benchmarks.report import Row
from tests.sim.scenario import Play, Town

#: Seconds of one core.
LIMIT_S = 120.0


def rows() -> list[Row]:
    town = Town(
        nodes=int(os.environ.get("ORCHD_BENCH_SIM_NODES", "1000")),
        hours=float(os.environ.get("ORCHD_BENCH_SIM_HOURS", "6")),
    )
    begun = time.process_time()
    outcome = Play(town).run()
    seconds = time.process_time() - begun
    for name, peer in outcome.late[:20]:
        print(f"sim-1000: {name} did not reach {peer} in time", file=sys.stderr)
    good = not (outcome.forged or outcome.leaked or outcome.revoked_and_kept or outcome.late)
    return [
        Row(
            work="sim-1000",
            unit="forged admitted",
            orchd=outcome.forged,
            peer="",
            peer_value=None,
            ratio=None,
            goal=f"0, all reached, < {LIMIT_S:.0f} s",
            met=good and seconds < LIMIT_S,
            figures={
                "seconds": round(seconds, 1),
                "reached": round(outcome.share, 3),
                "owed": outcome.owed,
                "leaked": outcome.leaked,
                "revoked_and_kept": outcome.revoked_and_kept,
                "median_s": round(outcome.median_s, 1),
                "p95_s": round(outcome.p95_s, 1),
                "events": outcome.events,
                "nodes": town.nodes,
                "hours": town.hours,
            },
        )
    ]
