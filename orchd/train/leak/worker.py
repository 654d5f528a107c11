"""The job ``leak``: the report on an adapter that was trained before."""

from __future__ import annotations

from pathlib import Path

import torch

from orchd.jobs.context import JobContext
from orchd.lm.adapter import load_adapter
from orchd.lm.base import best_device, load_base
from orchd.train.leak.measure import measure, read_rows
from orchd.train.specs import LeakResult, LeakSpec


def run(spec: LeakSpec, job: JobContext) -> LeakResult:
    """Raises `BaseUnusable`, `AdapterUnfit`, `DatasetUnusable`, `JobCancelled`."""
    torch.set_num_threads(job.threads)
    job.progress(0, 1, "reports")
    base = load_base(spec.base, device=best_device())
    rows = read_rows(base, [Path(folder) for folder in spec.datasets], spec.settings)
    measured = measure(load_adapter(base, spec.adapter), base, rows, spec.settings, job.check)
    job.progress(1, 1, "reports")
    return LeakResult(report=measured.report, centroid=measured.centroid)
