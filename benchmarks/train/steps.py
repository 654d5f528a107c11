"""Row `steps-rule`: the length that a training chooses against a quarter, half, twice and four times of it.

Each length has its own full schedule, and everything else is left to the plan. Of the five, the one with the least
validation loss is scored on the test rows, as is the chosen length; the cell is by how many per cent the latter's loss
is above the former's, both means over the seeds. A cell within `NOISE` counts as 0. The row is the worst cell, the
cells are its figures.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.report import Row
from benchmarks.train import families
from orchd.jobs.context import JobContext
from orchd.train import loop
from orchd.train.plan import default_steps
from orchd.train.specs import TrainSpec
from tests.train.conftest import DEMO_BASE, Recorder

SMALL: Final = os.environ.get("ORCHD_BENCH_SMALL") == "1"
FAMILIES: Final = ("animals",) if SMALL else ("reverse", "animals", "translate")
EXAMPLES: Final = (20,) if SMALL else (20, 100, 300, 1000)
SEEDS: Final = (1,) if SMALL else (1, 2, 3)
TIMES: Final = (0.5, 1.0, 2.0) if SMALL else (0.25, 0.5, 1.0, 2.0, 4.0)
VALIDATION, TEST = (30, 50) if SMALL else (100, 200)
NOISE: Final = 0.02  # nats
GOAL_PER_CENT: Final = 10.0


@dataclass(frozen=True)
class Run:
    """Losses in nats a token."""

    times: float
    validation: float
    test: float


def rows() -> list[Row]:
    cells = {f"{family}_{count}": cell(family, count) for family in FAMILIES for count in EXAMPLES}
    worst = max(cells.values())
    goal = f"at most {GOAL_PER_CENT:g} above the best"
    met = worst <= GOAL_PER_CENT
    return [
        Row("steps-rule", "per cent, worst cell", round(worst, 2), "best of the sweep", 0.0, None, goal, met, cells)
    ]


def cell(family: str, count: int) -> float:
    """Per cent by which the chosen length's test loss is above that of the best on validation."""
    sweeps = [sweep(family, count, seed) for seed in SEEDS]
    chosen = statistics.mean(next(run.test for run in runs if run.times == 1.0) for runs in sweeps)
    best = statistics.mean(min(runs, key=lambda run: run.validation).test for runs in sweeps)
    print(f"{family} {count}: {chosen:.4f}, best {best:.4f}", flush=True)
    return 0.0 if chosen - best <= NOISE else round(100 * (chosen / best - 1), 2)


def sweep(family: str, count: int, seed: int) -> Sequence[Run]:
    with tempfile.TemporaryDirectory() as place:
        data = families.parts(family, Path(place) / "data", count, VALIDATION, TEST, seed=seed)
        return [_run(data, Path(place) / str(times), times, count, seed) for times in TIMES]


def _run(data: Path, work: Path, times: float, count: int, seed: int) -> Run:
    work.mkdir()
    steps = max(1, round(times * default_steps(count)))
    spec = TrainSpec(base=str(DEMO_BASE), dataset=str(data), steps=steps, seed=seed)
    result = loop.run(spec, JobContext(work, 1, Recorder()))
    if result.validation_loss is None:
        raise RuntimeError("nothing was validated on")
    return Run(times, result.validation_loss, result.heldout[0].loss)
