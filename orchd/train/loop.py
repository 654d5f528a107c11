"""The job ``train``: a LoRA on a frozen base, in a plain loop that reads from top to bottom.

Batches are packed rows with a loss on the answers only; AdamW; one schedule, which can span several rounds of
averaging. Whatever happens after a step follows from `State` alone, so that a run that was killed and goes on from its
checkpoint ends with the same bytes as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import torch
from torch import Tensor

from orchd.errors import JobCancelled, TrainingDiverged
from orchd.jobs.context import Figure, JobContext
from orchd.lm.adapter import DTYPES
from orchd.lm.base import Base, best_device, device_of
from orchd.lm.losses import pack, row_tokens_for, scorer_of
from orchd.train import backends, checkpoints, diagnosis, measure, outcome, precision, runs
from orchd.train.afterwards import SCORING, Countdown, work_after
from orchd.train.curves import Curves, Point, StepPoint, ValidationPoint, cut_back, mean, step_losses, validations
from orchd.train.measure import Trying
from orchd.train.objective import Example, Objective, objective_of
from orchd.train.peers import ALONE, Peers
from orchd.train.plan import ROW_TOKENS, memory_watched
from orchd.train.prepare import (
    SFT,
    check,
    identity,
    read_data,
    replay,
    software,
    validate_every,
)
from orchd.train.runs import Good, State
from orchd.train.schedule import Schedule, schedule_of
from orchd.train.specs import Diagnosis, Settled, TrainResult, TrainSpec
from orchd.train.trainee import Trainee, on_torch, trainee_of

MAX_GRADIENT_NORM: Final = 1.0
MAX_SKIPPED_IN_A_ROW: Final = 3
CHECKPOINT_SECONDS: Final = 60.0
"""Between two checkpoints, where the settings name no number of steps: what a kill costs at most."""

T = TypeVar("T")
ALL_STEPS: Final = "all steps done"
STOPPED_EARLY: Final = "stopped early"


@dataclass
class Training:
    """One run: what it works on, and where it stands. ``kept`` are the adapters of ``state.goods``, by step."""

    spec: TrainSpec
    settled: Settled
    job: JobContext
    folder: Path
    trainee: Trainee
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    objective: Objective
    examples: Sequence[Example]
    own: int
    validation: Sequence[Example]
    steps: int
    validate_every: int
    state: State
    curves: Curves
    points: list[Point]
    peers: Peers = ALONE
    validated: ValidationPoint | None = None
    after: Countdown = field(default_factory=lambda: Countdown(()))
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def model(self) -> Any:
        return self.trainee.model

    @property
    def batch(self) -> int:
        """Examples a step."""
        return self.spec.batch_size * self.spec.gradient_accumulation_steps

    @property
    def epoch(self) -> float:
        """How often each example has been seen."""
        return round(self.state.step * self.batch / len(self.examples), 3)

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def run(spec: TrainSpec, job: JobContext, peers: Peers = ALONE) -> TrainResult:
    """Train on the data set's ``train`` part, save to ``adapter`` in the working folder, and score on
    what was put aside.

    Raises `TrainingRefused`, `TrainingDiverged`, `DatasetUnusable`, `BaseUnusable`, `AdapterUnfit`,
    `CheckpointUnfit`, `JobCancelled`.
    """
    started = time.monotonic()
    base, training = trained(spec, job, peers)
    base = scored_by_torch(training, base)
    enter(training, SCORING)
    with job.telling(lambda: tell(training, training.after.phase)), memory_watched(training.settled):
        made = outcome.leave(
            spec, training.trainee, base, training.folder, training.epoch, job, partial(enter, training)
        )
    state, losses = training.state, step_losses(training.points)
    return TrainResult(
        adapter=made.adapter,
        base=made.base,
        rank=made.config.r,
        alpha=made.config.lora_alpha,
        rslora=made.config.use_rslora,
        target_modules=tuple(made.config.target_modules),
        dtype=spec.dtype,
        parameters=made.parameters,
        examples=training.own,
        tokens=state.tokens,
        steps=state.step,
        seed=spec.seed,
        train_loss=mean(losses[-max(1, training.steps // 10) :]),
        software=software(training.settled.backend),
        seconds=round(time.monotonic() - started, 3),
        heldout=made.heldout,
        extracted=made.extracted,
        stopped=state.stopped,
        best_step=state.goods[0].step,
        epochs=training.epoch,
        skipped=state.skipped,
        validation_loss=state.goods[0].validation_loss,
        diagnosis=diagnosed(spec, training),
        objective=training.objective.name,
        leak=made.leak and made.leak.report,
        centroid=made.leak and made.leak.centroid,
        forgetting=made.forgetting,
        retention=made.retention,
        settled=training.settled,
    )


def diagnosed(spec: TrainSpec, t: Training) -> Diagnosis:
    """Of what ``spec`` leaves open the plan has chosen the rest."""
    chance = diagnosis.chance_loss(t.examples) if t.objective.name == SFT.name else 0.0
    continued, asked = spec.initial is not None, spec.learning_rate > 0
    return diagnosis.diagnose(t.points, t.steps, continued=continued, chance=chance, rate_asked=asked)


def trained(spec: TrainSpec, job: JobContext, peers: Peers = ALONE) -> tuple[Base, Training]:
    """All steps, with the best weights in the model. Raises as `run` does."""
    check(spec)
    torch.set_num_threads(job.threads)
    job.progress(0, max(1, spec.steps), "steps", phase="preparing")
    folder = Path(spec.run) if spec.run else job.workdir / "run"
    compute = peers.agreed(partial(compute_in, spec, folder), str)
    begun = time.monotonic()
    base = backends.load(spec, DTYPES[compute], peers.agreed(partial(backends.chosen, spec, folder), str))
    loading_s = time.monotonic() - begun
    training = prepare(spec, base, folder, job, peers)
    training.after = countdown(training, base, loading_s)
    with training.curves, memory_watched(training.settled):
        train(training)
    return base, training


def scored_by_torch(t: Training, base: Base) -> Base:
    """Where mlx computed the training: the same adapter on torch's base, for all that comes after the last step."""
    t.trainee, whole = on_torch(t.spec, t.trainee, base)
    if whole is not base:
        t.after = countdown(t, whole, 0.0)
    return whole


