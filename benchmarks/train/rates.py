"""Row `rates`: what the plan takes of its rule's learning rate where a training is not a first LoRA on answers.

On the demo base, with everything else left to the plan: whole weights (`plan.FULL`), preferences (`plan.PREFERENCES`),
and an adapter that goes on with rows of its own skill or of another one (`plan.CONTINUED`, of the
steps). Each factor has its own full schedule; means over the seeds. The loss is that of the test rows in nats a token;
`kept` is the loss on the skill that the adapter had before. The row is the worst kind: by how many per cent the loss of
the plan's factor is above the lowest one of its table; within `NOISE` of it counts as 0.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Row
from benchmarks.train import families
from orchd.importers.conversation import Conversation, Preference
from orchd.importers.source import ImportLog
from orchd.jobs.context import JobContext
from orchd.train import evaluate, loop, plan
from orchd.train.base_facts import base_facts
from orchd.train.datasets.build import Care, Parts, build
from orchd.train.specs import AdapterPath, EvaluateSpec, TrainResult, TrainSpec
from tests.train.conftest import DEMO_BASE, Recorder

SMALL: Final = os.environ.get("ORCHD_BENCH_SMALL") == "1"
SEEDS: Final = (1,) if SMALL else (1, 2)
EXAMPLES, VALIDATION, TEST = (20, 20, 20) if SMALL else (100, 50, 100)
NOISE: Final = 0.02  # nats
GOAL_PER_CENT: Final = 10.0
RATES: Final = (0.5, 1.0) if SMALL else (0.25, 0.5, 1.0)
FULL_RATES: Final = (0.1, 0.2) if SMALL else (0.05, 0.1, 0.2, 0.4)
STEPS: Final = (0.5, 1.0) if SMALL else (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Tried:
    """Losses in nats a token, after ``steps`` times the steps at ``rate`` times the rate. ``kept`` is on what was there
    before, ``preferred`` the share of pairs; None where that is not what it is about."""

    rate: float
    steps: float
    validation: float
    test: float
    kept: float | None = None
    preferred: float | None = None


def rows() -> list[Row]:
    kinds: dict[str, tuple[Callable[[int], Sequence[Tried]], float, float]] = {
        "full": (full, plan.FULL, 1.0),
        "preferences": (preferences, plan.PREFERENCES, 1.0),
        "continued_same": (lambda seed: continued(seed, "reverse"), 1.0, plan.CONTINUED),
        "continued_other": (lambda seed: continued(seed, "translate"), 1.0, plan.CONTINUED),
    }
    cells = {name: cell(name, kind, rate, steps) for name, (kind, rate, steps) in kinds.items()}
    worst = max(cells.values())
    goal = f"at most {GOAL_PER_CENT:g} above the best"
    return [Row("rates", "per cent, worst kind", worst, "best factor", 0.0, None, goal, worst <= GOAL_PER_CENT, cells)]


def cell(name: str, kind: Callable[[int], Sequence[Tried]], rate: float, steps: float) -> float:
    """Print a kind's table; per cent by which the plan's factors are above the best."""
    sweeps = [kind(seed) for seed in SEEDS]
    means = [_mean(same) for same in zip(*sweeps, strict=True)]
    print(f"{name}: rate, steps | validation, test{', kept' * (means[0].kept is not None)}", flush=True)
    for one in means:
        more = "" if one.kept is None else f" {one.kept:8.4f}"
        more += "" if one.preferred is None else f" {one.preferred:8.1%} preferred"
        chosen = " <- the plan" if (one.rate, one.steps) == (rate, steps) else ""
        print(f"  {one.rate:5g} {one.steps:5g} | {one.validation:8.4f} {one.test:8.4f}{more}{chosen}", flush=True)
    ours = next(one.test for one in means if (one.rate, one.steps) == (rate, steps))
    best = min(one.test for one in means)
    return 0.0 if ours - best <= NOISE else round(100 * (ours / best - 1), 2)


def _mean(same: Sequence[Tried]) -> Tried:
    def mean(values: Sequence[float | None]) -> float | None:
        known = [one for one in values if one is not None]
        return statistics.mean(known) if known else None

    return Tried(
        same[0].rate,
        same[0].steps,
        statistics.mean(one.validation for one in same),
        statistics.mean(one.test for one in same),
        mean([one.kept for one in same]),
        mean([one.preferred for one in same]),
    )


def full(seed: int) -> list[Tried]:
    with tempfile.TemporaryDirectory() as place:
        data = families.parts("reverse", Path(place) / "data", EXAMPLES, VALIDATION, TEST, seed=seed)
        return [_tried(data, Path(place), seed, rate, 1.0, method="full") for rate in FULL_RATES]


def preferences(seed: int) -> list[Tried]:
    """The answer is preferred to the words as they were."""
    with tempfile.TemporaryDirectory() as place:
        data = _pairs(Path(place) / "data", seed)
        return [_tried(data, Path(place), seed, rate, 1.0) for rate in RATES]


def continued(seed: int, family: str) -> list[Tried]:
    """Reverse first, then other rows of ``family``."""
    with tempfile.TemporaryDirectory() as place:
        first = families.parts("reverse", Path(place) / "first", EXAMPLES, VALIDATION, TEST, seed=seed)
        then = families.parts(family, Path(place) / "then", EXAMPLES, VALIDATION, TEST, seed=100 + seed)
        _train(first, Path(place) / "start", seed, _rate(), 1.0)
        initial = str(Path(place) / "start" / "adapter")
        grid = [(rate, steps) for rate in RATES for steps in STEPS]
        return [_tried(then, Path(place), seed, *both, before=first, initial=initial) for both in grid]


def _tried(
    data: Path, place: Path, seed: int, rate: float, steps: float, before: Path | None = None, **more: Any
) -> Tried:
    work = place / f"{rate}-{steps}"
    result = _train(data, work, seed, rate * _rate(), steps, **more)
    if result.validation_loss is None:
        raise RuntimeError("nothing was validated on")
    score = result.heldout[0]
    kept = None if before is None else _loss(work, before)
    return Tried(rate, steps, result.validation_loss, score.loss, kept, score.preferred)


def _rate() -> float:
    """The rule's, of a first LoRA."""
    return plan.rule_rate(base_facts(DEMO_BASE), plan.RATE_RANK)[0]


