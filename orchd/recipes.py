"""Averages of others are recomputed from their leaves, by themselves, as soon as all of these are here.

An average that comes in when its leaves are here stands in quarantine until the job `average.verify` has compared the
two. If it is what its recipe gives it is let in; if not, it is thrown out and refused with the figure. One that came
before its leaves did was let in, as nobody could tell: it is compared when the last of them comes, and goes to
quarantine if it lied. A comparison that fails of something else decides nothing: it is made again at the next start.
Averages of this node's own are not compared with what made them, and of a round there is more to compare than leaves.

A crash leaves nothing undone: that an average waits is in the journal with its verdict, and so is what came of it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from orchd.average.recipe import MILLION, recipe_digest
from orchd.average.rounds_specs import round_extra
from orchd.average.rules import parse_recipe
from orchd.average.specs import AverageExtra, VerifyResult, VerifySpec, WeightedAdapter
from orchd.errors import (
    AdapterConfigRefused,
    AverageIsZero,
    AverageOverflows,
    AverageSpecInvalid,
    LeafIsZero,
    OrchdError,
    RankRuleInvalid,
    RecipeMismatch,
    ShapesDiffer,
    TensorsRefused,
    TooFewVotes,
)
from orchd.jobs import ErrorInfo, State
from orchd.records import Lineage, Manifest, text_id
from orchd.records.ids import ADAPTER
from orchd.registry import REMOVED, AdapterRow, Registry, upkeep
from orchd.registry.admission import Candidate
from orchd.registry.local import put
from orchd.registry.local_rows import RecipeCheck, Release, Verdict
from orchd.registry.trust import SELF

if TYPE_CHECKING:
    from orchd.node import Node

LOG = logging.getLogger(__name__)
#: With this begins the reason against what waits.
WAITS = "an average that waits until it was recomputed from its leaves"
_WAITING = f"contains(array_to_string(reasons, chr(10)), '{WAITS}')"
#: Refusals that are remembered for those who wait for them.
REMEMBERED = 100
#: What the recomputation says of adapters whose recipe can't be followed. Anything else is no fault of theirs.
IMPOSSIBLE: frozenset[str] = frozenset(
    kind.__name__
    for kind in (
        AdapterConfigRefused,
        AverageIsZero,
        AverageOverflows,
        AverageSpecInvalid,
        LeafIsZero,
        RankRuleInvalid,
        ShapesDiffer,
        TensorsRefused,
        TooFewVotes,
    )
)
#: Averages of leaves that are all here, and of which nothing was found out yet.
_UNTOLD = (
    "SELECT e.child FROM edge e JOIN adapter c ON c.digest = e.child LEFT JOIN adapter p ON p.digest = e.parent"
    " WHERE e.kind = 'leaf' AND c.state <> 'removed' AND ($1 = '' OR e.child IN"
    " (SELECT child FROM edge WHERE parent = $1 AND kind = 'leaf'))"
    " AND e.child NOT IN (SELECT adapter FROM recipe_check)"
    " GROUP BY e.child HAVING count(*) = count(p.digest) ORDER BY e.child"
)


class Recipes:
    """Started by the daemon. `check` stands at the door, `settled` is for who has just let an average in."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._one = trio.Lock()
        self._refused: dict[str, str] = {}
        node.registry.also = (*node.registry.also, self.check)

    def check(self, candidate: Candidate) -> str | None:
        """At the door. Raises `RecipeMismatch` for what contradicts itself, else gives the reason to wait, if any."""
        registry, manifest = self._node.registry, candidate.manifest
        self._refused.pop(manifest.id, None)
        lineage = to_compare(registry, manifest.record, manifest.author)
        if lineage is None:
            return None
        if not recipe_matches(manifest.record):
            raise RecipeMismatch("the digest of its recipe is not that of its leaves, weights and settings")
        return None if missing_leaves(registry, lineage) else WAITS

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled: what waited when the daemon ended, and what adapters that come in are leaves of."""
        heard = self._node.events.subscribe(kinds=("adapter.admitted",))
        try:
            task_status.started()
            await self._look("")
            async for event in heard:
                await self._settle(event.data["id"])
                await self._look(event.data["id"])
        finally:
            heard.close()

    async def settled(self, id: str) -> AdapterRow:
        """The adapter, when it waits no more. Raises `RecipeMismatch` when it was thrown out."""
        await self._settle(id)
        if (reason := self._refused.get(id)) is not None:
            raise RecipeMismatch(reason)
        return await trio.to_thread.run_sync(self._node.registry.adapter, id)

    async def _look(self, leaf: str) -> None:
        """Compare what waits, and averages that have `leaf` in them (all, when empty), if their leaves are here."""
        registry = self._node.registry
        waiting = await trio.to_thread.run_sync(registry.local.where, Verdict, _WAITING) if not leaf else []
        untold = [row[0] for row in await trio.to_thread.run_sync(registry.index.read, _UNTOLD, (leaf,))]
        for id in dict.fromkeys([*(row.adapter for row in waiting), *untold]):
            await self._settle(id, waits=False)

    async def _settle(self, id: str, *, waits: bool = True) -> None:
        """Compare one average, if it is to be; with `waits` only one that waits for it."""
        async with self._one:
            try:
                spec = await trio.to_thread.run_sync(self._spec, id, waits)
                if spec is None:
                    return
                found = await self._compared(id, spec)
            except OrchdError as error:
                LOG.warning("%s could not be recomputed from its leaves, and is again at the next start: %s", id, error)
                return
            refusal = await trio.to_thread.run_sync(self._keep, id, found)
            if refusal:
                said = {"reason": refusal, "code": RecipeMismatch.code, "name": RecipeMismatch.__name__}
                self._node.events.emit("adapter.refused", {"id": id, "peer": ""} | said)
            told = {"id": id, "holds": found.holds, "relative_error": found.relative_error}
            self._node.events.emit("adapter.recomputed", told | {"tolerance": found.tolerance, "detail": found.detail})

    def _spec(self, id: str, waits: bool) -> VerifySpec | None:
        """What to compare; None where there is nothing to, or nothing to compare with."""
        registry = self._node.registry
        verdict = registry.local.get(Verdict, id)
        if verdict is None or registry.rows_of([id])[0].state == REMOVED:
            return None
        manifest, is_waiting = registry.manifest(id), any(one.startswith(WAITS) for one in verdict.reasons)
        lineage = to_compare(registry, manifest.record, manifest.author)
        if lineage is None or missing_leaves(registry, lineage):
            if is_waiting:  # a leaf is gone again
                self._let_in(verdict)
            return None
        return verify_spec(registry, id) if is_waiting or not waits else None

    async def _compared(self, id: str, spec: VerifySpec) -> VerifyResult:
        """Raises what is no fault of the average."""

        async def keep(result: VerifyResult, _: object) -> VerifyResult:  # so that a restart does not do it twice
            return result

        node = self._node
        job = await node.jobs.submit("average.verify", spec, title=f"recompute {id[:12]}", on_result=keep)
        ended = await node.jobs.wait(job.id)
        if ended.state is State.DONE:
            return msgspec.convert(ended.result, VerifyResult)
        return _impossible(ended.error, spec)

    def _keep(self, id: str, found: VerifyResult) -> str:
        """In the journal what came of it, and what follows: let in, kept in quarantine, or thrown out.

        The reason for which it was thrown out, else empty.
        """
        registry = self._node.registry
        verdict = registry.local.get(Verdict, id)
        if verdict is None:
            return ""
        row = RecipeCheck(
            adapter=id,
            holds=found.holds,
            relative_error=found.relative_error,
            tolerance=found.tolerance,
            since=registry.clock(),
        )
        reason = "" if found.holds else f"it is not the average that it says: {found.detail}"
        was_new = any(one.startswith(WAITS) for one in verdict.reasons)
        if reason and was_new and registry.local.get(Release, id) is None:
            self._refuse(id, reason)
            return reason
        registry.local.act("adapter.recomputed", put(row))
        self._let_in(verdict, reason)
        return ""

    def _let_in(self, verdict: Verdict, reason: str = "") -> None:
        """It waits no more; `reason` stands against it instead, if there is one. The user may overrule that."""
        registry = self._node.registry
        others = [one for one in verdict.reasons if not one.startswith(WAITS)]
        if (kept := (*others, *([reason] if reason else []))) != verdict.reasons:
            registry.local.act("adapter.recomputed", put(msgspec.structs.replace(verdict, reasons=kept)))
            registry.restand([verdict.adapter])

    def _refuse(self, id: str, reason: str) -> None:
        """Nothing stays of it. Whoever waits for it is told."""
        registry = self._node.registry
        blobs = [entry.sha256.hex() for entry in registry.manifest(id).record.files]
        upkeep.throw_out(registry, [id], "adapter.refuse", blobs)
        self._refused[id] = reason
        for old in list(self._refused)[:-REMEMBERED]:
            del self._refused[old]


def _impossible(error: ErrorInfo | None, spec: VerifySpec) -> VerifyResult:
    """A recipe that can't be followed gives no average. Raises any other error."""
    if error is None or error.name not in IMPOSSIBLE:
        raise OrchdError("the job was stopped" if error is None else error.message)
    tolerance = spec.tolerance_ppm / MILLION
    return VerifyResult(
        relative_error=1.0, tolerance=tolerance, holds=False, distance=1.0, residual=0.0, detail=error.message
    )


