"""Leak reports at the node: what is measured for an adapter, how it is signed, and what may be published.

A report that came after an adapter was signed is signed into a new version of it: same files, another id.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from orchd import crafting
from orchd.errors import (
    AdapterUnknown,
    DatasetUnknown,
    JobUnknown,
    LeakReportMissing,
    LeaksTooMuch,
    LeakUnmeasurable,
    ManifestGone,
)
from orchd.jobs import Job
from orchd.records import MICRO, Manifest, text_id
from orchd.records.ids import ADAPTER
from orchd.records.manifest import NOT_MEASURED, Leak, LeakExtra, Routing
from orchd.registry import ADMITTED, REMOVED, AdapterRow
from orchd.registry.local_rows import Run
from orchd.registry.trust import SELF
from orchd.registry.use import not_admitted
from orchd.train.leak.figures import MAX_AUC, METHOD, UNTOLD, Centroid, LeakReport, exceeds
from orchd.train.specs import LeakResult, LeakSettings, LeakSpec, Settled, TrainSpec, leak_settings

if TYPE_CHECKING:
    from orchd.node import Node

MAX_ANCESTORS = 1_000
LABEL = 120  # characters
ROUTING_SCALE = 10_000
"""Four places: more tell a router nothing, and others more of the data."""


class LeakNote(msgspec.Struct, frozen=True, kw_only=True):
    """What a report is on."""

    adapter: str
    datasets: tuple[str, ...] = ()
    routing: bool = False


class LeakShown(msgspec.Struct, frozen=True, kw_only=True):
    """`adapter` has the verdict in its signed manifest. Where that is a new version, `was` is the id of the one before
    it; `kept`: that one stays, because it was announced, deployed or built upon."""

    adapter: AdapterRow
    report: LeakReport
    was: str = ""
    kept: bool = False


# ---- signing ------------------------------------------------------------------------------------------------------


def signed_parts(report: LeakReport | None, centroid: Centroid | None) -> dict[str, Any]:
    """The fields of a manifest that a report fills in; none without one."""
    if report is None:
        return {}
    extra = LeakExtra(
        members=report.members,
        heldout=report.heldout,
        interval_ppm=round(report.interval * MICRO),
        longest_run=report.longest_run,
        heldout_run=report.heldout_run,
        canaries=len(report.canaries),
        emitted=report.emitted,
        synthetic=report.synthetic,
    )
    leak = Leak(
        method=NOT_MEASURED if report.auc is None else METHOD,
        auc_ppm=round((report.auc or 0.0) * MICRO),
        verdict=report.verdict[:LABEL],
    )
    parts: dict[str, Any] = {"leak": leak, "extra": {"leak": msgspec.to_builtins(extra)}}
    if centroid is not None:
        parts["routing"] = Routing(
            layer=centroid.layer,
            scale=ROUTING_SCALE,
            centroid=tuple(round(one * ROUTING_SCALE) for one in centroid.centroid),
            spread=tuple(round(one * ROUTING_SCALE) for one in centroid.spread),
        )
    return parts


async def finish(node: Node, job: Job, result: LeakResult, workdir: Path) -> LeakShown:
    """Sign what was measured, unless it is signed already."""
    note = msgspec.convert(job.note, LeakNote)
    return await trio.to_thread.run_sync(partial(_signed, node, note.adapter, result))


def _signed(node: Node, id: str, result: LeakResult) -> LeakShown:
    registry = node.registry
    manifest = registry.manifest(id)
    record = manifest.record
    before = registry.adapter(id)
    has_all = record.leak is not None and (result.centroid is None or record.routing is not None)
    if has_all or before.trust != SELF:
        return LeakShown(adapter=before, report=result.report)
    if (signed := _signed_before(node, id, result)) is not None:
        return LeakShown(adapter=signed, report=result.report, was=id, kept=before.state != REMOVED)
    parts = signed_parts(result.report, result.centroid)
    again = msgspec.structs.replace(
        record,
        **{**parts, "extra": {**record.extra, **parts["extra"]}},
        author=node.identity.public_key,
        supersedes=manifest.digest,
        created_ms=node.clock(),
    )
    admission = crafting.sign_in(registry, node.identity, again, registry.adapter_folder(id), origin=before.origin)
    run = registry.local.get(Run, id)
    if run is not None:
        node.datasets.add_run(msgspec.structs.replace(run, adapter=admission.id))
    if before.pinned:
        registry.pin(admission.id)
    node.tell_admitted(admission)
    kept = _is_used(node, before)
    if not kept:
        registry.remove(id)
    return LeakShown(adapter=registry.adapter(admission.id), report=result.report, was=id, kept=kept)


def _signed_before(node: Node, id: str, result: LeakResult) -> AdapterRow | None:
    """The new version, where the daemon was killed after it had signed it."""
    parts = signed_parts(result.report, result.centroid)
    for newer in _newer(node, id):
        record = node.registry.manifest(newer.id).record
        if newer.state == ADMITTED and record.leak == parts["leak"] and parts.get("routing") in (None, record.routing):
            return newer
    return None


def _newer(node: Node, id: str) -> Iterator[AdapterRow]:
    """The versions that took an adapter's place and have its files."""
    found = node.registry.index.read("SELECT digest FROM adapter WHERE supersedes = ?", (id,))
    files = node.registry.manifest(id).record.files
    for row in node.registry.rows_of([digest for (digest,) in found]):
        if node.registry.manifest(row.id).record.files == files:
            yield row


