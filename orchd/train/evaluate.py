"""The job ``evaluate``: the base and several adapters on one part of a data set, in one go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from orchd.errors import DatasetUnusable
from orchd.jobs.context import JobContext
from orchd.lm.adapter import load_adapter
from orchd.lm.base import best_device, load_base
from orchd.train.datasets.store import read_part
from orchd.train.score import make_exam, mark
from orchd.train.specs import EvaluateResult, EvaluateSpec, EvaluationRow


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
    results: list[EvaluationRow] = []
    total = len(spec.adapters) + spec.include_base
    for adapter in ([None] if spec.include_base else []) + list(spec.adapters):
        job.progress(len(results), total, "adapters")
        model = base.model if adapter is None else load_adapter(base, adapter.path)
        scored = mark(model, base, exam, spec.exact_match, job.check)
        if adapter is not None:
            base = replace(base, model=model.unload())
        results.append(
            EvaluationRow(
                id=None if adapter is None else adapter.id,
                name=None if adapter is None else adapter.name,
                loss=scored.loss,
                exact_match=scored.exact_match,
                examples=scored.examples,
                loss_interval=scored.loss_interval,
            )
        )
    job.progress(total, total, "adapters")
    return EvaluateResult(rows=tuple(results))
