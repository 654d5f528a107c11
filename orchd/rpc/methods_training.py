"""Training and evaluating: each starts a job."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from orchd import leaks, made_bases, room
from orchd.errors import (
    AdapterUnknown,
    AmbiguousId,
    ParamsInvalid,
    TrainingDiverged,
)
from orchd.jobs.states import Job
from orchd.measuring import evaluation
from orchd.node import Node, in_thread, run_of
from orchd.notes import NO_LICENCE, RoundNote, TrainNote
from orchd.registry import ADMITTED, AdapterRow, Base, DatasetRow
from orchd.registry.trust import SELF
from orchd.registry.use import not_admitted
from orchd.rpc.methods_jobs import JobStarted
from orchd.rpc.methods_runs import checkpoint_of, retention_set
from orchd.rpc.table import Params, method
from orchd.train import places, runs
from orchd.train.plan import CONTINUED, RANK
from orchd.train.runs import Good
from orchd.train.settings import errors, flat
from orchd.train.specs import Checkpointing, EarlyStopping, Finding, TrainSpec

Tags = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=100)], ...], Meta(max_length=16)]
Modules = Annotated[tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{1,60}$")], ...], Meta(max_length=64)]
Layers = Annotated[tuple[int, ...], Meta(max_length=1000)]
DEFAULTS = TrainSpec(base="", dataset="")
ALIASES = (("rank", "lora_rank"), ("alpha", "lora_alpha"))
"""orchd's name, and other trainers'."""


class TrainSettings(Params, frozen=True, kw_only=True):
    """What every training takes. `supersedes` is an adapter of this node's that the new one takes the place of.

    What is left out, `train.plan` would choose: so `rank`, `learning_rate`, `batch_size`, and `steps` where 0; `epochs`
    says instead how often each row is seen, and `max_steps` bounds either. `lora_rank` and `lora_alpha` are other
    trainers' names for `rank` and `alpha`. `warmup_steps` are a tenth of all where left out. Rows longer than
    `max_length` tokens are left out; 0 takes what the base does. `validation_split` of the training rows is put aside
    to validate on, besides the data set's own part for it.

    A step is `gradient_accumulation_steps` times `batch_size` rows. `compute` is the dtype of the base's computations;
    `auto` tries which is faster here. `gradient_checkpointing` computes layers twice to save memory.
    `offload`: so many of the base's last layers stay in its files while it is trained on (default: as many as have to).
    `quantization` holds the frozen base in 4 bits (nf4) or 8 (int8) while an adapter is trained. `early_stopping`
    ends a training when so many validations brought nothing better. `checkpointing`: each so many steps, 0 for each
    minute; the best few adapters are kept. `modules` (such as q_proj or mlp) and `layers` (from 0, or from the end when
    negative) say where to learn; empty is everywhere. `rslora` scales by alpha/√rank.
    `backend` computes the base while an adapter is trained; `auto` is mlx on Apple's processors where it is installed.
    `method` full trains the base's own weights there, which become a new base called `name`; with `extract_rank` an
    adapter is made from the difference too. `objective` is supervised
    fine-tuning (sft) or direct preference optimisation (dpo); `auto` takes the latter for preferences. `dpo_beta`: how
    strongly it is held to the model that it began with; `dpo_sft`: how much the chosen answer is learnt besides.

    `leak_report` measures at the end how much of the data the adapter gives away; `canaries`: so many made-up secrets
    are learnt too, which it looks for. `forgetting` measures what of the base's own it forgot (with `replay` always).
    `routing` signs the centroid of the prompts, by which others may choose it.
    """

    name: str = ""
    description: str = ""
    method: Literal["lora", "full"] = DEFAULTS.method
    backend: Literal["auto", "torch", "mlx"] = DEFAULTS.backend
    extract_rank: int = 0
    rank: int | None = None
    alpha: float | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    rslora: bool = DEFAULTS.rslora
    modules: Modules = ()
    layers: Layers = ()
    objective: Literal["auto", "sft", "dpo"] = DEFAULTS.objective
    dpo_beta: float = DEFAULTS.dpo_beta
    dpo_sft: float = DEFAULTS.dpo_sft
    learning_rate: float | None = None
    batch_size: int | None = None
    gradient_accumulation_steps: int = DEFAULTS.gradient_accumulation_steps
    weight_decay: float = DEFAULTS.weight_decay
    lora_dropout: float | None = None
    replay: float = DEFAULTS.replay
    compute: Literal["auto", "F32", "BF16"] = DEFAULTS.compute
    gradient_checkpointing: Literal["auto", "on", "off"] = DEFAULTS.gradient_checkpointing
    offload: int | None = None
    quantization: Literal["none", "nf4", "int8"] = DEFAULTS.quantization
    steps: int = 0
    epochs: float = DEFAULTS.epochs
    max_steps: int = DEFAULTS.max_steps
    warmup_steps: int | None = None
    max_length: int = DEFAULTS.max_length
    validation_split: float = DEFAULTS.validation_split
    seed: int = 0
    canaries: int = DEFAULTS.canaries
    leak_report: bool = True
    forgetting: bool = True
    routing: bool = DEFAULTS.routing
    early_stopping: EarlyStopping = DEFAULTS.early_stopping
    checkpointing: Checkpointing = DEFAULTS.checkpointing
    licence: str = NO_LICENCE
    tags: Tags = ()
    supersedes: str | None = None


Started = TypeVar("Started", bound=TrainSettings)


class TrainStart(TrainSettings, frozen=True, kw_only=True):
    """`steps` 0 chooses by the number of examples, or takes what is left of a schedule. `initial` is an adapter to go
    on from.

    `schedule_total` and `schedule_offset` (steps) stretch one learning-rate schedule over several runs.
    """

    dataset: str
    base: str = "demo"
    initial: str | None = None
    schedule_total: int = 0
    schedule_offset: int = 0


class TrainingStarted(JobStarted, frozen=True, kw_only=True):
    """`note` says what is downloaded first, where the packages of training are not installed; empty else."""

    note: str


@method("train.start", TrainStart, TrainingStarted, "Train an adapter on a data set.")
async def train_start(node: Node, p: TrainStart) -> TrainingStarted:
    return await start_training(node, p, None)


async def start_training(node: Node, p: TrainStart, round: RoundNote | None) -> TrainingStarted:
    """As `train.start`, also in a round of a federation."""
    asked, p = p, named(p)
    _check_train(p, asked)
    what = await resolve(node, p)
    await in_thread(_check_outcome, node, what.base, p.name or what.dataset.name, p)
    note = TrainNote(
        name=p.name or what.dataset.name,
        description=p.description,
        base=what.base.name,
        dataset=what.dataset.id,
        initial=None if what.initial is None else what.initial.id,
        licence=p.licence,
        tags=kept_tags(p.tags),
        supersedes=await in_thread(superseded, node, p.supersedes),
        round=round,
    )
    return await _submit(node, what.spec, note)


class Resolved(NamedTuple):
    """What a training is of, and its spec without a folder for its run."""

    spec: TrainSpec
    dataset: DatasetRow
    base: Base
    initial: AdapterRow | None


async def resolve(node: Node, p: TrainStart) -> Resolved:
    """Raises `DatasetUnknown`, `BaseUnknown`, `AdapterUnknown`, `NotAdmitted`, `TrainingRefused`, `ParamsInvalid`."""
    dataset = await in_thread(node.datasets.get, p.dataset)
    base = await in_thread(node.registry.known_bases.folder, p.base)
    initial = None if p.initial is None else await in_thread(node.registry.adapter, p.initial)
    if initial is not None and initial.state != ADMITTED:
        raise await in_thread(not_admitted, node.registry, initial, "initial")
    if initial is not None and initial.base not in node.registry.known_bases.same(base.fingerprint):
        hint = f"Go on from an adapter for {base.name}, or give the base of {initial.name}: {initial.base}."
        raise ParamsInvalid(f"{initial.name} is for another base than {base.name}", hint=hint, field="initial")
    places.check(base.shapes, p.modules, p.layers, full=p.method == "full")
    spec = msgspec.structs.replace(
        settings_of(p),
        base=str(base.path),
        dataset=str(node.datasets.folder(dataset.id)),
        initial=None if initial is None else str(await in_thread(node.registry.adapter_folder, initial.id)),
        objective=_objective(p, dataset.kind),
        learnt_before=await in_thread(_learnt_before, node, initial, dataset.id),
        steps=p.steps or max(0, p.schedule_total - p.schedule_offset),
        schedule_total=p.schedule_total,
        schedule_offset=p.schedule_offset,
    )
    return Resolved(spec, dataset, base, initial)


def _check_outcome(node: Node, base: Base, name: str, p: TrainStart) -> None:
    """Has what comes out a name and room? Raises `ParamsInvalid`, `DiskFull`."""
    if p.method == "full":
        if p.initial is not None:
            hint = "Leave it out, or train an adapter: `--method lora`."
            raise ParamsInvalid("whole weights do not go on from an adapter", hint=hint, field="initial")
        made_bases.check_start(node, base, name, settings_of(p))
    else:
        room.for_adapter(node.registry, base, p.rank or RANK)


def _objective(p: TrainSettings, kind: str) -> Literal["sft", "dpo"]:
    """What `auto` is for this data set. Raises `ParamsInvalid` where there is nothing to prefer."""
    if p.objective == "dpo" and kind != "preference":
        hint = "`orchctl dataset list` shows the kinds; a row of preferences has a chosen and a rejected answer."
        detail = f"dpo learns from preferences, and this data set's kind is {kind}"
        raise ParamsInvalid(detail, hint=hint, field="objective")
    if p.objective == "auto":
        return "dpo" if kind == "preference" else "sft"
    return p.objective


def _learnt_before(node: Node, initial: AdapterRow | None, own: str) -> tuple[str, ...]:
    """The folders of the data sets behind an adapter, but for one."""
    behind = [] if initial is None else leaks.datasets_behind(node, initial.id)
    return tuple(str(node.datasets.folder(id)) for id in behind if id != own)


def named(p: Started) -> Started:
    """With orchd's names for what others call otherwise. Raises `ParamsInvalid` where both are given and differ."""
    found: dict[str, Any] = {}
    for ours, theirs in ALIASES:
        own, other = getattr(p, ours), getattr(p, theirs)
        if None not in (own, other) and own != other:
            hint = f"Give one of `{ours}` and `{theirs}`: they are the same."
            raise ParamsInvalid(f"{ours} is {own}, and {theirs} {other}", hint=hint, field=theirs)
        found |= {ours: other if own is None else own, theirs: None}
    return msgspec.structs.replace(p, **found)


