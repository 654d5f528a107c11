"""One base, all adapters stacked over it, and held-out rows: the loss of any sum of them is one pass over the rows."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from orchd.average.course import Recipe
from orchd.average.decide import Decision
from orchd.average.gate import Answer, Part, Question
from orchd.average.gate_specs import GateSpec
from orchd.average.opened import Opened
from orchd.average.recipe import MILLION
from orchd.average.stacking import Among, turned
from orchd.errors import GateDataUnfit
from orchd.jobs.context import JobContext
from orchd.lm.base import best_device, load_base
from orchd.lm.losses import conversation_losses
from orchd.lm.significance import Sums
from orchd.lm.stacked import Stack
from orchd.train.datasets.store import Row, read_part
from orchd.train.score import Exam, make_exam

LEAST_UNITS = 10
"""Conversations or documents in each part: with fewer in either, both parts are put together and halved. Fewer say too
little: of ten rows a paired test of twenty adapters can refuse one."""
MOST_ROWS = 2_000
"""Of a part; of more so many are drawn."""
PACE_TOKENS = 1_024
"""Read to see how fast it goes."""


class Judge:
    """Answers questions about the adapters of `source` on held-out rows of the data set that `spec` names.

    The base is loaded once, and what was asked before is not computed again. `most` is how many passes are expected:
    rows are drawn so that these fit in `seconds`. Raises `BaseUnusable`, `AdapterUnfit`, `DatasetUnusable`,
    `GateDataUnfit`, `JobCancelled`.
    """

    def __init__(
        self, spec: GateSpec, source: Opened, recipe: Recipe, job: JobContext, *, most: int, seconds: float
    ) -> None:
        self.source, self.recipe, self.job = source, recipe, job
        self.base = load_base(spec.base, device=best_device())
        self.stack = Stack(self.base.model)
        for module in source.union.modules:
            job.check()
            factors = source.factors(module.name)
            a, b = np.concatenate([f.a for f in factors]), np.concatenate([f.b for f in factors], axis=1)
            self.stack.add(module.name, a, b, embedding=module.embedding)
        self._began = time.monotonic()
        self._seconds, self._most = seconds, most
        self._known: dict[tuple[object, ...], Sums] = {}
        rng = random.Random(spec.seed)
        parts = [_drawn(list(read_part(Path(spec.dataset), part)), rng) for part in ("validation", "test")]
        if min(len({_unit(row) for row in part}) for part in parts) < LEAST_UNITS:
            parts = list(_halved([*parts[0], *parts[1]], rng))
        self.rows = sum(map(len, parts))
        #: Rows of the choosing part, for whoever needs ordinary prompts.
        self.ordinary = parts[0]
        exams = [self._exam(part, spec.name) for part in parts]
        self.tokens_a_second = self._pace(exams[0])
        each = seconds * self.tokens_a_second / most
        self.exams: dict[Part, Exam] = {
            "choosing": fitting(exams[0], each, rng),
            "deciding": fitting(exams[1], each, rng),
        }

    @property
    def elapsed(self) -> float:
        """Seconds since everything but the rows was loaded."""
        return time.monotonic() - self._began

    @property
    def evaluations(self) -> int:
        return len(self._known)

    def answer(self, question: Question) -> Answer:
        """Raises `JobCancelled`."""
        if question.key not in self._known:
            self._most = max(self._most, len(self._known) + 1)
            left = max(0, round(self._seconds - self.elapsed))
            self.job.progress(len(self._known), self._most, "gate evaluations", time_left_s=left)
            self.put(question)
            self._known[question.key] = self._losses(self.exams[question.part])
        return Answer(self._known[question.key], late=self.elapsed > self._seconds)

    def put(self, question: Question) -> None:
        """Have the base's model compute what the question is about, until the next."""
        if question.decision is None:
            self.stack.put({})
            return
        among = Among(self.source, question.members)
        ranks = self.recipe.ranks(among, question.decision, self.job.check) if question.truncated else None
        self.stack.put(turned(among, question.decision, ranks))

    def _losses(self, exam: Exam) -> Sums:
        found = conversation_losses(self.base.model, exam.conversations, check=self.job.check)
        return exam.sums(exam.units, found, [one.counted_tokens for one in exam.conversations])

    def _exam(self, rows: Sequence[Row], name: str) -> Exam:
        exam = make_exam(self.base, rows)
        if (units := len(set(exam.units))) < LEAST_UNITS:
            called = name or "the data set"
            told = f"{units} held-out conversations or documents of one half fit this base, {LEAST_UNITS} are needed"
            raise GateDataUnfit(f"{called}: {told}", field="dataset")
        return exam

    def _pace(self, exam: Exam) -> float:
        """Tokens a second with all adapters on."""
        everybody = tuple(range(len(self.source.adapters)))
        self.put(Question("choosing", everybody, Decision("mean", MILLION, np.ones(len(everybody)), None)))
        count, tokens = 0, 0
        while count < len(exam.conversations) and tokens < PACE_TOKENS:
            tokens += len(exam.conversations[count].ids)
            count += 1
        conversation_losses(self.base.model, exam.conversations[:1], check=self.job.check)
        begun = time.monotonic()
        conversation_losses(self.base.model, exam.conversations[:count], check=self.job.check)
        return tokens / max(1e-6, time.monotonic() - begun)


def fitting(exam: Exam, tokens: float, rng: random.Random) -> Exam:
    """So many of the exam's units, drawn, as have at most `tokens` tokens together; not fewer than `LEAST_UNITS`."""
    sizes: dict[int, int] = {}
    for unit, one in zip(exam.units, exam.conversations, strict=True):
        sizes[unit] = sizes.get(unit, 0) + len(one.ids)
    kept, taken = dict[int, int](), 0
    for unit in rng.sample(sorted(sizes), len(sizes)):
        taken += sizes[unit]
        if taken > tokens and len(kept) >= LEAST_UNITS:
            break
        kept[unit] = len(kept)
    chosen = [at for at, unit in enumerate(exam.units) if unit in kept]
    return Exam(
        conversations=tuple(exam.conversations[at] for at in chosen),
        units=tuple(kept[exam.units[at]] for at in chosen),
        questions=(),
        examples=len(chosen),
    )


def _drawn(rows: list[Row], rng: random.Random) -> list[Row]:
    return rows if len(rows) <= MOST_ROWS else rng.sample(rows, MOST_ROWS)


def _unit(row: Row) -> str:
    return row.group or row.id


def _halved(rows: Sequence[Row], rng: random.Random) -> tuple[list[Row], list[Row]]:
    """No conversation or document is in both halves."""
    units = sorted({_unit(row) for row in rows})
    first = set(rng.sample(units, len(units) // 2))
    return [row for row in rows if _unit(row) in first], [row for row in rows if _unit(row) not in first]
