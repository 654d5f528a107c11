"""What a training would be, before it is begun: its plan, and what there is to say of its settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from orchd.errors import OrchdError, did_you_mean
from orchd.node import Node, in_thread
from orchd.rpc.methods_jobs import JobStarted
from orchd.rpc.methods_runs import retention_set
from orchd.rpc.methods_training import TrainStart, named, resolve, settings_of, wrong_settings
from orchd.rpc.table import Params, Result, method
from orchd.train import advice, worth
from orchd.train.plan_specs import PlanSpec, ValidateSpec
from orchd.train.specs import Finding, TrainSpec

UNKNOWN = re.compile(r"unknown field `([^`]+)`")
TYPES = {field.name: field.type for field in msgspec.structs.fields(TrainStart)}


@method(
    "train.plan",
    TrainStart,
    JobStarted,
    "What a training would choose, and take in time, memory and disk, by a few real steps on this machine.",
)
async def train_plan(node: Node, p: TrainStart) -> JobStarted:
    """With the parameters of `train.start`: what is given is kept, and what is left out is chosen."""
    p = named(p)
    what = await resolve(node, p)
    initial = "" if what.initial is None else what.initial.name
    base = "" if p.base == "demo" else what.base.name
    options = {"base": base, "initial": initial, "name": p.name}
    command = advice.again(settings_of(p), words=(what.dataset.name,), options=options)
    kept = await retention_set(node, what.spec, what.base.fingerprint)
    spec = PlanSpec(train=msgspec.structs.replace(what.spec, retention=kept), command=command)
    job = await node.jobs.submit("train.plan", spec, title=f"plan {what.dataset.name}")
    return JobStarted(job=job.id)


class TrainWorth(Params, frozen=True, kw_only=True):
    dataset: str


class Worth(Result, frozen=True, kw_only=True):
    """`doubts` say why a training is not worth its time; none where it may be."""

    doubts: tuple[str, ...]


@method(
    "train.worth",
    TrainWorth,
    Worth,
    "Whether a training on a data set is worth its time, as far as its rows tell at once; `train.plan` tells more.",
)
async def train_worth(node: Node, p: TrainWorth) -> Worth:
    dataset = await in_thread(node.datasets.get, p.dataset)
    return Worth(doubts=await in_thread(worth.doubts, node.datasets.folder(dataset.id)))


class TrainValidate(Params, frozen=True, kw_only=True):
    """`config` is any configuration, with the parameters of `train.start`; its `dataset` and `base` may stand in it or
    beside it. Without a data set only the settings themselves are looked at."""

    config: dict[str, Any]
    dataset: str = ""
    base: str = ""


@method(
    "train.validate",
    TrainValidate,
    JobStarted,
    "What is wrong with a configuration of a training, what is unwise, and what the plan would choose.",
)
async def train_validate(node: Node, p: TrainValidate) -> JobStarted:
    asked = p.config | {name: given for name in ("dataset", "base") if (given := getattr(p, name))}
    good, found = read(asked)
    spec = TrainSpec(base="", dataset="")
    try:
        said = TrainStart(**({"dataset": ""} | good))
        wrong = wrong_settings(named(said), said)
        found += wrong
        start = named(without(said, [one.field for one in wrong]))
        spec = (await resolve(node, start)).spec if start.dataset else settings_of(start)
        if "base" in good and not start.dataset:
            base = await in_thread(node.registry.known_bases.folder, start.base)
            spec = msgspec.structs.replace(spec, base=str(base.path))
    except OrchdError as error:
        found.append(Finding(field=error.field or "", message=error.message, hint=error.hint))
    title = f"validate settings for {asked.get('dataset') or 'any data set'}"
    task = ValidateSpec(train=spec, errors=tuple(found), given=tuple(good))
    return JobStarted(job=(await node.jobs.submit("train.validate", task, title=title[:80])).id)


def without(said: TrainStart, paths: Iterable[str]) -> TrainStart:
    """As if nothing had been said of the settings at these paths: a plan reckons with none that can't be."""
    gone = {path.partition(".")[0] for path in paths}
    kept = {name: getattr(said, name) for name in said.__struct_fields__ if name not in gone}
    return TrainStart(**kept)


def read(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The settings that can be read, and what is wrong with the others, by their paths."""
    good: dict[str, Any] = {}
    wrong: list[Finding] = []
    for name, value in config.items():
        if name not in TYPES:
            hint = did_you_mean(name, TYPES) or f"A training takes {', '.join(TYPES)}."
            wrong.append(Finding(field=name, message=f"there is no setting {name[:80]!r}", hint=hint))
            continue
        try:
            good[name] = msgspec.convert(value, TYPES[name])
        except msgspec.ValidationError as error:
            said, _, path = str(error).partition(" - at `$")
            unknown = UNKNOWN.search(said)
            field = ".".join(filter(None, [f"{name}{path.rstrip('`')}", unknown[1] if unknown else ""]))
            message = f"there is no setting {field!r}" if unknown else f"{field}: {said}"
            wrong.append(Finding(field=field, message=message, hint="Give it as `rpc.discover` describes it."))
    return good, wrong
