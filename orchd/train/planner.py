"""The jobs ``train.plan`` and ``train.validate``: what a training would be, found out by loading what it needs.

A plan takes a few real steps here; a validation only reads the data in the base's tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import torch

from orchd.errors import JobCancelled, OrchdError
from orchd.jobs.context import JobContext
from orchd.lm.adapter import DTYPES
from orchd.lm.base import Base, device_of, load_tokenizer
from orchd.train import backends, loop, measure, plan, precision
from orchd.train.afterwards import work_after
from orchd.train.base_facts import base_facts
from orchd.train.measure import Trying
from orchd.train.objective import Example, objective_of
from orchd.train.placement import layers_outside
from orchd.train.plan import Facts
from orchd.train.plan_specs import DataFacts, Pace, Plan, PlanSpec, ValidateSpec, Validation
from orchd.train.prepare import check, read_data, validate_every
from orchd.train.specs import Finding, Settled, TrainSpec
from orchd.train.trainee import trainee_of


def run_plan(spec: PlanSpec, job: JobContext) -> Plan:
    """Raises `TrainingRefused`, `DatasetUnusable`, `BaseUnusable`, `AdapterUnfit`, `MemoryShort`, `JobCancelled`."""
    train, begun = spec.train, time.monotonic()
    check(train)
    torch.set_num_threads(job.threads)
    job.progress(0, 3, "stages", phase="loading")
    compute = loop.compute_in(train, job.workdir)
    base = backends.load(train, DTYPES[compute], backends.chosen(train, job.workdir))
    examples, validation, counts = _data(train, base, job)
    loading = time.monotonic() - begun
    job.progress(1, 3, "stages", phase="trying the base")
    batches = partial(loop.trial_batches, train, examples)
    trying = Trying(train, base, examples, objective_of(train), loop.backward, batches, job)
    tried = time.monotonic()
    facts = measure.facts_of(trying, counts, measure.machine_facts(job, device_of(base), compute, base.layers_outside))
    settled, _ = plan.settle(train, facts)
    job.progress(2, 3, "stages", phase="trial steps")
    found = measure.try_steps(trying, settled)
    again = time.monotonic() - tried if not (train.learning_rate or train.schedule_total) else 0.0
    trial = msgspec.structs.replace(
        found,
        pace=_pace(replace(trying, base=backends.answering(train, base)), settled),
        loading_s=loading,
        trying_s=again,
        memory=precision.most_memory(base.model),
    )
    batch = settled.batch_size * train.gradient_accumulation_steps
    every = validate_every(settled.steps, batch, len(examples), len(validation))
    job.progress(3, 3, "stages", phase="done")
    facts = replace(facts, after=work_after(train, base, examples))
    made = plan.make(train, facts, trial, settled.steps // every if validation else 0)
    return msgspec.structs.replace(made, command=spec.command)


def _pace(trying: Trying, settled: Settled) -> Pace:
    """With what is trained in its place: an adapter takes its time too."""
    trainee = trainee_of(settled.put_into(trying.spec), trying.base)
    found = measure.pace(trainee.model, trying.probe, trying.objective, trying.job)
    trainee.undo()
    return found


def _data(train: TrainSpec, base: Base, job: JobContext) -> tuple[Sequence[Example], Sequence[Example], DataFacts]:
    """What is learnt, what is validated on, and both in figures. Raises `DatasetUnusable`."""
    examples, validation = read_data(base, train, objective_of(train), job.check)
    counts = measure.data_facts(examples, validation, Path(train.dataset), aside=train.validation_split)
    return examples, validation, counts


def run_validate(spec: ValidateSpec, job: JobContext) -> Validation:
    """Everything there is to say of the settings; what the base or the data set is unusable for is one of the errors.

    Raises `JobCancelled`."""
    errors, train = list(spec.errors), spec.train
    warned: list[Finding] = []
    recommended: list[Finding] = []
    try:
        if not train.dataset:
            base = base_facts(Path(train.base)) if train.base else None
            found = plan.odd_rate(train, train.learning_rate, train.rank or plan.RANK, base)
            warned = [found] if found is not None and train.learning_rate else []
            return Validation(valid=not errors, errors=tuple(errors), warnings=tuple(warned), recommendations=())
        facts = _facts(train, job)
        recommended = list(plan.recommendations(train, spec.given, facts))
        settled, _ = plan.settle(train, facts)
        warned = list(plan.warnings(train, settled, facts))
    except JobCancelled:
        raise
    except OrchdError as error:
        errors.append(_finding(error))
    return Validation(
        valid=not errors, errors=tuple(errors), warnings=tuple(warned), recommendations=tuple(recommended)
    )


def _finding(error: OrchdError) -> Finding:
    return Finding(field=error.field or "", message=error.message, hint=error.hint)


def _facts(train: TrainSpec, job: JobContext) -> Facts:
    """Without the base's weights: they are not needed to say what a setting does."""
    folder = Path(train.base)
    examples, _, counts = _data(train, Base(None, load_tokenizer(folder), folder), job)
    job.check()
    backends.check(train)
    device, base = backends.device(train, job.workdir), base_facts(folder)
    outside = layers_outside(train, base, device, precision.free_memory(device))
    machine = measure.machine_facts(job, device, "F32", outside)
    return measure.facts_from(train, examples, counts, base, machine)
