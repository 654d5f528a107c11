"""What a training leaves: an adapter, or a base of its own and, if wanted, the adapter nearest to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchd.jobs.context import JobContext
from orchd.lm.adapter import AdapterConfig, load_adapter, save_adapter
from orchd.lm.base import Base
from orchd.train.afterwards import FORGETTING, LEAK
from orchd.train.datasets.store import check_content
from orchd.train.evaluate import forgetting, score
from orchd.train.extract import extract
from orchd.train.leak.measure import Measured, measure_training
from orchd.train.specs import Extracted, Forgetting, Score, TrainSpec
from orchd.train.targets import linear_in_layers
from orchd.train.trainee import Trainee, Whole

ADAPTER, BASE = "adapter", "base"


@dataclass(frozen=True)
class Outcome:
    """``adapter`` and ``base`` are folders in the working folder, empty where there is none. ``parameters`` counts
    those of the adapter, else the numbers that were trained."""

    adapter: str
    base: str
    config: AdapterConfig
    parameters: int
    heldout: tuple[Score, ...]
    extracted: Extracted | None = None
    leak: Measured | None = None
    forgetting: Forgetting | None = None
    retention: str = ""


def leave(
    spec: TrainSpec,
    trainee: Trainee,
    base: Base,
    run: Path,
    epochs: float,
    job: JobContext,
    enter: Callable[[str], None] = lambda phase: None,
) -> Outcome:
    """Write it into the working folder, in ``spec.dtype``, score it on the test rows and on what the base could do, and
    look how much an adapter gives away; a base stays here. It went through the rows ``epochs`` times; ``run`` is the
    run's folder; ``enter`` is told each phase.

    Raises `TrainingRefused` where there is nothing to extract, `DatasetUnusable` where the rows were changed since it
    began, `JobCancelled`.
    """
    workdir, data = job.workdir, Path(spec.dataset)
    check_content(data, job.check)  # its test rows are scored: they, too, must be those of the id that is signed for
    parameters = sum(tensor.numel() for tensor in trainee.weights().values())
    if not isinstance(trainee, Whole):
        config = save_adapter(trainee.model, workdir / ADAPTER, spec.dtype)
        heldout = score(trainee.model, base, data, job, trainee.untrained)
        leak = _leak(trainee.model, spec, base, epochs, job, enter)
        if spec.retention is not None:
            enter(FORGETTING)
        forgot, kept = forgetting(trainee.model, base, spec.retention, run, job, trainee.untrained)
        return Outcome(ADAPTER, "", config, parameters, heldout, leak=leak, forgetting=forgot, retention=kept)
    trainee.write(workdir / BASE, spec.dtype)
    trainee.put(trainee.read(workdir / BASE))  # what is left is scored, as it was rounded
    heldout = score(trainee.model, base, data, job, trainee.untrained)
    if spec.retention is not None:
        enter(FORGETTING)
    forgot, kept = forgetting(trainee.model, base, spec.retention, run, job, trainee.untrained)
    nothing = AdapterConfig(r=0, lora_alpha=0, target_modules=())
    if not spec.extract_rank:
        return Outcome("", BASE, nothing, parameters, heldout, forgetting=forgot, retention=kept)
    before, linear = trainee.before(), linear_in_layers(trainee.model)
    made = extract(trainee.weights(), before, linear, spec.extract_rank, workdir / ADAPTER, spec.dtype)
    trainee.put(before)
    model = load_adapter(replace(base, model=trainee.model), workdir / ADAPTER)
    scores = score(model, base, data, job, model.disable_adapter)
    told, _ = forgetting(model, base, kept or spec.retention, run, job, model.disable_adapter)
    extracted = Extracted(residual_ppm=made.residual_ppm, heldout=scores, forgetting=told)
    leak = _leak(model, spec, base, epochs, job, enter)
    return Outcome(ADAPTER, BASE, made.config, made.parameters, heldout, extracted, leak, forgot, kept)


def _leak(
    model: Any, spec: TrainSpec, base: Base, epochs: float, job: JobContext, enter: Callable[[str], None]
) -> Measured | None:
    if not spec.leak_report:
        return None
    enter(LEAK)
    return measure_training(model, base, spec, epochs, job)
