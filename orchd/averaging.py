"""Averages at the node: whose data judges them, whose word counts, and what becomes of what a worker made."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from orchd import crafting
from orchd.average.gate_specs import SECONDS, VERDICTS, GateExtra, GatePlan, GateSpec, Opinion
from orchd.average.rules import RankRule, recipe_method
from orchd.average.specs import AverageResult, AverageSpec
from orchd.errors import AverageIsCandidate, AverageSpecInvalid, GateDataUnfit, LeafWithdrawn, ParamsInvalid
from orchd.jobs import Job
from orchd.notes import Averaged, AverageNote
from orchd.records import Manifest, parse_id
from orchd.records.ids import ADAPTER
from orchd.registry import ADMITTED, AdapterRow, Base, DatasetRow
from orchd.registry.admission import Candidate, Check
from orchd.registry.attested import words
from orchd.registry.local_rows import Run
from orchd.registry.trust import SELF
from orchd.registry.use import not_admitted

if TYPE_CHECKING:
    from orchd.node import Node

LEAST_ROWS = 20
"""Held-out ones of a data set that can judge: ten for choosing and ten for deciding."""
MAX_SECONDS = 24 * 3600.0


class Judging(msgspec.Struct, frozen=True, kw_only=True):
    """What of the gate goes into an average's spec, and into its plan."""

    gate: GateSpec | None
    ungated: str
    opinions: tuple[Opinion, ...]
    plan: GatePlan


def judging(
    node: Node, base: Base, leaves: Sequence[str], *, on: bool, dataset: str | None, seconds: float | None
) -> Judging:
    """Which data of one's own judges an average of these leaves, and what followed people have said of them.

    That which is named; else what an own adapter among the leaves was trained on, the newest of them; else the newest
    data set with enough held-out rows. Raises `ParamsInvalid`, `DatasetUnknown`, `GateDataUnfit`,
    `AverageSpecInvalid`, `BaseUnknown`.
    """
    if not on and (dataset is not None or seconds is not None):
        given = "dataset" if dataset is not None else "gate_seconds"
        hint = "Leave out --no-gate, or what the gate is to do."
        raise ParamsInvalid("without the gate no data set is looked at", hint=hint, field=given)
    allowed = SECONDS if seconds is None else seconds
    if not 0 < allowed <= MAX_SECONDS:  # NaN neither
        told = f"the gate may take {allowed} s; above 0 and up to {MAX_SECONDS:g} are possible"
        hint = "Give seconds, such as --gate-seconds 60."
        raise AverageSpecInvalid(told, hint=hint, field="gate_seconds")
    opinions = tuple(
        Opinion(adapter=id, better=better, worse=worse)
        for id, (better, worse) in words(node.registry, node.registry.people.view(), leaves).items()
    )
    if not on:
        return _off("switched off with --no-gate; nothing looked at your data", opinions)
    found = _data(node, leaves, dataset)
    if found is None:
        return _off("you have no data set with held-out rows: figures and the word of others alone decide", opinions)
    row, why = found
    model = node.registry.known_bases.folder(base.fingerprint)
    spec = GateSpec(base=str(model.path), dataset=str(node.datasets.folder(row.id)), name=row.name, seconds=allowed)
    plan = GatePlan(on=True, reason=why, dataset=row.name, examples=row.validation + row.test, seconds=allowed)
    return Judging(gate=spec, ungated="", opinions=opinions, plan=plan)


def _off(reason: str, opinions: tuple[Opinion, ...]) -> Judging:
    return Judging(gate=None, ungated=reason, opinions=opinions, plan=GatePlan(on=False, reason=reason))