# ---- what a lineage says -----------------------------------------------------------------------------------------


def to_compare(registry: Registry, manifest: Manifest, author: str) -> Lineage | None:
    """The lineage of an average that is to be compared with its leaves: somebody else's, by a method known here."""
    lineage = manifest.lineage
    if lineage is None or lineage.previous is not None or registry.trust(author) == SELF:
        return None
    try:
        parse_recipe(lineage.method, lineage.rank)
    except OrchdError:  # a newer orchd's
        return None
    return lineage


def missing_leaves(registry: Registry, lineage: Lineage) -> list[str]:
    """Ids of the leaves that are not here with all their files."""
    ids = [text_id(ADAPTER, leaf.id) for leaf in lineage.leaves]
    return [id for id in ids if not registry.is_whole(id)]


def recipe_matches(manifest: Manifest) -> bool:
    """Whether the recipe's digest in a lineage is that of what the lineage says."""
    lineage = manifest.lineage
    if lineage is None:
        return False
    return lineage.recipe == recipe_digest(
        [(leaf.id, leaf.weight_ppm) for leaf in lineage.leaves],
        method=lineage.method,
        rank=lineage.rank,
        strength_ppm=lineage.strength_ppm,
        dtype=manifest.adapter.dtype,
        previous=_previous(manifest),
        outer=lineage.outer,
    )


