"""What a federation signs into manifests: increments that say what they go on from, averages that name their recipe.

`extra.round` (`orchd.average.rounds_specs.RoundExtra`) holds what the record has no field for: globals by their recipe,
since each member has bytes, and so an id, of its own for them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from orchd import crafting
from orchd.average.rounds_specs import IncrementPath, RoundExtra, RoundResult, RoundSpec, VerifyRoundSpec, round_extra
from orchd.average.rounds_state import METHOD, Average, Increment, Recipe, Share
from orchd.crafting import Making
from orchd.errors import LeavesUnknown, ParamsInvalid
from orchd.jobs import Job
from orchd.notes import NO_LICENCE, RoundNote
from orchd.records import Leaf, Lineage, Manifest, Verified, parse_id, text_id
from orchd.records.ids import ADAPTER, FEDERATION
from orchd.records.manifest import Round
from orchd.registry import ADMITTED, AdapterRow, Admission, Registry

if TYPE_CHECKING:
    from orchd.node import Node


class RoundAverageNote(msgspec.Struct, frozen=True, kw_only=True):
    """What a round's average is signed with. `previous` is the adapter of the global before it ("": the base); `ages`,
    in rounds, are in the order of the job's increments."""

    name: str
    base: str
    federation: str
    number: int
    recipe: Recipe
    previous: str
    ages: tuple[int, ...]
    licence: str = NO_LICENCE


class RoundAveraged(msgspec.Struct, frozen=True, kw_only=True):
    """`cosines` are between the increments, in the order of `shares`; `residual_ppm` is what the rank cut off."""

    adapter: AdapterRow
    recipe: str
    shares: tuple[Share, ...]
    cosines: tuple[tuple[float, ...], ...]
    residual_ppm: int
    seconds: float


def signed_parts(note: RoundNote | None, parts: dict[str, Any]) -> dict[str, Any]:
    """The fields of a manifest that a round fills in, beside these."""
    if note is None:
        return parts
    told = RoundExtra(start=bytes.fromhex(note.start))
    extra = parts.get("extra", {}) | {"round": _extra(told)}
    return {**parts, "round": _round(note.federation, note.number), "extra": extra}


async def finish(node: Node, job: Job, result: RoundResult, workdir: Path) -> RoundAveraged:
    """Sign and admit a round's average."""
    note = msgspec.convert(job.note, RoundAverageNote)
    spec = msgspec.convert(job.spec, RoundSpec)
    admission = await trio.to_thread.run_sync(partial(_admit, node, note, result, workdir))
    if admission.new:
        node.tell_admitted(admission, job.id)
    shares = tuple(
        Share(author=one.author, adapter=one.id, weight_ppm=one.weight_ppm, taken_ppm=taken, age=age, vote=vote)
        for one, taken, age, vote in zip(spec.increments, result.taken_ppm, note.ages, result.votes, strict=True)
    )
    return RoundAveraged(
        adapter=admission.row,
        recipe=note.recipe.digest,
        shares=shares,
        cosines=result.cosines,
        residual_ppm=result.residual_ppm,
        seconds=result.seconds,
    )


def _admit(node: Node, note: RoundAverageNote, result: RoundResult, workdir: Path) -> Admission:
    recipe = note.recipe
    lineage = Lineage(
        recipe=bytes.fromhex(recipe.digest),
        method=METHOD,
        rank=recipe.rank,
        strength_ppm=recipe.strength_ppm,
        leaves=tuple(Leaf(id=parse_id(leaf, ADAPTER), weight_ppm=ppm) for leaf, ppm in recipe.leaves),
        previous=parse_id(note.previous, ADAPTER) if note.previous else None,
        outer=recipe.outer,
        residual_ppm=result.residual_ppm,
        tolerance_ppm=result.tolerance_ppm,
    )
    told = RoundExtra(
        previous=bytes.fromhex(recipe.previous),
        before=bytes.fromhex(recipe.before),
        momentum_ppm=recipe.momentum_ppm,
    )
    making = Making(
        name=note.name,
        description=f"Round {note.number} of a federation: the global adapter of {len(recipe.leaves)} members",
        base=node.registry.base(note.base),
        created_ms=node.clock(),
        licence=note.licence,
    )
    return crafting.admit(
        node.registry,
        node.identity,
        making,
        workdir / result.adapter,
        origin="averaged",
        lineage=lineage,
        round=_round(note.federation, note.number),
        extra={"round": _extra(told)},
    )


