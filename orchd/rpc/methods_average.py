"""Averaging: what is asked for is checked and expanded into leaves here; a job does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from orchd import averaging, federation_notes, room
from orchd.average import licences
from orchd.average.gate_specs import STAGES, VERDICTS, GateExtra, GatePlan
from orchd.average.licences import Licensed
from orchd.average.recipe import MILLION, Expanded, Parent, expand_leaves, strength_in_ppm
from orchd.average.rounds_specs import VerifyRoundSpec
from orchd.average.rounds_state import METHOD
from orchd.average.rules import AUTO, MEAN, METHODS, RankRule, check_wanted, parse_recipe
from orchd.average.specs import AverageSpec, PlanSpec, Refusal, VerifySpec, WeightedAdapter
from orchd.errors import (
    AdapterUnknown,
    AverageNotExpandable,
    AverageSpecInvalid,
    LeavesUnknown,
    NotAverageable,
    OrchdError,
    ParamsInvalid,
)
from orchd.node import Node, in_thread
from orchd.notes import AverageNote, VerifyNote
from orchd.recipes import coefficients, verify_spec
from orchd.records import MICRO, Manifest, Verified, text_id
from orchd.records.ids import ADAPTER, BASE
from orchd.registry import ADMITTED, AdapterRow, Base, Registry
from orchd.registry.bases import FOLDER
from orchd.registry.peft_config import AVERAGEABLE
from orchd.registry.trust import SELF
from orchd.registry.use import not_admitted
from orchd.rpc import leaves
from orchd.rpc.methods_jobs import JobStarted
from orchd.rpc.methods_training import AdapterNamed, Tags, check_licence, kept_tags, superseded
from orchd.rpc.table import Params, Result, method


class AverageWanted(Params, frozen=True, kw_only=True):
    """Two adapters or more. `weights` default to equal ones; only their ratio counts.

    `method`: mean (as weighted), clip, tsv, geometric-median, median, trimmed-mean, multi-krum or krum; all but the
    mean give near-copies and one author's adapters one vote. `auto` is clip for alike and tsv for unlike ones.
    `rank`: 16 (of each module, at most), "budget:16" (as many numbers, where they bring most), "energy:.95" (of each
    module) or "stacked" (everything). `strength` multiplies the whole: 1, of tsv .4; with `gate` what is best.

    `gate`: held-out rows of `dataset` (an own one is chosen where none is named) decide who is in it and how strong it
    is, in about `gate_seconds`. `licence` (SPDX) is what it is to be under: also where a leaf's author has not said.
    """

    adapters: list[str]
    weights: list[float] | None = None
    method: str = AUTO
    rank: int | str = 16
    strength: float | None = None
    gate: bool = True
    dataset: str | None = None
    gate_seconds: float | None = None
    licence: str = ""


class AverageStart(AverageWanted, frozen=True, kw_only=True):
    """What to average and how. `supersedes` as for `train.start`. With `preview` it is `average.preview`.

    Leaves of averages that are not here are fetched first; with `allow_partial` those that nobody gives are left out,
    and the others' weights grow.
    """

    preview: bool = False
    allow_partial: bool = False
    name: str = ""
    tags: Tags = ()
    supersedes: str | None = None


@method("average.start", AverageStart, JobStarted, "Make one adapter from several.")
async def average_start(node: Node, p: AverageStart) -> JobStarted:
    if p.preview:
        return await _plan(node, p, through=True)
    check_count(p)
    await node.network.caught_up()
    if missing := await in_thread(_missing, node, p):

        async def go_on(without: tuple[str, ...]) -> JobStarted:
            return await _start(node, p, without)

        title = f"fetch {len(missing)} leaves and average {p.name or 'them'}"
        return await leaves.gather(node, title, missing, go_on, partial=p.allow_partial)
    return await _start(node, p, ())


def _missing(node: Node, p: AverageWanted) -> list[str]:
    """Leaves of averages that are not here. Raises what `resolve` does before it looks at them."""
    _check_weights(p)
    parents = [node.registry.manifest(node.registry.resolve(text)) for text in p.adapters]
    found = _expanded(parents, p.weights or [1.0] * len(parents)).leaves
    own = {parent.digest for parent in parents}
    return leaves.absent(node.registry, [leaf for leaf, _ in found if leaf not in own])


async def _start(node: Node, p: AverageStart, without: tuple[str, ...]) -> JobStarted:
    wanted = await in_thread(resolve, node, p, without)
    note = AverageNote(
        name=p.name or f"average of {len(wanted.spec.adapters)}",
        base=wanted.base.name,
        leaves=tuple(leaf.id for leaf in wanted.spec.adapters),
        method=wanted.spec.method,
        rank=wanted.rule.rank,
        licence=wanted.licence,
        tags=kept_tags(p.tags),
        supersedes=await in_thread(superseded, node, p.supersedes),
        missing=without,
    )
    job = await node.jobs.submit("average", wanted.spec, title=f"average {note.name}", note=note)
    return JobStarted(job=job.id)


@method(
    "average.plan",
    AverageWanted,
    JobStarted,
    "How alike adapters are, what an average of them would do and take, and which of them can't be in it.",
)
async def average_plan(node: Node, p: AverageWanted) -> JobStarted:
    """With the parameters of `average.start`. What can't be averaged is told with its reason."""
    return await _plan(node, p, through=False)