def countdown(t: Training, base: Base, loading_s: float) -> Countdown:
    """How long what comes after the last step will take, by how fast the model is now. Loading took ``loading_s``.

    Not known before where mlx computes: the model that will be looked at is not there yet."""
    if scorer_of(base.model) is not None:
        return Countdown(())
    work = work_after(t.spec, base, t.examples)
    pace = measure.pace(t.model, measure.probe_of(t.examples, t.spec.seed), t.objective, t.job)
    return Countdown([(one.phase, pace.seconds(one, loading_s)) for one in work])


def compute_in(spec: TrainSpec, folder: Path) -> str:
    """The dtype to compute the base in: as asked for, as the run began, or what is faster here."""
    if spec.method == "full":
        return "F32"
    if spec.compute != "auto":
        return spec.compute
    begun = runs.chosen(folder)
    if begun is not None:
        return begun.compute
    trial = backends.trial(backends.chosen(spec, folder))
    return "BF16" if precision.choose(Path(spec.base), best_device(), trial) == torch.bfloat16 else "F32"


def prepare(spec: TrainSpec, base: Base, folder: Path, job: JobContext, peers: Peers = ALONE) -> Training:
    """Everything in memory, as it was at the run's last checkpoint if it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    objective = objective_of(spec)
    examples, validation = read_data(base, spec, objective, job.check)
    settled = peers.agreed(partial(settle, spec, base, folder, examples, validation, job), Settled)
    spec, steps, twice = settled.put_into(spec), settled.steps, settled.gradient_checkpointing == "on"
    own, examples = len(examples), replay(spec, base, examples, folder, job)
    if twice:
        precision.recompute(base.model)
    torch.manual_seed(spec.seed)
    trainee = trainee_of(spec, base)
    parameters = [parameter for parameter in trainee.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    if peers.first:
        runs.sweep(folder)
    key = identity(spec, steps, examples, validation)
    examples, validation = (objective.referred(trainee.model, part, job) for part in (examples, validation))
    state = checkpoints.restore(folder, key, trainee, optimizer)
    compute = "BF16" if base.model.dtype == torch.bfloat16 else "F32"
    job.log(f"{own} examples, {steps} steps of {spec.batch_size}, rank {spec.rank}, {software(settled.backend)}")
    job.log(f"computed in {compute} on {device_of(base)}" + (", layers twice to save memory" if twice else ""))
    if base.layers_outside:
        job.log(f"the base's last {base.layers_outside} layers are read from its files when they are computed")
    if state is not None:
        job.log(f"going on after step {state.step}")
    state = state or State(identity=key, compute=compute)
    metrics = folder / runs.METRICS_FILE if peers.first else Path(os.devnull)
    points = cut_back(metrics, state.step, state.validated) if peers.first else []
    batch = spec.batch_size * spec.gradient_accumulation_steps
    return Training(
        spec=spec,
        settled=settled,
        job=job,
        folder=folder,
        trainee=trainee,
        optimizer=optimizer,
        schedule=schedule_of(spec, steps, preferences=objective.name == "dpo"),
        objective=objective,
        examples=examples,
        own=own,
        validation=validation,
        steps=steps,
        validate_every=validate_every(steps, batch, len(examples), len(validation)),
        state=state,
        curves=Curves(metrics),
        points=points,
        peers=peers,
        validated=next(reversed(validations(points)), None),
        kept={good.step: trainee.read(runs.good_folder(folder, good.step)) for good in state.goods if trainee.small},
    )


def settle(
    spec: TrainSpec,
    base: Base,
    folder: Path,
    examples: Sequence[Example],
    validation: Sequence[Example],
    job: JobContext,
) -> Settled:
    """The settings that are left to the plan: as the run began with them, or chosen now. Raises `MemoryShort`."""
    if (begun := runs.settled(folder)) is not None:
        return begun.unless(spec)
    compute = "BF16" if base.model.dtype == torch.bfloat16 else "F32"
    machine = measure.machine_facts(job, device_of(base), compute, base.layers_outside)
    data = measure.data_facts(examples, validation, Path(spec.dataset), aside=spec.validation_split)
    trying = Trying(spec, base, examples, objective_of(spec), backward, partial(trial_batches, spec, examples), job)
    settled = measure.settle(trying, measure.facts_of(trying, data, machine))
    try:
        runs.keep_settled(folder, settled)
    except OSError as error:  # whoever goes on with the run plans again, and comes to the same but for the memory
        job.log(f"the plan could not be written ({error.strerror}); it goes on without")
    return settled


def trial_batches(spec: TrainSpec, examples: Sequence[Example], size: int) -> Iterator[list[Example]]:
    """Drawn as those of the training are."""
    return draw_batches(examples, size, random.Random(f"{spec.seed}/{spec.schedule_offset}"))


def train(t: Training) -> None:
    """The loop. In the end the model holds the best adapter, and the run's folder the best few.

    Raises `JobCancelled` with a checkpoint behind it, and `TrainingDiverged` with what was good before.
    """
    batches = draw_batches(t.examples, t.batch, random.Random(f"{t.spec.seed}/{t.spec.schedule_offset}"))
    for _ in range(t.state.step):
        next(batches)  # the order follows from the seed, so that the number of steps says where it stands
    t.model.train()
    try:
        while True:
            if t.validation and validation_is_due(t):
                validate(t)
            if t.state.stopped or t.state.step == t.steps:
                break
            if checkpoint_is_due(t):
                save(t)
            take_step(t, next(batches))
    except JobCancelled:
        save(t)
        leave_an_adapter(t)
        t.job.log(f"stopped after step {t.state.step}; it can go on from there")
        raise
    t.state.stopped = t.state.stopped or ALL_STEPS
    keep_the_last(t)
    save(t)
    best = t.peers.agreed(lambda: t.state.goods[0].step, int)  # the first has written it when this returns
    t.trainee.put(t.kept[best] if t.trainee.small else t.trainee.read(runs.good_folder(t.folder, best)))
    t.model.eval()
    t.job.log(f"{t.state.stopped} after step {t.state.step}; the best was step {t.state.goods[0].step}")


def take_step(t: Training, batch: Sequence[Example]) -> None:
    """One batch, one change of the weights; none where the loss or its gradient is no number."""
    started = time.monotonic()
    rate = t.schedule.rate(t.state.step)
    t.optimizer.param_groups[0]["lr"] = rate
    try:
        with checkpoints.random_kept_if_stopped():
            loss, accuracy = backward(t.model, batch, t.job.check, t.objective, t.spec.row_tokens, t.peers)
            norm = float(torch.nn.utils.clip_grad_norm_(t.parameters, MAX_GRADIENT_NORM))
        usable = math.isfinite(loss) and math.isfinite(norm)
        if usable:
            t.optimizer.step()
    finally:
        t.optimizer.zero_grad()
    tokens = sum(len(one.ids) for one in batch)
    t.state.step += 1
    t.state.tokens += tokens
    speed = tokens / max(1e-9, time.monotonic() - started)
    record(t, loss if usable else None, accuracy, rate, speed)
    guard(t, usable)
    tell(t, "training")


def guard(t: Training, usable: bool) -> None:
    """Say that a step was skipped; stop when that happens again and again. Raises `TrainingDiverged`."""
    if usable:
        t.state.in_a_row = 0
        return
    t.state.skipped += 1
    t.state.in_a_row += 1
    t.job.log(f"step {t.state.step} was skipped: its loss or gradient is no number")
    nothing_learnt = t.state.skipped == t.state.step
    if t.state.in_a_row < MAX_SKIPPED_IN_A_ROW and not (nothing_learnt and t.state.step == t.steps):
        return
    if not t.state.goods and not nothing_learnt:
        keep(t, good_now(t))
    save(t)
    runs.finish(t.folder)  # to go on would end here again
    kept = f"; the adapter of step {t.state.goods[0].step} is kept" if t.state.goods else ""
    raise TrainingDiverged(
        f"the loss is no number at {t.state.in_a_row} steps in a row, the last of them step {t.state.step}{kept}",
        hint=_instead(t),
        field="learning_rate",
    )


def _instead(t: Training) -> str:
    """The command that answers a training whose loss is no number."""
    run = Path(t.spec.run).name
    if t.state.goods and run:
        return f"`orchctl train continue_from {run}` goes on from that one, at the rate that the plan chooses."
    if t.state.skipped == t.state.step:
        return "Train again without `--learning-rate`: the plan has one. If that ends so too, the base is broken."
    return f"Train again with half, `--learning-rate {t.spec.learning_rate / 2:g}`, or without it: the plan has one."


def backward(
    model: Any,
    batch: Sequence[Example],
    check: Callable[[], None] = lambda: None,
    objective: Objective = SFT,
    row_tokens: int = ROW_TOKENS,
    peers: Peers = ALONE,
) -> tuple[float, float]:
    """Add the gradients of the batch's mean loss over its counted tokens (or pairs); returns that loss and the share of
    those tokens that the model would have chosen (or of the pairs that it has learnt to prefer).

    A batch longer than a packed row goes through in several passes, with the same gradients; ``check`` is called
    before each and may raise to stop. Of several processes each takes its share.
    """
    counted = sum(objective.weight(one) for one in batch)
    total, right = 0.0, 0
    mine = peers.share(batch)
    for indexes in pack([len(one.ids) for one in mine], row_tokens):
        check()
        losses, hits = objective.scores(model, [mine[i] for i in indexes])
        loss: Tensor = losses.sum() / counted
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
        right += int(hits.sum())
    total, summed = peers.add_up(model.parameters(), (total, right))
    return total, summed / counted


def draw_batches(examples: Sequence[T], size: int, rng: random.Random) -> Iterator[list[T]]:
    """Endless batches; each example comes once before any comes again."""
    order: list[int] = []
    while True:
        while len(order) < size:
            order += rng.sample(range(len(examples)), len(examples))
        yield [examples[i] for i in order[:size]]
        del order[:size]


# ---- validation, and what is kept ---------------------------------------------------------------------------


def validation_is_due(t: Training) -> bool:
    """Before the first step, then every so many, and after the last; once each."""
    if t.state.validated == t.state.step:
        return False
    return t.state.step % t.validate_every == 0 or t.state.step == t.steps


def validate(t: Training) -> None:
    """Score the rows that were put aside, keep the adapter if it is among the best, and stop if nothing gets better."""
    tell(t, "validating")
    loss, accuracy = t.peers.agreed(partial(score_validation, t), tuple[float, float])
    t.state.validated = t.state.step
    shown = loss if math.isfinite(loss) else None
    t.validated = ValidationPoint(step=t.state.step, epoch=t.epoch, loss=shown, accuracy=accuracy)
    add_point(t, t.validated)
    if t.state.step == 0 or shown is None:
        return
    before = t.state.goods[0].validation_loss if t.state.goods else None
    stopping = t.spec.early_stopping
    better = before is None or loss < before - stopping.min_delta
    t.state.stale = 0 if better else t.state.stale + 1
    keep(t, good_now(t, loss))
    if stopping.enabled and t.state.stale >= stopping.patience:
        t.state.stopped = f"{STOPPED_EARLY}: {t.state.stale} validations brought nothing better"


@torch.inference_mode()
def score_validation(t: Training) -> tuple[float, float]:
    """The mean loss of the rows to validate on, and the share that is right, as in `backward`."""
    t.model.eval()
    total, right = 0.0, 0
    for indexes in pack([len(one.ids) for one in t.validation], row_tokens_for(t.model, t.spec.row_tokens)):
        t.job.check()
        losses, hits = t.objective.scores(t.model, [t.validation[i] for i in indexes])
        total += float(losses.sum())
        right += int(hits.sum())
    t.model.train()
    counted = sum(t.objective.weight(one) for one in t.validation)
    return total / counted, right / counted


def keep(t: Training, good: Good) -> None:
    """Hold on to the weights as they are now if they are among the best few: an adapter's in memory, whole ones on the
    disk. Raises OSError."""
    others = [one for one in t.state.goods if one.step != good.step]
    ranked = sorted((*others, good), key=lambda one: one.order)
    t.state.goods = tuple(ranked[: t.spec.checkpointing.keep_best])
    if good in t.state.goods and t.trainee.small:
        t.kept[good.step] = {name: tensor.clone() for name, tensor in t.trainee.weights().items()}
    elif good in t.state.goods and t.peers.first:
        write_good(t, good)
    steps = {one.step for one in t.state.goods}
    t.kept = {step: weights for step, weights in t.kept.items() if step in steps}


def keep_the_last(t: Training) -> None:
    """Without rows to validate on, and where one schedule spans several runs, the last adapter is the best."""
    if t.state.goods and not t.spec.schedule_total:
        return
    t.state.goods = ()
    keep(t, good_now(t))


def good_now(t: Training, validation_loss: float | None = None) -> Good:
    """The present moment. Steps that were skipped last have changed nothing."""
    return Good(
        step=t.state.step - t.state.in_a_row,
        epoch=t.epoch,
        tokens=t.state.tokens,
        train_loss=recent_loss(t),
        validation_loss=validation_loss,
    )


def recent_loss(t: Training) -> float:
    """Mean of the last ten steps; 0 before the first."""
    losses = step_losses(t.points[-20:])[-10:]
    return round(mean(losses), 6) if losses else 0.0


# ---- checkpoints and what is told -----------------------------------------------------------------------------


def checkpoint_is_due(t: Training) -> bool:
    if len(runs.goods(t.folder)) > t.spec.checkpointing.keep_best and not t.trainee.small:
        return True  # whole bases that are not among the best any more go with the next checkpoint
    interval = t.spec.checkpointing.interval
    if not t.spec.checkpointing.enabled:
        return False
    if interval:
        return t.state.step > 0 and t.state.step % interval == 0
    return time.monotonic() - t.saved_at >= CHECKPOINT_SECONDS


def save(t: Training) -> None:
    """A checkpoint. A disk that is full costs the checkpoint, not the run: that is said, and it goes on."""
    t.saved_at = time.monotonic()
    if not t.peers.first:
        return
    try:
        t.curves.sync()
        keep_on_disk(t)
        checkpoints.save(t.folder, t.state, t.trainee, t.optimizer)
        runs.forget(t.folder, keep={good.step for good in t.state.goods})
    except OSError as error:
        t.job.log(f"the checkpoint of step {t.state.step} could not be written ({error.strerror}); it goes on without")


def keep_on_disk(t: Training) -> None:
    """The good moments as PEFT folders. Raises OSError."""
    for good in t.state.goods:
        write_good(t, good, t.kept.get(good.step))


def leave_an_adapter(t: Training) -> None:
    """Of a training that is stopped before anything was found good: as it is now, for whoever won't go on with it."""
    if not t.state.goods and t.state.step and t.peers.first:
        with contextlib.suppress(OSError):
            write_good(t, good_now(t))