def _is_used(node: Node, row: AdapterRow) -> bool:
    """Whether others know the adapter, or something here is made of it."""
    children = node.registry.index.read("SELECT 1 FROM edge WHERE parent = ? LIMIT 1", (row.id,))
    deployed = any(one.adapter == row.id for one in node.deployments.list())
    return bool(row.topics or children or deployed)


# ---- what is measured ---------------------------------------------------------------------------------------------


async def plan(node: Node, text: str, dataset: str | None, *, routing: bool) -> tuple[LeakSpec, LeakNote]:
    """The job that measures an adapter on what it was trained on (or a data set that is named), and what it is on.
    Raises `LeakUnmeasurable`, `AdapterUnknown`, `DatasetUnknown`, `NotAdmitted`."""
    row = await trio.to_thread.run_sync(node.registry.adapter, text)
    if row.state != ADMITTED:
        raise await trio.to_thread.run_sync(not_admitted, node.registry, row)
    found = list(await trio.to_thread.run_sync(datasets_behind, node, row.id))
    if dataset is not None:
        found = [(await trio.to_thread.run_sync(node.datasets.get, dataset)).id]
    if not found:
        hint = f"`orchctl adapter leak-report {row.id} --dataset NAME` measures it on a data set that you name."
        detail = f"what {row.name} ({row.id}) was trained on is not here"
        raise LeakUnmeasurable(detail, hint=hint, field="adapter")
    base = await trio.to_thread.run_sync(node.registry.known_bases.folder, row.base)
    spec = LeakSpec(
        base=str(base.path),
        adapter=str(await trio.to_thread.run_sync(node.registry.adapter_folder, row.id)),
        datasets=tuple(str(node.datasets.folder(id)) for id in found),
        settings=await _settings(node, row.id, found[0], routing=routing),
    )
    return spec, LeakNote(adapter=row.id, datasets=tuple(found), routing=routing)


def datasets_behind(node: Node, id: str) -> Iterator[str]:
    """Ids of the data sets that are here and that an adapter, what it went on from or its leaves learnt; its own
    first."""
    seen = set[str]()
    for adapter in with_ancestors(node, id):
        run = node.registry.local.get(Run, adapter)
        if run is None or run.dataset in seen:
            continue
        seen.add(run.dataset)
        try:
            yield node.datasets.get(run.dataset).id
        except DatasetUnknown:
            continue


def with_ancestors(node: Node, id: str) -> Iterator[str]:
    """An adapter, then what it was made from, as far as that is here; each once."""
    waiting, seen = [id], {id}
    while waiting and len(seen) < MAX_ANCESTORS:
        one = waiting.pop(0)
        yield one
        try:
            record = node.registry.manifest(one).record
        except (AdapterUnknown, ManifestGone):
            continue
        for parent in (text_id(ADAPTER, digest) for digest in _parents(record)):
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)