@method(
    "average.preview",
    AverageWanted,
    JobStarted,
    "As average.plan, and what would come out: computed, and not written.",
)
async def average_preview(node: Node, p: AverageWanted) -> JobStarted:
    return await _plan(node, p, through=True)


async def _plan(node: Node, p: AverageWanted, *, through: bool) -> JobStarted:
    check_count(p)
    await node.network.caught_up()
    kept, refused = await in_thread(_sorted_out, node, p)
    wanted = await in_thread(resolve, node, kept)
    names = await in_thread(node.registry.names.of, [leaf.id for leaf in wanted.spec.adapters])
    spec = PlanSpec(
        average=wanted.spec,
        refused=refused,
        names=tuple(names.get(leaf.id, "") for leaf in wanted.spec.adapters),
        through=through,
        gate=wanted.gate,
    )
    job = await node.jobs.submit("average.plan", spec, title=f"plan an average of {len(wanted.spec.adapters)}")
    return JobStarted(job=job.id)


def _sorted_out(node: Node, p: AverageWanted) -> tuple[AverageWanted, tuple[Refusal, ...]]:
    """Without the adapters that can't be averaged, which a start would refuse one at a time.

    The base is that of most of them. Raises `AverageSpecInvalid` when fewer than two are left.
    """
    _check_weights(p)
    parents = [node.registry.manifest(node.registry.resolve(text)) for text in p.adapters]
    bases = [frozenset(node.registry.known_bases.same(text_id(BASE, one.record.base.fingerprint))) for one in parents]
    base = max(bases, key=bases.count)
    kept, refused = [], []
    for place, parent in enumerate(parents):
        try:
            if text_id(BASE, parent.record.base.fingerprint) not in base:
                raise AverageSpecInvalid(f"it is for another base than most of them: {parent.record.base.hint}")
            for row in leaf_rows(node, [leaf for leaf, _ in _expanded([parent], [1.0]).leaves]):
                licences.check(_licensed(row, p.licence))
            kept.append(place)
        except OrchdError as error:
            fetched = "; `orchctl average start` fetches it first" if isinstance(error, LeavesUnknown) else ""
            refused.append(Refusal(id=parent.id, name=parent.record.name, reason=error.message + fetched))
    if len(kept) < 2:
        told = "; ".join(f"{one.name}: {one.reason}" for one in refused)
        raise AverageSpecInvalid(f"{len(kept)} of these adapters can be averaged ({told})", field="adapters")
    weights = None if p.weights is None else [p.weights[place] for place in kept]
    chosen = msgspec.structs.replace(p, adapters=[parents[place].id for place in kept], weights=weights)
    return chosen, tuple(refused)


class Wanted(NamedTuple):
    """What an average is of, with everything filled in."""

    spec: AverageSpec
    rule: RankRule
    base: Base
    licence: str
    gate: GatePlan


def resolve(node: Node, p: AverageWanted, without: Sequence[str] = ()) -> Wanted:
    """What to average, `without` some leaves.

    Raises `AverageSpecInvalid` and its like, `AdapterUnknown`, `NotAverageable`, `LeavesUnknown`, `LicenceUnfit`,
    `GateDataUnfit`, `DatasetUnknown`, `DiskFull`."""
    check_count(p)
    rule = RankRule.parse(p.rank)
    check_wanted(p.method)
    _check_weights(p)
    parents = [node.registry.manifest(node.registry.resolve(text)) for text in p.adapters]
    base = one_base(node, parents)
    expanded = leaves.left_out(_expanded(parents, p.weights or [1.0] * len(parents)), without)
    rows = leaf_rows(node, [leaf for leaf, _ in expanded.leaves])
    weighted = p.method == AUTO or METHODS[p.method].weighted
    if p.weights is not None and not weighted:
        hint = "Leave the weights out, or choose mean, clip, tsv or geometric-median."
        raise AverageSpecInvalid(f"{p.method} gives every vote the same weight", hint=hint, field="weights")
    if p.strength is not None:
        strength_in_ppm(p.strength)
    room.for_adapter(node.registry, base, min(rule.rank, sum(row.rank for row in rows)))
    licence = p.licence and check_licence(p.licence)
    licence = licence or licences.combined([_licensed(row) for row in rows])
    found = averaging.judging(
        node, base, [row.id for row in rows], on=p.gate, dataset=p.dataset, seconds=p.gate_seconds
    )
    spec = AverageSpec(
        adapters=tuple(
            _weighted(node, row, ppm if weighted else 1) for row, (_, ppm) in zip(rows, expanded.leaves, strict=True)
        ),
        method=p.method,
        rank=rule.text,
        strength=p.strength,
        inherited=expanded.strength_ppm / MILLION,
        gate=found.gate,
        ungated=found.ungated,
        opinions=found.opinions,
    )
    return Wanted(spec, rule, base, licence, found.plan)