def _previous(manifest: Manifest) -> bytes | None:
    """What a recipe has of the global before: in a round that one's recipe, since each member has bytes of its own."""
    found = round_extra(manifest.extra) if manifest.round is not None else None
    if found is not None:
        return found.previous or None
    return manifest.lineage.previous if manifest.lineage else None


def coefficients(manifest: Manifest) -> tuple[int, ...]:
    """What an average says that it took of each leaf, in ppm; nothing where it does not."""
    try:
        return msgspec.convert(manifest.extra.get("average", {}), AverageExtra).coefficients_ppm
    except msgspec.ValidationError:
        return ()


def verify_spec(registry: Registry, id: str) -> VerifySpec:
    """What to compare an average with whose leaves are here. Raises `AdapterUnknown`, `AverageSpecInvalid`."""
    manifest = registry.manifest(id).record
    lineage = manifest.lineage
    assert lineage is not None
    _, rule = parse_recipe(lineage.method, lineage.rank)
    ids = [text_id(ADAPTER, leaf.id) for leaf in lineage.leaves]
    authors = {row.id: row.author for row in registry.rows_of(ids)}
    return VerifySpec(
        claimed=str(registry.adapter_folder(id)),
        leaves=tuple(
            WeightedAdapter(id=one, path=str(registry.adapter_folder(one)), weight=leaf.weight_ppm, author=authors[one])
            for one, leaf in zip(ids, lineage.leaves, strict=True)
        ),
        rank=rule.text,
        method=lineage.method.partition("/")[0],
        strength=lineage.strength_ppm / MILLION,
        tolerance_ppm=lineage.tolerance_ppm,
        coefficients_ppm=coefficients(manifest),
    )


def told(registry: Registry, row: AdapterRow) -> str:
    """Whether an average of somebody else was compared with its leaves, in words; empty where there is nothing to."""
    manifest = registry.manifest(row.id)
    lineage = to_compare(registry, manifest.record, manifest.author)
    if lineage is None:
        return ""
    if (found := registry.local.get(RecipeCheck, row.id)) is not None:
        verdict = "it is their average" if found.holds else "it is NOT their average"
        return f"{verdict}: {100 * found.relative_error:.3g} % off, at most {100 * found.tolerance:.3g} % is rounding"
    missing = missing_leaves(registry, lineage)
    return f"not yet, {len(missing)} of its leaves are not here: {', '.join(missing)}" if missing else "not yet"