def settings_of(p: TrainSettings) -> TrainSpec:
    """The settings; what they are for is still to be filled in."""
    names = [name for name in TrainSettings.__struct_fields__ if name in TrainSpec.__struct_fields__]
    given = {name: value for name in names if (value := getattr(p, name)) is not None}
    return TrainSpec(base="", dataset="", **given)


async def _submit(node: Node, spec: TrainSpec, note: TrainNote) -> TrainingStarted:
    """A run of its own, called after its job."""
    told = await node.environment.note()
    id = node.jobs.next_id()
    fingerprint = (await in_thread(node.registry.base, note.base)).fingerprint
    kept = await retention_set(node, spec, fingerprint)
    spec = msgspec.structs.replace(spec, run=str(node.runs.folder(id)), retention=kept)
    job = await node.jobs.submit("train", spec, title=f"train {note.name}", note=note, id=id)
    return TrainingStarted(job=job.id, note=told)


class TrainContinue(TrainSettings, frozen=True, kw_only=True):
    """`source` is an adapter, or a training job, whose best checkpoint (or that of `step`) is gone on from with a
    schedule of its own. A job's data set, and the rank and half of the rate that were asked for then, are taken over
    where nothing else is said (but for the rate of one that diverged); what is left open then, too, is planned as for
    one that goes on."""

    source: str
    dataset: str = ""
    step: int | None = None


