"""Rows `quality-FAMILY`: what a training without settings makes of each family of the facts page.

300 examples of the family to learn from, 100 of its own to validate on and 100 to score on, none of them twice; the
training chooses everything by itself. A row is the mean of three seeds, each of which draws other examples and begins
elsewhere; its figures say how far they lie apart. The goal is the adapter's held-out loss that the facts page (section
2, n = 300) reached with settings made by hand, with one seed, and `NOISE` more.

`class` has but 108 questions: 88 are learnt and 10 scored. The facts page drew 300 and 100 of those 108 with
repetitions, so that it learnt about 101, and most of what it scored on was among them; here none is.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.report import Row, lower_is_better
from benchmarks.train import families
from orchd.jobs.context import JobContext
from orchd.train import loop
from orchd.train.specs import TrainResult, TrainSpec
from tests.train.conftest import DEMO_BASE, Recorder

SMALL: Final = os.environ.get("ORCHD_BENCH_SMALL") == "1"
EXAMPLES, VALIDATION, TEST = (40, 20, 20) if SMALL else (300, 100, 100)
SEEDS: Final = (1,) if SMALL else (1, 2, 3)
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
    runs = [trained(family, seed) for seed in SEEDS]
    scores = [one.heldout[0] for one in runs]
    losses = [one.loss for one in scores]
    limit = GOALS[family] + NOISE
    return lower_is_better(
        f"quality-{family}",
        "nats a token",
        max(statistics.mean(losses), 1e-6),
        ("the base alone", statistics.mean(one.base_loss for one in scores)),
        (f"at most {limit:.3f}: settings by hand", limit),
        lowest=min(losses),
        highest=max(losses),
        exact_match=statistics.mean(one.exact_match or 0.0 for one in scores),
        seconds=statistics.mean(one.seconds for one in runs),
        steps=float(runs[0].steps),
    )


def trained(family: str, seed: int) -> TrainResult:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = families.parts(family, folder / "data", EXAMPLES, VALIDATION, TEST, seed=seed)
        spec = TrainSpec(base=str(DEMO_BASE), dataset=str(data), max_steps=40 if SMALL else 0, seed=seed)
        (folder / "work").mkdir()
        result = loop.run(spec, JobContext(folder / "work", 1, Recorder()))
    one = result.heldout[0]
    exact = one.exact_match or 0.0
    print(f"{family}, seed {seed}: {one.loss:.4f}, exact {exact:.2f}, best step {result.best_step}", flush=True)
    return result