def _parents(record: Manifest) -> Iterator[bytes]:
    if record.training is not None and record.training.initial is not None:
        yield record.training.initial
    if record.lineage is not None:
        yield from (leaf.id for leaf in record.lineage.leaves)


async def _settings(node: Node, id: str, dataset: str, *, routing: bool) -> LeakSettings:
    """Those of the training, where it was on this data set and its job is still known."""
    run = await trio.to_thread.run_sync(node.registry.local.get, Run, id)
    if run is None or run.dataset != dataset:
        return LeakSettings(routing=routing)
    try:
        job = await node.jobs.get(run.job)
    except JobUnknown:
        return LeakSettings(routing=routing)
    spec = msgspec.convert(job.spec, TrainSpec)
    result = job.result if isinstance(job.result, dict) else {}
    epochs = result.get("epochs", 0.0)
    if settled := result.get("settled"):
        spec = msgspec.structs.replace(spec, lora_dropout=msgspec.convert(settled, Settled).lora_dropout)
    return leak_settings(spec, epochs=epochs, routing=routing)


# ---- what may be published ----------------------------------------------------------------------------------------


def check(node: Node, row: AdapterRow, *, despite: bool) -> None:
    """Whether an adapter may be published: the figure that is signed decides. Raises `LeakReportMissing` (with
    `despite` only while its data is here, so that it could be measured), `LeaksTooMuch` (not with `despite`).

    Somebody else's is theirs to judge, and one that was made elsewhere holds no data set of this node's. An average
    gives away no more than what it is made of, so each of its leaves that was trained here is looked at, unless it was
    published before.
    """
    if row.trust != SELF:
        return
    if row.leak is not None or node.registry.local.get(Run, row.id) is not None:
        _check_one(node, row, despite=despite)
        return
    for leaf in row.lineage.leaves if row.lineage is not None else ():
        if node.registry.local.get(Run, leaf.id) is None:
            continue
        for own in node.registry.rows_of([leaf.id]):
            if not own.topics:
                _check_one(node, reported(node, own) or own, despite=despite, within=row.name)


def reported(node: Node, row: AdapterRow) -> AdapterRow | None:
    """The version of an adapter with the same files whose manifest has a verdict, itself or a newer one."""
    if row.leak is not None:
        return row
    return next((newer for newer in _newer(node, row.id) if newer.leak is not None), None)


def _check_one(node: Node, row: AdapterRow, *, despite: bool, within: str = "") -> None:
    told = f"{row.name} ({row.id})" + (f", a leaf of {within}," if within else "")
    if row.leak is None:
        _check_unmeasured(node, row, told, despite=despite)
        return
    if despite or row.leak.synthetic or not exceeds(row.leak.auc, row.leak.emitted):
        return
    if row.leak.auc is None:
        hint = "Train on more rows and put some aside; or publish it with --despite-leak."
        raise LeakReportMissing(f"how much {told} gives away is {row.leak.verdict}", hint=hint, field="adapter")
    hint = (
        f"`orchctl adapter leak-report {row.id}` says what would lower it; --despite-leak publishes it all the same,"
        " and others see the verdict."
    )
    if row.leak.verdict.startswith(UNTOLD):
        hint = f"It may be chance: with more rows put aside (`--validation-split`) the figure is surer. {hint}"
    limit = f"the limit is an AUC of {MAX_AUC:g}, and no canary said"
    raise LeaksTooMuch(f"{told}: {row.leak.verdict}; {limit}", hint=hint, field="adapter")


def _check_unmeasured(node: Node, row: AdapterRow, told: str, *, despite: bool) -> None:
    """The verdict is signed either way, so what can be measured is measured first."""
    if (newer := reported(node, row)) is not None:
        hint = f"Publish {newer.id} instead: the same files, with the verdict in its manifest."
        raise LeakReportMissing(f"{told} has no verdict in its manifest", hint=hint, field="adapter")
    measurable = next(datasets_behind(node, row.id), None) is not None
    if despite and not measurable:
        return
    hint = f"`orchctl adapter leak-report {row.id}` measures it in seconds, and signs the verdict."
    if not measurable:
        hint = "Its data set is not here any more; --despite-leak publishes it without a verdict."
    raise LeakReportMissing(f"nobody has looked how much of its data {told} gives away", hint=hint, field="adapter")