def _check_weights(p: AverageWanted) -> None:
    if p.weights is not None and len(p.weights) != len(p.adapters):
        raise AverageSpecInvalid(f"{len(p.adapters)} adapters, {len(p.weights)} weights", field="weights")


def check_count(p: AverageWanted) -> None:
    """Raises `AverageSpecInvalid` for fewer than two adapters."""
    if len(p.adapters) < 2:
        raise AverageSpecInvalid(f"an average is of two adapters or more, not of {len(p.adapters)}", field="adapters")


def _expanded(parents: Sequence[Verified[Manifest]], weights: Sequence[float]) -> Expanded:
    return expand_leaves(
        [(parent.digest, weight) for parent, weight in zip(parents, weights, strict=True)],
        {parent.digest: known for parent in parents if (known := parent_of(parent))},
    )


def parent_of(parent: Verified[Manifest]) -> Parent | None:
    """What an average took of its leaves. Raises `AverageNotExpandable` where that is no weighted sum."""
    lineage = parent.record.lineage
    if lineage is None:
        return None
    told = f"{parent.record.name} ({parent.id}), an average by {lineage.method}"
    if lineage.method == METHOD:
        hint = "Go on from it with `orchctl train start --initial`, or average adapters that were trained in one go."
        raise AverageNotExpandable(f"{told}, holds the global of its round too", hint=hint, field="adapters")
    try:
        name, _ = parse_recipe(lineage.method, lineage.rank)
    except OrchdError:
        raise AverageNotExpandable(f"{told}, is by a method that is not known here", field="adapters") from None
    if not METHODS[name].linear:
        raise AverageNotExpandable(f"{told}, is no weighted sum of its leaves", field="adapters")
    taken = [leaf.weight_ppm for leaf in lineage.leaves]
    if name != MEAN:
        taken = list(coefficients(parent.record))
        if len(taken) != len(lineage.leaves) or min(taken) < 0 or not any(taken):
            raise AverageNotExpandable(f"{told}, does not say what it took of each", field="adapters")
    found = [(leaf.id, ppm) for leaf, ppm in zip(lineage.leaves, taken, strict=True) if ppm]
    return Parent(found, lineage.strength_ppm)


def _licensed(row: AdapterRow, said: str = "") -> Licensed:
    """`said`: what the user says of all of them."""
    return Licensed(f"{row.name} ({row.id})", said or row.licence, row.trust == SELF)


def one_base(node: Node, parents: Sequence[Verified[Manifest]]) -> Base:
    """The base of all of them, in the form that can be trained on where it is here in several."""
    found = {text_id(BASE, parent.record.base.fingerprint): parent.record.name for parent in parents}
    known = node.registry.known_bases
    if not found.keys() <= known.same(next(iter(found))):
        raise AverageSpecInvalid(f"{' and '.join(sorted(found.values()))} are for different bases", field="adapters")
    here = sorted((base for base in known.all() if base.fingerprint in found), key=lambda base: base.form != FOLDER)
    if not here:
        raise AverageSpecInvalid("the base of these adapters is not here", field="adapters")
    return here[0]


def leaf_rows(node: Node, ids: Sequence[bytes]) -> list[AdapterRow]:
    """The leaves as they are here. Raises `LeavesUnknown`, `NotAdmitted`, `NotAverageable`."""
    found = []
    for leaf in ids:
        try:
            found.append(node.registry.adapter(text_id(ADAPTER, leaf)))
        except AdapterUnknown:
            told = f"the leaf {text_id(ADAPTER, leaf)} is not here"
            raise LeavesUnknown(told, field="adapters") from None
        check_averageable(node.registry, found[-1])
    return found


def _weighted(node: Node, row: AdapterRow, weight: float) -> WeightedAdapter:
    folder = node.registry.adapter_folder(row.id)
    return WeightedAdapter(id=row.id, path=str(folder), weight=weight, author=row.author)


def check_averageable(registry: Registry, row: AdapterRow) -> None:
    if row.state != ADMITTED:
        raise not_admitted(registry, row, "adapters")
    if AVERAGEABLE not in row.capabilities:
        raise NotAverageable(
            f"{row.name} ({row.id}) has more than factors: DoRA, trained biases or saved modules", field="adapters"
        )