@method(
    "train.continue_from", TrainContinue, TrainingStarted, "Train on from an adapter, or from a training's checkpoint."
)
async def train_continue_from(node: Node, p: TrainContinue) -> TrainingStarted:
    asked, p = p, named(p)
    if not p.source.startswith("job_"):
        return await _continue_adapter(node, asked)
    job = await node.jobs.get(p.source)
    if job.kind != "train":
        raise ParamsInvalid(f"{job.id} ({job.title}) is no training", field="source")
    if p.method == "full" or msgspec.convert(job.spec, TrainSpec).method == "full":
        hint = "`orchctl train start DATASET --base NAME` trains on from the base that it made."
        raise ParamsInvalid("only adapters are gone on from in this way", hint=hint, field="source")
    folder, good = await in_thread(checkpoint_of, node, job, p.step)
    parent = await in_thread(_adapter_at, node, job, good)
    spec, note = msgspec.convert(job.spec, TrainSpec), msgspec.convert(job.note, TrainNote)
    settings = msgspec.structs.replace(
        p,
        rank=p.rank or spec.rank or None,
        alpha=p.alpha or spec.alpha,
        rslora=p.rslora or spec.rslora,
        learning_rate=p.learning_rate or (None if diverged(job) else CONTINUED * spec.learning_rate or None),
    )
    _check_train(settings, asked)
    before, dataset = note.dataset, await in_thread(node.datasets.get, p.dataset or note.dataset)
    base = await in_thread(node.registry.known_bases.folder, note.base)
    places.check(base.shapes, p.modules, p.layers, full=False)
    await in_thread(room.for_adapter, node.registry, base, settings.rank or RANK)
    note = msgspec.structs.replace(
        note,
        name=p.name or note.name,
        description=p.description or note.description,
        dataset=dataset.id,
        licence=note.licence if p.licence == NO_LICENCE else p.licence,
        tags=kept_tags(p.tags) or note.tags,
        supersedes=await in_thread(superseded, node, p.supersedes),
        initial=parent or note.initial,
        earlier_steps=0 if parent else note.earlier_steps + good.step,
        earlier_tokens=0 if parent else note.earlier_tokens + good.tokens,
    )
    own = str(node.datasets.folder(dataset.id))
    learnt = dict.fromkeys((str(node.datasets.folder(before)), *spec.learnt_before))
    spec = msgspec.structs.replace(
        settings_of(settings),
        base=str(base.path),
        dataset=own,
        initial=str(folder),
        objective=_objective(settings, dataset.kind),
        learnt_before=tuple(one for one in learnt if one != own),
    )
    return await _submit(node, spec, note)


