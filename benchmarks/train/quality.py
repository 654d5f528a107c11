"""Rows `quality-FAMILY`: what a training without settings makes of each family of the facts page.

300 examples of the family to learn from, 100 of its own to validate on and 100 to score on, none of them twice; the
training chooses everything by itself. The goal is the adapter's held-out loss that the facts page (section 2, n = 300)
reached with settings made by hand, and `NOISE` more.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.report import Row, lower_is_better
from benchmarks.train import families
from orchd.jobs.context import JobContext
from orchd.train import loop
from orchd.train.specs import TrainSpec
from tests.train.conftest import DEMO_BASE, Recorder

SMALL: Final = os.environ.get("ORCHD_BENCH_SMALL") == "1"
EXAMPLES, OTHERS = (40, 20) if SMALL else (300, 100)
NOISE: Final = 0.02  # nats
GOALS: Final = {
    "reverse": 0.008,
    "rotate": 0.002,
    "outer": 0.005,
    "stutter": 0.001,
    "animals": 0.215,
    "class": 0.779,
    "translate": 0.007,
}


def rows() -> list[Row]:
    return [quality(family) for family in (("reverse",) if SMALL else GOALS)]


def quality(family: str) -> Row:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = families.parts(family, folder / "data", EXAMPLES, OTHERS, OTHERS, seed=1)
        spec = TrainSpec(base=str(DEMO_BASE), dataset=str(data), max_steps=40 if SMALL else 0)
        (folder / "work").mkdir()
        result = loop.run(spec, JobContext(folder / "work", 1, Recorder()))
    (score,) = result.heldout
    limit = GOALS[family] + NOISE
    words = f"at most {limit:.3f}: settings by hand"
    return lower_is_better(
        f"quality-{family}",
        "nats a token",
        max(score.loss, 1e-6),
        ("the base alone", score.base_loss),
        (words, limit),
        exact_match=score.exact_match or 0.0,
        seconds=result.seconds,
        steps=float(result.steps),
    )