@method("average.verify", AdapterNamed, JobStarted, "Recompute an average from its leaves and compare.")
async def average_verify(node: Node, p: AdapterNamed) -> JobStarted:
    spec, adapter = await in_thread(_plan_verify, node, p.adapter)
    note = VerifyNote(adapter=adapter)
    kind = "average.verify" if isinstance(spec, VerifySpec) else "average.verify_round"
    job = await node.jobs.submit(kind, spec, title=f"verify {adapter[:12]}", note=note)
    return JobStarted(job=job.id)


def _plan_verify(node: Node, text: str) -> tuple[VerifySpec | VerifyRoundSpec, str]:
    manifest = node.registry.manifest(node.registry.resolve(text))
    lineage = manifest.record.lineage
    if lineage is None:
        hint = f"`orchctl adapter verify {manifest.id}` checks an adapter that was trained."
        raise ParamsInvalid(f"{manifest.record.name} is no average: it has no leaves", hint=hint, field="adapter")
    leaf_rows(node, [leaf.id for leaf in lineage.leaves])
    if lineage.method == METHOD:
        return federation_notes.verify_spec(node.registry, manifest), manifest.id
    return verify_spec(node.registry, manifest.id), manifest.id


class ShownLeaf(Result, frozen=True, kw_only=True):
    """`name` is empty for one that is not here. `taken_ppm` is None where the average is no weighted sum."""

    id: str
    name: str
    weight_ppm: int
    taken_ppm: int | None


class ShownRefusal(Result, frozen=True, kw_only=True):
    """`difference`: nats a token that the refusal rests on, None where it rests on none."""

    id: str
    name: str
    stage: str
    difference: float | None


class ShownGate(Result, frozen=True, kw_only=True):
    """What the author's own held-out data decided, as the manifest says it; nats a token, rounded to hundredths.

    `single`: by how much the best leaf alone was better than the average, 0 where none was.
    """

    verdict: str
    examples: int
    loss: float
    base_loss: float
    difference: float
    interval: float
    single: float
    triggers: int
    refused: list[ShownRefusal]


class AverageShown(Result, frozen=True, kw_only=True):
    """`gate` is None where the manifest says nothing of one."""

    adapter: AdapterRow
    method: str
    strength_ppm: int
    leaves: list[ShownLeaf]
    gate: ShownGate | None


@method("average.show", AdapterNamed, AverageShown, "What an average is made of, and what its author's gate decided.")
async def average_show(node: Node, p: AdapterNamed) -> AverageShown:
    return await in_thread(_shown, node, p.adapter)


def _shown(node: Node, text: str) -> AverageShown:
    row = node.registry.adapter(node.registry.resolve(text))
    record = node.registry.manifest(row.id).record
    if record.lineage is None:
        hint = f"`orchctl adapter show {row.id}` tells of an adapter that was trained."
        raise ParamsInvalid(f"{row.name} is no average: it has no leaves", hint=hint, field="adapter")
    ids = [text_id(ADAPTER, leaf.id) for leaf in record.lineage.leaves]
    gate = averaging.gate_of(record)
    refused = [text_id(ADAPTER, one.id) for one in gate.refused] if gate else []
    names = node.registry.names.of([*ids, *refused])
    mean = record.lineage.method.partition("/")[0] == MEAN
    taken = [leaf.weight_ppm for leaf in record.lineage.leaves] if mean else list(coefficients(record))
    if len(taken) != len(ids):
        taken = []
    return AverageShown(
        adapter=row,
        method=record.lineage.method,
        strength_ppm=record.lineage.strength_ppm,
        leaves=[
            ShownLeaf(id=id, name=names.get(id, ""), weight_ppm=leaf.weight_ppm, taken_ppm=taken[at] if taken else None)
            for at, (id, leaf) in enumerate(zip(ids, record.lineage.leaves, strict=True))
        ],
        gate=None if gate is None else _shown_gate(gate, refused, names),
    )


def _shown_gate(gate: GateExtra, refused: Sequence[str], names: Mapping[str, str]) -> ShownGate:
    """Numbers of a newer orchd that this one has no word for are shown as numbers."""
    return ShownGate(
        verdict=_word(VERDICTS, gate.verdict),
        examples=gate.examples,
        loss=gate.average / MICRO,
        base_loss=gate.base / MICRO,
        difference=gate.difference / MICRO,
        interval=gate.interval / MICRO,
        single=gate.single / MICRO,
        triggers=gate.triggers,
        refused=[
            ShownRefusal(
                id=id,
                name=names.get(id, ""),
                stage=_word(STAGES, one.stage),
                difference=one.figure / MICRO if one.figure else None,
            )
            for id, one in zip(refused, gate.refused, strict=True)
        ],
    )


def _word(words: Sequence[str], number: int) -> str:
    return words[number] if 0 <= number < len(words) else str(number)