def diverged(job: Job) -> bool:
    """Whether it ended because its loss was no number: its rate is not gone on with then, nor half of it."""
    return job.error is not None and job.error.code == TrainingDiverged.code


def _adapter_at(node: Node, job: Job, good: Good) -> str | None:
    """The adapter that a training ended with, if this is the moment that it is of: a manifest names it then."""
    adapter = node.datasets.adapter_of(run_of(job))
    if adapter is None or runs.goods(node.runs.folder(run_of(job)))[0] != good:
        return None
    try:
        return adapter if node.registry.adapter(adapter).state == ADMITTED else None
    except AdapterUnknown:  # removed since
        return None


async def _continue_adapter(node: Node, p: TrainContinue) -> TrainingStarted:
    """As `train.start` from an adapter."""
    if not p.dataset:
        hint = "Name it after the adapter; a training's own is only known for a job."
        raise ParamsInvalid("no data set to train on", hint=hint, field="dataset")
    adapter = await in_thread(node.registry.adapter, p.source)
    given = {name: getattr(p, name) for name in TrainSettings.__struct_fields__}
    return await train_start(node, TrainStart(**given, dataset=p.dataset, base=adapter.base, initial=adapter.id))


def wrong_settings(p: TrainSettings, asked: TrainSettings) -> list[Finding]:
    """What can't be, called as it was ``asked`` for before `named`."""
    found = []
    for error in errors(flat(p)):
        other = dict(ALIASES).get(error.field)
        if other is not None and getattr(asked, error.field) is None and getattr(asked, other) is not None:
            error = msgspec.structs.replace(error, field=other, message=error.message.replace(error.field, other, 1))
        found.append(error)
    return found