def _round(federation: str, number: int) -> Round:
    return Round(federation=parse_id(federation, FEDERATION), number=number)


def _extra(told: RoundExtra) -> dict[str, Any]:
    """As a record has it: bytes stay bytes."""
    return msgspec.structs.asdict(told)


def heard(manifest: Verified[Manifest], federation: str) -> Increment | Average | None:
    """What a manifest is in a federation; None for what has nothing to do with it, or contradicts itself."""
    record, told = manifest.record, round_extra(manifest.record.extra)
    if record.round is None or told is None or text_id(FEDERATION, record.round.federation) != federation:
        return None
    id, author, number = manifest.id, manifest.author, record.round.number
    if record.lineage is None:
        made = Increment(adapter=id, author=author, round=number, start=told.start.hex())
        return made if record.training is not None else None
    recipe = Recipe(
        leaves=tuple(sorted((text_id(ADAPTER, leaf.id), leaf.weight_ppm) for leaf in record.lineage.leaves)),
        previous=told.previous.hex(),
        before=told.before.hex(),
        momentum_ppm=told.momentum_ppm,
        strength_ppm=record.lineage.strength_ppm,
        rank=record.lineage.rank,
    )
    sound = record.lineage.method == METHOD and recipe.digest == record.lineage.recipe.hex()
    return Average(adapter=id, author=author, round=number, recipe=recipe) if sound else None


def verify_spec(registry: Registry, manifest: Verified[Manifest]) -> VerifyRoundSpec:
    """What to compare a round's average with: its increments, what they go on from, the globals before it, of which any
    member's bytes will do. Raises `LeavesUnknown` naming the first that is not here."""
    found = heard(manifest, text_id(FEDERATION, manifest.record.round.federation)) if manifest.record.round else None
    lineage = manifest.record.lineage
    if not isinstance(found, Average) or lineage is None:
        hint = f"`orchctl adapter show {manifest.id}` shows what it says of itself."
        raise ParamsInvalid(f"{manifest.record.name} does not say which round it is of", hint=hint, field="adapter")

    def folder(recipe: str) -> str | None:
        return str(registry.adapter_folder(_global_of(registry, recipe))) if recipe else None

    increments = []
    for leaf, ppm in found.recipe.leaves:
        if not registry.has_adapter(leaf):
            raise LeavesUnknown(f"the leaf {leaf} is not here", field="adapters")
        told = registry.manifest(leaf)
        start = round_extra(told.record.extra)
        path = str(registry.adapter_folder(leaf))
        increments.append(
            IncrementPath(
                id=leaf, path=path, start=folder(start.start.hex() if start else ""), weight_ppm=ppm, author=told.author
            )
        )
    recipe = found.recipe
    spec = RoundSpec(
        increments=tuple(increments),
        previous=folder(recipe.previous),
        before=folder(recipe.before),
        momentum_ppm=recipe.momentum_ppm,
        strength_ppm=recipe.strength_ppm,
        rank=recipe.rank,
    )
    claimed = str(registry.adapter_folder(manifest.id))
    return VerifyRoundSpec(claimed=claimed, round=spec, tolerance_ppm=lineage.tolerance_ppm)


def _global_of(registry: Registry, recipe: str) -> str:
    """An admitted adapter here by this recipe, one's own first."""
    sql = "SELECT digest, author FROM adapter WHERE state = ? AND shown ->> '$.lineage.recipe' = ? ORDER BY digest"
    rows = registry.index.read(sql, (ADMITTED, recipe))
    if not rows:
        raise LeavesUnknown(f"no global adapter of the recipe {recipe[:16]}… is here", field="adapters")
    return min(rows, key=lambda row: (row[1] != registry.author, row[0]))[0]  # type: ignore[no-any-return]