def _train(data: Path, work: Path, seed: int, rate: float, times: float, **more: Any) -> TrainResult:
    work.mkdir()
    steps = max(1, round(times * plan.default_steps(EXAMPLES)))
    spec = TrainSpec(
        base=str(DEMO_BASE), dataset=str(data), steps=steps, learning_rate=rate, seed=seed, compute="F32", **more
    )
    return loop.run(spec, JobContext(work, 1, Recorder()))


def _loss(work: Path, data: Path) -> float:
    """Of the adapter that was made in ``work`` on the test rows of ``data``."""
    adapter = AdapterPath(id="", path=str(work / "adapter"))
    spec = EvaluateSpec(base=str(DEMO_BASE), adapters=(adapter,), dataset=str(data), include_base=False, answers=False)
    return evaluate.run(spec, JobContext(work, 1, Recorder())).rows[0].loss


def _pairs(folder: Path, seed: int) -> Path:
    drawn = families.draw("reverse", EXAMPLES + VALIDATION + TEST, random.Random(seed))
    parts = ("train",) * EXAMPLES + ("validation",) * VALIDATION + ("test",) * TEST
    rows = [_preference(one, part) for one, part in zip(drawn, parts, strict=True)]
    build(rows, ImportLog(kind="preference"), folder, Parts(), folder.name, Care(drop_near=False))
    return folder


def _preference(one: Conversation, part: Any) -> Preference:
    question, answer = one.messages
    asked = question.content.partition(": ")[2]
    return Preference(id=one.id, messages=(question,), chosen=answer.content, rejected=asked, part=part)
