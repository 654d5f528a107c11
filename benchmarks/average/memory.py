"""Row `rss-k64`: the largest resident memory of averaging 64 adapters of a 7B base, in a process of its own.

They are eight on disk, each named eight times. The peer is what reading all factors at once would take, as float32.
Also told: `start`, what Python and numpy take before the first file, by averaging one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.average import ours
from benchmarks.average.shapes import LAYERS, MODULES, RANK, adapters, workplace
from benchmarks.report import Row, lower_is_better

COUNT = 64
ON_DISK = 8
GOAL_MB = 2_000.0


def rows() -> Iterator[Row]:
    with workplace() as root:
        folders = adapters(root, ON_DISK)
        many = ours.average(root / "many", folders * (COUNT // ON_DISK))
        one = ours.average(root / "one", folders[:1])
    numbers = COUNT * LAYERS * RANK * sum(map(sum, MODULES.values()))
    yield lower_is_better(
        "rss-k64",
        "MB",
        many["mb"],
        ("all factors at once", math.ceil(4 * numbers / 1e6)),
        (f"at most {GOAL_MB:g} MB", GOAL_MB),
        start=one["mb"],
        seconds=many["seconds"],
    )