def _check_train(p: TrainSettings, asked: TrainSettings) -> None:
    for error in wrong_settings(p, asked):
        raise ParamsInvalid(error.message, hint=error.hint, field=error.field)
    check_licence(p.licence)


def check_licence(text: str) -> str:
    """Raises `ParamsInvalid` for what is no SPDX expression."""
    if not re.fullmatch(r"[A-Za-z0-9.+() -]{1,120}", text):
        hint = "Give its short name, such as MIT or CC-BY-4.0: https://spdx.org/licenses lists them."
        raise ParamsInvalid(f"licence {text[:80]!r} is no SPDX expression", hint=hint, field="licence")
    return text


def kept_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Once each, in the one form of Unicode that records have."""
    return tuple(dict.fromkeys(unicodedata.normalize("NFC", tag) for tag in tags))


def superseded(node: Node, text: str | None) -> str | None:
    """The id of an own adapter that is replaced: nobody else's can be."""
    if text is None:
        return None
    row = node.registry.adapter(text)
    if row.trust != SELF:
        raise ParamsInvalid(
            f"{row.name} ({row.id}) is not this node's; only one's own can be replaced", field="supersedes"
        )
    return row.id


class AdapterNamed(Params, frozen=True, kw_only=True):
    adapter: str


Without = Literal["base", "answers", "speed", "forgetting"]


class AdapterEvaluate(Params, frozen=True, kw_only=True):
    """Scores for each adapter beside the base's, on one part of a data set; of `base` alone without adapters.

    `without` names what is not measured, so that it takes less time: the base, what they answer, how fast they do, or
    what they forgot."""

    adapters: list[str]
    dataset: str
    split: str = "test"
    base: str = "demo"
    without: tuple[Without, ...] = ()


@method("adapter.evaluate", AdapterEvaluate, JobStarted, "How good adapters are on a data set, beside the base.")
async def adapter_evaluate(node: Node, p: AdapterEvaluate) -> JobStarted:
    return await _evaluate(node, p, compare=False)


class AdapterCompare(Params, frozen=True, kw_only=True):
    """Two adapters or more; each later one stands beside the first, and all beside the base. `without` as for
    `adapter.evaluate`."""

    adapters: list[str]
    dataset: str
    split: str = "test"
    without: tuple[Without, ...] = ()


@method("adapter.compare", AdapterCompare, JobStarted, "Adapters beside each other and the base, on the same rows.")
async def adapter_compare(node: Node, p: AdapterCompare) -> JobStarted:
    if len(p.adapters) < 2:
        hint = "Name two adapters or more; `orchctl adapter evaluate` measures one beside the base."
        raise ParamsInvalid(f"{len(p.adapters)} adapter to compare", hint=hint, field="adapters")
    asked = AdapterEvaluate(adapters=p.adapters, dataset=p.dataset, split=p.split, without=p.without)
    return await _evaluate(node, asked, compare=True)


async def _evaluate(node: Node, p: AdapterEvaluate, *, compare: bool) -> JobStarted:
    rows = await in_thread(_measured, node, p.adapters)
    spec = await evaluation(
        node, rows, dataset=p.dataset, split=p.split, compare=compare, alone=p.base, without=p.without
    )
    about = ", ".join(row.name for row in rows) or p.base
    job = await node.jobs.submit("evaluate", spec, title=f"{'compare' if compare else 'evaluate'} {about}"[:120])
    return JobStarted(job=job.id)


def _measured(node: Node, texts: Sequence[str]) -> list[AdapterRow]:
    """Raises `AdapterUnknown`, `AmbiguousId`."""
    try:
        return [node.registry.adapter(text) for text in texts]
    except (AdapterUnknown, AmbiguousId) as error:
        raise type(error)(error.message, hint=error.hint, field="adapters") from error