def write_good(t: Training, good: Good, weights: dict[str, Tensor] | None = None) -> None:
    """``weights``, or those of now. Raises OSError."""
    target = runs.good_folder(t.folder, good.step)
    if target.exists():
        return
    now = None if weights is None else {name: tensor.clone() for name, tensor in t.trainee.weights().items()}
    if weights is not None:
        t.trainee.put(weights)
    try:
        with runs.whole_folder(target) as draft:
            t.trainee.write(draft, "F32")
            (draft / runs.CHECKPOINT_FILE).write_bytes(msgspec.json.encode(good))
    finally:
        if now is not None:
            t.trainee.put(now)


def record(t: Training, loss: float | None, accuracy: float, rate: float, speed: float) -> None:
    add_point(
        t,
        StepPoint(
            step=t.state.step,
            epoch=t.epoch,
            loss=loss,
            accuracy=round(accuracy, 4),
            rate=rate,
            tokens_s=round(speed, 1),
            memory=precision.most_memory(t.model),
        ),
    )


def add_point(t: Training, point: Point) -> None:
    t.points.append(point)
    t.curves.add(point)


def enter(t: Training, phase: str) -> None:
    """A phase after the last step begins."""
    t.after.enter(phase)
    tell(t, phase)


def tell(t: Training, phase: str) -> None:
    """How far it is, with the newest figures. Raises `JobCancelled`."""
    figures: dict[str, Figure] = {"phase": phase, "epoch": t.epoch}
    step = next((point for point in reversed(t.points[-2:]) if isinstance(point, StepPoint)), None)
    if step is not None:
        figures |= {"loss": round(recent_loss(t), 4), "accuracy": step.accuracy, "rate": step.rate}
        figures |= {"tokens_s": step.tokens_s, "memory": step.memory}
    if t.settled.doubts:
        figures["doubt"] = t.settled.doubts[-1]
    if t.validated is not None and t.validated.loss is not None:
        figures["validation"] = round(t.validated.loss, 4)
    t.job.progress(t.state.step, t.steps, "steps", t.after.seconds, **figures)
