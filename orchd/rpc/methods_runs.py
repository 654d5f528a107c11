"""Trainings that were begun: going on with one, its checkpoints, its report."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from orchd.average import report as average_report
from orchd.errors import CheckpointUnknown, DatasetUnknown, JobUnknown, ParamsInvalid, RunNotResumable, TrainingDiverged
from orchd.jobs.states import Job, State
from orchd.node import Node, in_thread, run_of
from orchd.notes import TrainNote
from orchd.rpc.methods_jobs import JobParams, JobStarted
from orchd.rpc.table import Params, Result, method
from orchd.train import answers_page, report, runs
from orchd.train.curves import read_points
from orchd.train.runs import METRICS_FILE, Good
from orchd.train.specs import EvaluateResult, TrainSpec

GOING_ON = (State.QUEUED, State.RUNNING, State.CANCELLING)


@method("train.resume", JobParams, JobStarted, "Go on with a training that was stopped, from its last checkpoint.")
async def train_resume(node: Node, p: JobParams) -> JobStarted:
    """The run ends with the bytes that it would have had. One that has no checkpoint yet begins anew."""
    job = await _training(node, p.job)
    run = run_of(job)
    await _check_resumable(node, job, run)
    spec, note = msgspec.convert(job.spec, TrainSpec), msgspec.convert(job.note, TrainNote)
    dataset = await in_thread(node.datasets.get, note.dataset)
    base = await in_thread(node.registry.known_bases.folder, note.base)
    spec = msgspec.structs.replace(
        spec,
        base=str(base.path),
        dataset=str(node.datasets.folder(dataset.id)),
        run=str(node.runs.folder(run)),
        retention=await retention_set(node, spec, base.fingerprint),
    )
    again = await node.jobs.submit("train", spec, title=job.title, note=note)
    return JobStarted(job=again.id)


async def retention_set(node: Node, spec: TrainSpec, fingerprint: str) -> str | None:
    """The file of a base's retention set, empty where it is still to be made; None where the training needs none."""
    return await in_thread(node.retention.path, fingerprint) if spec.forgetting or spec.replay else None


async def _check_resumable(node: Node, job: Job, run: str) -> None:
    for other in await node.unfinished_jobs():
        if other.kind == "train" and run_of(other) == run:
            hint = f"`orchctl job watch {other.id}` follows it."
            raise RunNotResumable(
                f"{other.title} goes on already, as {other.id}: {other.state}", hint=hint, field="job"
            )
    adapter = await in_thread(node.datasets.adapter_of, run)
    if adapter is not None or job.state is State.DONE:
        hint = f"`orchctl train continue_from {job.id}` trains on from its best checkpoint."
        raise RunNotResumable(f"{job.title} has ended, with the adapter {adapter}", hint=hint, field="job")
    if job.error is not None and job.error.code == TrainingDiverged.code:
        hint = f"`orchctl train continue_from {job.id}` goes on from what was good, at the rate that the plan chooses."
        raise RunNotResumable(f"it would end as it did: {job.error.message}", hint=hint, field="job")


async def _training(node: Node, text: str) -> Job:
    job = await node.jobs.get(text)
    if job.kind != "train":
        raise ParamsInvalid(f"{job.id} ({job.title}) is no training", field="job")
    return job


# ---- checkpoints ------------------------------------------------------------------------------------------------


class CheckpointRow(Result, frozen=True, kw_only=True):
    """A checkpoint of a run. `kind`: best, good (one of the best few) or resume (where a training can go on; its losses
    are not known). `path` is a PEFT folder, but for `resume`; `size` is in bytes."""

    run: str
    title: str
    step: int
    kind: str
    epoch: float | None
    train_loss: float | None
    validation_loss: float | None
    size: int
    path: str


class CheckpointList(Params, frozen=True, kw_only=True):
    """Of one training, or of all."""

    job: str | None = None


class Checkpoints(Result, frozen=True, kw_only=True):
    checkpoints: list[CheckpointRow]


@method(
    "checkpoint.list", CheckpointList, Checkpoints, "What trainings keep: their best adapters, and where they can go on"
)
async def checkpoint_list(node: Node, p: CheckpointList) -> Checkpoints:
    found: list[CheckpointRow] = []
    for run, title in await _runs(node, p.job):
        found += await in_thread(_rows, run, title, node.runs.folder(run))
    return Checkpoints(checkpoints=found)


@method("checkpoint.best", JobParams, CheckpointRow, "The best checkpoint of a training, as a PEFT folder")
async def checkpoint_best(node: Node, p: JobParams) -> CheckpointRow:
    job = await _training(node, p.job)
    run = run_of(job)
    await in_thread(checkpoint_of, node, job, None)
    return (await in_thread(_rows, run, job.title, node.runs.folder(run)))[0]


class CheckpointCleanup(Params, frozen=True, kw_only=True):
    """Of one training, or of all that have ended. `keep` so many of the best of each; `resume`: also what is needed to
    go on with one that was stopped."""

    job: str | None = None
    keep: int = 1
    resume: bool = False


class CleanedUp(Result, frozen=True, kw_only=True):
    """`checkpoints` were removed, `bytes` freed."""

    checkpoints: int
    bytes: int


