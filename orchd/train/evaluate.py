"""The job ``evaluate``: the base and several adapters on one part of a data set, beside each other."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch
from msgspec.structs import replace as replaced

from orchd.errors import DatasetUnusable
from orchd.jobs.context import JobContext
from orchd.lm.adapter import load_adapter
from orchd.lm.base import Base, best_device, load_base
from orchd.train import kept_marks, measures, retention, speed
from orchd.train.datasets.store import marks_file, read_part
from orchd.train.precision import most_memory
from orchd.train.score import Exam, Mark, make_exam, mark
from orchd.train.specs import (
    AdapterPath,
    Answered,
    Comparison,
    EvaluateResult,
    EvaluateSpec,
    EvaluationRow,
    Forgetting,
    Measure,
    Score,
)

SHOWN_ANSWERS: Final = 40
SHOWN_CHARACTERS: Final = 1_000


def run(spec: EvaluateSpec, job: JobContext) -> EvaluateResult:
    """Score the base (if asked for) and then each adapter, in the order of the spec.

    Raises `BaseUnusable`, `AdapterUnfit`, `DatasetUnusable`, `JobCancelled`.
    """
    torch.set_num_threads(job.threads)
    rows = list(read_part(Path(spec.dataset), spec.split))
    if not rows:
        raise DatasetUnusable(f"no rows in the {spec.split} part", field="split")
    base = load_base(spec.base, device=best_device())
    exam = make_exam(base, rows)
    if not exam.examples:
        raise DatasetUnusable(f"no row of the {spec.split} part fits this base", field="dataset")
    path = None if spec.retention is None else retention.find(base, spec.retention, job.workdir, job.check)
    kept = [] if path is None else retention.measured(base, path)
    marks: list[Mark] = []
    results: list[EvaluationRow] = []
    scored: list[AdapterPath | None] = [*([None] if spec.include_base else []), *spec.adapters]
    made = ""
    for adapter in scored:
        job.progress(len(results), len(scored), "adapters")
        model = base.model if adapter is None else load_adapter(base, adapter.path)
        if adapter is None:
            alone, made = _alone(spec, base, exam, job)
            marks.append(alone)
        else:
            marks.append(mark(model, base, exam, spec.answers, job.check))
        forgot = retention.forgetting(model, kept, model.disable_adapter, job.check) if adapter else None
        results.append(replaced(_row(adapter, marks[-1], exam, model, job, timed=spec.speed), forgetting=forgot))
        if adapter is not None:
            base = replace(base, model=model.unload())
    job.progress(len(scored), len(scored), "adapters")
    return EvaluateResult(
        rows=tuple(results),
        split=spec.split,
        comparisons=_compared(scored, marks, exam, spec),
        answers=shown_answers(exam, marks),
        asked=len(exam.questions) if spec.answers else 0,
        retention="" if path is None or str(path) == spec.retention else str(path),
        marks=made,
    )


def _alone(spec: EvaluateSpec, base: Base, exam: Exam, job: JobContext) -> tuple[Mark, str]:
    """What the base alone gets, and the file of that, to be kept, where none was."""
    if not spec.fingerprint:
        return mark(base.model, base, exam, spec.answers, job.check), ""
    digest = kept_marks.digest_of(exam, base, spec.fingerprint, answers=spec.answers)
    if (kept := kept_marks.read(marks_file(Path(spec.dataset), spec.fingerprint, spec.split), digest)) is not None:
        job.log("what the base alone gets on these rows was kept, and is not scored again")
        return kept, ""
    found = mark(base.model, base, exam, spec.answers, job.check)
    file = job.workdir / "marks.json"
    kept_marks.write(file, digest, found)
    return found, str(file)


def score(
    model: Any, base: Base, dataset: Path, job: JobContext, untrained: Callable[[], AbstractContextManager[None]]
) -> tuple[Score, ...]:
    """What a training says of its adapter: beside the base alone, on the test rows that nothing was chosen by; in
    ``untrained`` the model computes what the base alone does."""
    exam = make_exam(base, list(read_part(dataset, "test")))
    if not exam.examples:
        job.log("there is no test part, so that nothing says how good the adapter is on rows that it has not seen")
        return ()
    ours = mark(model, base, exam, check=job.check)
    with untrained():
        alone = mark(model, base, exam, check=job.check)
    found, before = measures.measure(ours, exam), measures.measure(alone, exam)
    return (
        Score(
            split="test",
            loss=ours.loss,
            base_loss=alone.loss,
            exact_match=_value(found, "exact_match"),
            base_exact_match=_value(before, "exact_match"),
            examples=exam.examples,
            preferred=_value(found, "preferred"),
            base_preferred=_value(before, "preferred"),
            measures=found,
            comparisons=measures.compare(ours, alone, exam, adapter="", other=None),
        ),
    )


def forgetting(
    model: Any,
    base: Base,
    given: str | None,
    folder: Path,
    job: JobContext,
    untrained: Callable[[], AbstractContextManager[None]],
) -> tuple[Forgetting | None, str]:
    """What a training says of what the base could do, and the file of a retention set that had to be made for it in
    ``folder``. ``untrained`` as for `score`."""
    if given is None:
        return None, ""
    with untrained():
        path = retention.find(base, given, folder, job.check)
    found = retention.forgetting(model, retention.measured(base, path), untrained, job.check)
    return found, "" if str(path) == given else str(path)


def _row(
    adapter: AdapterPath | None, scored: Mark, exam: Exam, model: Any, job: JobContext, *, timed: bool
) -> EvaluationRow:
    found = measures.measure(scored, exam)
    loss = found[0]
    prompts = [one.prompt for one in exam.questions] or [one.ids[:-1] for one in exam.conversations]
    pace = speed.measure(model, prompts, job.check) if timed else None
    return EvaluationRow(
        id=None if adapter is None else adapter.id,
        name=None if adapter is None else adapter.name,
        loss=scored.loss,
        exact_match=_value(found, "exact_match"),
        examples=scored.examples,
        loss_interval=None if loss.high is None else loss.high - loss.value,
        measures=found,
        labels=measures.label_rows(scored, exam),
        first_token_ms=None if pace is None else pace.first_token_ms,
        tokens_s=None if pace is None else pace.tokens_s,
        memory=most_memory(model),
    )


def _compared(
    scored: Sequence[AdapterPath | None], marks: Sequence[Mark], exam: Exam, spec: EvaluateSpec
) -> tuple[Comparison, ...]:
    """Each adapter beside the base; then, if asked for, each later one beside the first adapter."""
    first = 1 if spec.include_base else 0
    pairs = [(at, 0) for at in range(1, len(scored))] if spec.include_base else []
    pairs += [(at, first) for at in range(first + 1, len(scored))] if spec.compare else []
    return tuple(
        one
        for at, other in pairs
        for one in measures.compare(marks[at], marks[other], exam, adapter=_id(scored[at]), other=_id(scored[other]))
    )


def _id(adapter: AdapterPath | None) -> str | None:
    return None if adapter is None else adapter.id


def shown_answers(exam: Exam, marks: Sequence[Mark]) -> tuple[Answered, ...]:
    """Some questions, drawn by chance, with everybody's answers."""
    count = len(exam.questions) if all(one.answers for one in marks) else 0
    drawn = random.Random("shown").sample(range(count), count)
    return tuple(
        Answered(
            question=_cut(exam.questions[at].asked),
            wanted=_cut(exam.questions[at].answer),
            answers=tuple(_cut(one.answers[at]) for one in marks),
        )
        for at in islice(drawn, SHOWN_ANSWERS)
    )


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _value(found: Sequence[Measure], metric: str) -> float | None:
    return next((one.value for one in found if one.metric == metric), None)
