"""What comes after a training's last step, counted before the first one: scoring on the test rows, the leak report, and
the look at what the base forgot. Nothing is computed with the base, so that it takes next to no time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Final

from orchd.importers.conversation import Message
from orchd.lm.base import Base
from orchd.lm.chat import encode_prompt
from orchd.lm.routing import TOKENS
from orchd.train import retention
from orchd.train.datasets.encode import encode_row
from orchd.train.datasets.store import DatasetInfo, read_info, read_part
from orchd.train.leak.canaries import ALTERNATIVES, canaries
from orchd.train.leak.figures import MIN_ROWS
from orchd.train.leak.measure import CENTROID_PROMPTS, ENDINGS_AT_ONCE, MAX_ROWS
from orchd.train.objective import Example
from orchd.train.plan_specs import Work
from orchd.train.retention_prompts import PROMPTS
from orchd.train.score import asked_together, make_exam
from orchd.train.specs import TrainSpec

SCORING: Final = "scoring"
LEAK: Final = "leak report"
FORGETTING: Final = "forgetting"
LOOKED_AT: Final = 1_000
"""Test rows that are counted, of more: the others are taken to be like them."""

BOTH: Final = 2
"""The model as it was trained, and the base alone."""


def work_after(spec: TrainSpec, base: Base, examples: Sequence[Example]) -> tuple[Work, ...]:
    """In its order; what is not asked for, or can't be told, is left out. ``examples`` are those that are learnt.

    Raises `DatasetUnusable`."""
    dataset = Path(spec.dataset)
    info = read_info(dataset)
    found = [_scoring(dataset, info, base)]
    adapters = spec.method == "lora" or spec.extract_rank > 0
    if spec.leak_report and adapters:
        found.append(_leak(spec, info, base, examples))
    if spec.retention is not None:
        found.append(_forgetting(base, spec.retention))
    return tuple(_of_whole_weights(spec, one) for one in found if one is not None)


def _scoring(dataset: Path, info: DatasetInfo, base: Base) -> Work | None:
    """The test rows are read once by either, and their questions answered. A trained model is taken to end its answers
    where those that are wanted end, the base not to end them."""
    exam = make_exam(base, list(islice(read_part(dataset, "test"), LOOKED_AT)))
    if not exam.examples:
        return None
    read = sum(len(one.ids) for one in exam.conversations) + sum(len(one.ids) for one in exam.pairs)
    tokens = BOTH * read * max(1.0, info.test / LOOKED_AT)
    passes = answers = 0
    for group in asked_together(exam.questions):
        steps = group.limit + min(group.limit, group.longest + 1)
        tokens += BOTH * group.rows * group.prompt
        passes += steps
        answers += steps * group.rows
    told = f"the base too, on {info.test:,} test rows" + (
        f", {len(exam.questions):,} of them answered" if passes else ""
    )
    return Work(phase=SCORING, why=told, tokens=round(tokens), passes=passes, answers=answers)


def _leak(spec: TrainSpec, info: DatasetInfo, base: Base, examples: Sequence[Example]) -> Work:
    """Learnt rows and others, by either model; then each canary's alternatives, whose beginning is read once."""
    before = [read_info(folder) for folder in map(Path, spec.learnt_before) if folder.is_dir()]
    aside = round(info.train * spec.validation_split)
    members = min(MAX_ROWS, info.train - aside + sum(one.train for one in before))
    others = min(MAX_ROWS, aside + sum(one.validation + one.test for one in (info, *before)))
    length = mean(len(one.ids) for one in examples) / (2 if info.kind == "preference" else 1)
    models = BOTH if min(members, others) >= MIN_ROWS else 1
    tokens: float = models * (members + others) * length
    passes = 0
    if spec.routing:
        tokens += 2 * min(CENTROID_PROMPTS, members) * min(TOKENS, length)
        tokens += min(CENTROID_PROMPTS, others) * min(TOKENS, length)
    for canary in canaries(min(1, spec.canaries), spec.seed):
        own = encode_row(base.tokenizer, canary.row(info.kind))
        tokens += spec.canaries * (2 * len(own.ids) + ALTERNATIVES * own.counted_tokens)
        passes = spec.canaries * math.ceil(ALTERNATIVES / ENDINGS_AT_ONCE)
    told = f"{members:,} learnt rows and {others:,} others"
    told += f", {spec.canaries} canaries beside {ALTERNATIVES} alternatives each" if spec.canaries else ""
    return Work(phase=LEAK, why=told, tokens=round(tokens), passes=passes)


def _forgetting(base: Base, given: str) -> Work:
    """What the base is known to answer, by either model; where no set is there, the base makes it first."""
    if given and Path(given).is_file():
        rows = retention.measured(base, Path(given))
        tokens = BOTH * sum(len(one.ids) for one in rows)
        return Work(phase=FORGETTING, why=f"{len(rows)} answers of the base, by either", tokens=tokens)
    prompt = mean(len(encode_prompt(base.tokenizer, [Message("user", one)])) for one in PROMPTS[: retention.AT_ONCE])
    batches = math.ceil(len(PROMPTS) / retention.AT_ONCE)
    passes = batches * retention.ANSWER_TOKENS
    read = len(PROMPTS) * prompt + BOTH * len(PROMPTS) / 2 * (prompt + retention.ANSWER_TOKENS)
    told = f"the base first answers {len(PROMPTS)} prompts: its retention set is made, once"
    return Work(phase=FORGETTING, why=told, tokens=round(read), passes=passes, answers=passes * retention.AT_ONCE)


def _of_whole_weights(spec: TrainSpec, work: Work) -> Work:
    """The base's own weights are read again for each look at it; an adapter that is extracted is looked at as well."""
    if spec.method != "full":
        return work
    times = 2 if spec.extract_rank and work.phase != LEAK else 1
    return Work(
        phase=work.phase,
        why=work.why,
        tokens=times * work.tokens,
        passes=times * work.passes,
        answers=times * work.answers,
        loaded=0 if work.phase == LEAK else BOTH,
    )


class Countdown:
    """The seconds that are left after the last step, by phase."""

    def __init__(self, phases: Sequence[tuple[str, float]], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._left = dict(phases)
        self._monotonic = monotonic
        self._began = monotonic()
        self.phase = ""

    def enter(self, phase: str) -> None:
        """The phases before it are over."""
        names = list(self._left)
        for name in names[: names.index(phase)] if phase in names else names:
            self._left[name] = 0.0
        self.phase, self._began = phase, self._monotonic()

    @property
    def seconds(self) -> float:
        """A phase that takes longer than it was thought to has nothing left."""
        spent = self._monotonic() - self._began if self.phase else 0.0
        now = max(0.0, self._left.get(self.phase, 0.0) - spent)
        return now + sum(left for name, left in self._left.items() if name != self.phase)