@method("checkpoint.cleanup", CheckpointCleanup, CleanedUp, "Remove checkpoints that are no longer needed")
async def checkpoint_cleanup(node: Node, p: CheckpointCleanup) -> CleanedUp:
    if not 0 <= p.keep <= 100:
        raise ParamsInvalid(f"keep {p.keep} is not from 0 to 100", hint="Give a number from 0 to 100.", field="keep")
    busy = {run_of(job) for job in await node.unfinished_jobs() if job.kind == "train"}
    count = freed = 0
    for run, title in await _runs(node, p.job):
        if run in busy:
            if p.job is not None:
                hint = f"Wait for it, or `orchctl job cancel {p.job}` first."
                raise RunNotResumable(f"{title} goes on just now", hint=hint, field="job")
            continue
        removed = await in_thread(_clean, node.runs.folder(run), p.keep, p.resume)
        count, freed = count + removed.checkpoints, freed + removed.bytes
    return CleanedUp(checkpoints=count, bytes=freed)


def checkpoint_of(node: Node, job: Job, step: int | None) -> tuple[Path, Good]:
    """The PEFT folder of a training's best checkpoint, or of that of `step`. Raises `CheckpointUnknown`."""
    folder = node.runs.folder(run_of(job))
    for good in runs.goods(folder):
        if step in (None, good.step):
            return runs.good_folder(folder, good.step), good
    told = "no good checkpoint" if step is None else f"no checkpoint of step {step}"
    raise CheckpointUnknown(f"{told} of {job.title} ({job.id}) is kept", field="job" if step is None else "step")


async def _runs(node: Node, job: str | None) -> list[tuple[str, str]]:
    """Runs and their titles, newest first: all, or that of one job."""
    if job is not None:
        found = await _training(node, job)
        return [(run_of(found), found.title)]
    titled = []
    for run in await in_thread(node.runs.list):
        try:
            titled.append((run, (await node.jobs.get(run)).title))
        except JobUnknown:
            titled.append((run, ""))
    return titled


def _rows(run: str, title: str, folder: Path) -> list[CheckpointRow]:
    """Best first, then where it can go on."""
    rows = [
        CheckpointRow(
            run=run,
            title=title,
            step=good.step,
            kind="good" if rank else "best",
            epoch=good.epoch,
            train_loss=good.train_loss,
            validation_loss=good.validation_loss,
            size=runs.size_of(path),
            path=str(path),
        )
        for rank, good in enumerate(runs.goods(folder))
        for path in [runs.good_folder(folder, good.step)]
    ]
    for path in runs.last_folders(folder):
        unknown = {"epoch": None, "train_loss": None, "validation_loss": None}
        size, step = runs.size_of(path), runs.step_of(path)
        rows.append(CheckpointRow(run=run, title=title, step=step, kind="resume", size=size, path=str(path), **unknown))
    return rows


def _clean(folder: Path, keep: int, resume: bool) -> CleanedUp:
    """A training that can go on needs the adapters that it holds to be good so far."""
    resumable = runs.last_folders(folder)
    gone = (
        [] if resumable and not resume else [runs.good_folder(folder, good.step) for good in runs.goods(folder)[keep:]]
    )
    gone += resumable if resume else []
    freed = sum(map(runs.size_of, gone))
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return CleanedUp(checkpoints=len(gone), bytes=freed)


# ---- the report -------------------------------------------------------------------------------------------------


class Report(Result, frozen=True, kw_only=True):
    """`html` is a whole page that needs no network."""

    html: str


@method("job.report", JobParams, Report, "A page about a training with its curves, an evaluation, or an average")
async def job_report(node: Node, p: JobParams) -> Report:
    job = await node.jobs.get(p.job)
    if job.kind in ("average", "average.leaves"):
        return Report(html=await in_thread(_average_page, job))
    if job.kind == "evaluate" and job.result is not None and job.note is None:
        result = msgspec.convert(job.result, EvaluateResult)
        return Report(html=await in_thread(answers_page.page, job.title, result))
    job = await _training(node, p.job)
    points = await in_thread(read_points, node.runs.folder(run_of(job)) / METRICS_FILE)
    spec = await in_thread(_settled, node, job)
    head = await in_thread(_head, node, job)
    return Report(html=await in_thread(report.page, head, spec, points, job.result))


def _average_page(job: Job) -> str:
    result = None if job.result is None else msgspec.convert(job.result, average_report.Average)
    error = "" if job.error is None else job.error.message
    return average_report.page(average_report.Head(job.id, job.title, job.state.value, error), result)


def _settled(node: Node, job: Job) -> TrainSpec:
    """The settings, with what the plan chose for what was left to it."""
    spec = msgspec.convert(job.spec, TrainSpec)
    settled = runs.settled(node.runs.folder(run_of(job)))
    return spec if settled is None else settled.put_into(spec)


def _head(node: Node, job: Job) -> report.Head:
    note, settled = msgspec.convert(job.note, TrainNote), runs.settled(node.runs.folder(run_of(job)))
    try:
        dataset = f"{node.datasets.get(note.dataset).name} ({note.dataset})"
    except DatasetUnknown:  # deleted since
        dataset = note.dataset
    error = job.error.message if job.error is not None else ""
    return report.Head(
        id=job.id,
        title=job.title,
        state=job.state.value,
        started_ms=job.started_ms,
        error=error,
        sandbox=job.sandbox.words if job.sandbox is not None else "",
        dataset=dataset,
        base=note.base,
        computed="" if settled is None or not settled.computed else f"{settled.computed}, by {settled.backend}",
    )