def _data(node: Node, leaves: Sequence[str], named: str | None) -> tuple[DatasetRow, str] | None:
    if named is not None:
        row = node.datasets.get(named)
        if not _can_judge(row):
            told = f"{row.validation + row.test} held-out rows, {LEAST_ROWS} are needed"
            raise GateDataUnfit(f"{row.name} has {told}", field="dataset")
        return row, "as you asked"
    rows = [row for row in node.datasets.list() if _can_judge(row)]
    runs = {run.dataset: leaf for leaf in leaves if (run := node.registry.local.get(Run, leaf)) is not None}
    for row in rows:
        if row.id in runs:
            name = node.registry.names.of([runs[row.id]])[runs[row.id]]
            return row, f"your adapter {name} was trained on it"
    return (rows[0], "your newest data set with held-out rows") if rows else None


def _can_judge(row: DatasetRow) -> bool:
    return row.validation + row.test >= LEAST_ROWS


async def finish(node: Node, job: Job, result: AverageResult, workdir: Path) -> Averaged:
    """Admit an average. Raises `LeafWithdrawn` where one of its leaves went out of use meanwhile."""
    note = msgspec.convert(job.note, AverageNote)
    ids = result.leaves or note.leaves
    await trio.to_thread.run_sync(_check_leaves, node, ids)
    leaves = tuple(parse_id(leaf, ADAPTER) for leaf in ids)
    missing = tuple(parse_id(leaf, ADAPTER) for leaf in note.missing)
    method = recipe_method(result.method, RankRule.parse(msgspec.convert(job.spec, AverageSpec).rank))
    lineage = crafting.lineage_record(result, leaves, method=method, rank=note.rank)
    checks: tuple[Check, ...] = ()
    if result.gate is not None and result.gate.verdict == "quarantined":
        reason = result.gate.reason

        def waits(candidate: Candidate) -> str:
            return reason

        checks = (waits,)
    admission = await trio.to_thread.run_sync(
        partial(
            crafting.admit,
            node.registry,
            node.identity,
            node.making(note, f"Average of {len(leaves)} adapters"),
            workdir / result.adapter,
            origin="averaged",
            lineage=lineage,
            extra=crafting.average_extra(result, leaves, missing) | crafting.gate_extra(result.gate),
            checks=checks,
        )
    )
    node.tell_admitted(admission, job.id)
    return Averaged(
        adapter=admission.row,
        recipe=lineage.recipe.hex(),
        residual_ppm=result.residual_ppm,
        cosines=result.cosines,
        seconds=result.seconds,
        method=method,
        strength_ppm=result.strength_ppm,
        weights_ppm=result.weights_ppm,
        coefficients_ppm=result.coefficients_ppm,
        votes=result.votes,
        leaves=await trio.to_thread.run_sync(node.leaf_names, ids),
        missing=note.missing,
        modules=result.modules,
        gate=result.gate,
        refused=await trio.to_thread.run_sync(node.leaf_names, [id for id in note.leaves if id not in ids]),
    )


def _check_leaves(node: Node, ids: Sequence[str]) -> None:
    there = {row.id: row for row in node.registry.rows_of(ids)}
    for id in ids:
        if id not in there:
            raise LeafWithdrawn(f"{id} is not here any more", field="adapters")
        if there[id].state != ADMITTED:
            raise LeafWithdrawn(not_admitted(node.registry, there[id]).message, field="adapters")


def gate_of(manifest: Manifest) -> GateExtra | None:
    """What a manifest says of the gate that its average passed; None where it says nothing that is understood."""
    told = manifest.extra.get("gate")
    if told is None:
        return None
    try:
        return msgspec.convert(told, GateExtra)
    except msgspec.ValidationError:
        return None


def check_announced(node: Node, row: AdapterRow, accepted: str) -> None:
    """Raises `AverageIsCandidate` for an own average that its gate did not find better, unless it is named."""
    if row.trust != SELF or row.lineage is None:
        return
    told = gate_of(node.registry.manifest(row.id).record)
    if told is not None and told.verdict == VERDICTS.index("candidate") and accepted not in (row.name, row.id):
        raise AverageIsCandidate(
            f"{row.name} ({row.id}) is a candidate: your held-out rows did not find it better than the base and each of"
            " its leaves alone",
            field="adapter",
        )
