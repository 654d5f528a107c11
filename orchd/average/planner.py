"""The job `average.plan`: what an average of these adapters would do, take and cost, before anything is written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from orchd.average.adapter import Adapter
from orchd.average.combine import apply, spectrum
from orchd.average.course import Recipe, Steps
from orchd.average.decide import Decision, wanted_ppm
from orchd.average.gram import Matrix, cosines, norms
from orchd.average.likeness import Likeness, likeness
from orchd.average.opened import Opened, Union
from orchd.average.recipe import MILLION, share_ppm
from orchd.average.rules import AUTO, METHODS, RankRule
from orchd.average.specs import AveragePlan, ModulePreview, Planned, PlanSpec, Preview, Refusal, WeightedAdapter
from orchd.average.votes import COPY_COSINE, MAX_SHARE, Votes, cast_votes, useless
from orchd.errors import AverageSpecInvalid, OrchdError, TensorsRefused
from orchd.jobs.context import JobContext


def run_plan(spec: PlanSpec, job: JobContext) -> AveragePlan:
    """Goes through the leaves once; with `through` once more, computing all and writing nothing.

    What can't be averaged is among `refused` with its reason. Raises `AverageSpecInvalid` when fewer than two are left,
    and as `orchd.average.worker.run` does.
    """
    wanted, names = spec.average, dict(zip((leaf.id for leaf in spec.average.adapters), spec.names, strict=False))
    Recipe.of(wanted.method, wanted.rank, wanted.strength, wanted.adapters, wanted.inherited)
    refused = list(spec.refused)
    with ExitStack() as stack:
        leaves, adapters = _openable(wanted.adapters, names, refused, stack)
        _check_left(leaves, refused)
        begun = time.monotonic()
        passes = 1 + spec.through * (1 + (RankRule.parse(wanted.rank).kind == "budget"))
        source, inner, steps = _looked_through(leaves, adapters, names, refused, job, passes)
        looked = time.monotonic() - begun
        if zero := useless(inner):
            reason = "it is zero everywhere, or its numbers are no finite ones"
            refused += [_refusal(leaves[at], names, reason) for at in zero]
            kept = [at for at in range(len(leaves)) if at not in zero]
            leaves, inner = [leaves[at] for at in kept], inner[np.ix_(kept, kept)]
            _check_left(leaves, refused)
            source = Opened([adapters[at] for at in kept], keep=False)
        recipe = Recipe.of(wanted.method, wanted.rank, wanted.strength, leaves, wanted.inherited)
        votes = cast_votes(inner, [leaf.author for leaf in recipe.leaves], recipe.ppm)
        alike, decision = likeness(inner, votes), recipe.decided(inner)
        seconds = looked * (recipe.passes(write=True) - 1) + _writing(source, recipe, decision)
        preview = _preview(source, recipe, decision, steps) if spec.through else None
        steps.finish()
    return AveragePlan(
        method=decision.method,
        rank=recipe.rule.text,
        strength_ppm=decision.strength_ppm,
        reason=_reason(wanted.method, decision, alike),
        likeness=alike.kind,
        cosine=alike.mean,
        leaves=_planned(recipe, decision, votes, names, inner),
        cosines=tuple(tuple(float(c) for c in row) for row in cosines(inner)),
        refused=tuple(refused),
        warnings=tuple(_warnings(recipe, decision, votes, alike)),
        bytes=sum(map(_size, leaves)),
        seconds=seconds,
        preview=preview,
        asked=wanted.method,
        asked_strength=wanted.strength,
    )


def _planned(
    recipe: Recipe, decision: Decision, votes: Votes, names: dict[str, str], inner: Matrix
) -> tuple[Planned, ...]:
    taken = decision.coefficients_ppm or (None,) * len(recipe.leaves)
    vote_of = {at: number for number, inside in enumerate(votes.members, 1) for at in inside}
    return tuple(
        Planned(
            id=leaf.id,
            name=names.get(leaf.id, ""),
            author=leaf.author,
            vote=vote_of[at],
            weight_ppm=recipe.ppm[at],
            taken_ppm=taken[at],
            norm=float(norms(inner)[at]),
            size=_size(leaf),
        )
        for at, leaf in enumerate(recipe.leaves)
    )


def _openable(
    leaves: Sequence[WeightedAdapter], names: dict[str, str], refused: list[Refusal], stack: ExitStack
) -> tuple[list[WeightedAdapter], list[Adapter]]:
    """Those that can be averaged, in the order of their ids; the others go among `refused`.

    Where shapes differ, those that come first decide.
    """
    found: list[WeightedAdapter] = []
    adapters: list[Adapter] = []
    for leaf in sorted(leaves, key=lambda leaf: leaf.id):
        try:
            adapter = stack.enter_context(Adapter(Path(leaf.path), leaf.id))
            Union.of([*adapters, adapter])
        except OrchdError as error:
            refused.append(_refusal(leaf, names, error.message))
        except OSError as error:
            refused.append(_refusal(leaf, names, f"its files can't be read: {error.strerror}"))
        else:
            found.append(leaf)
            adapters.append(adapter)
    return found, adapters


def _looked_through(
    leaves: list[WeightedAdapter],
    adapters: list[Adapter],
    names: dict[str, str],
    refused: list[Refusal],
    job: JobContext,
    passes: int,
) -> tuple[Opened, Matrix, Steps]:
    """The inner products of those whose numbers are finite; the others go from `leaves` among `refused`.

    One that is found in the middle has the rest gone through again.
    """
    while True:
        _check_left(leaves, refused)
        source = Opened(adapters, keep=True)
        steps = Steps(job, len(source.names) * passes, source)
        try:
            return source, source.inner(steps), steps
        except TensorsRefused as error:
            at = next((n for n, leaf in enumerate(leaves) if error.message.startswith(f"{leaf.id}: ")), None)
            if at is None:
                raise
            refused.append(_refusal(leaves[at], names, error.message.removeprefix(f"{leaves[at].id}: ")))
            del leaves[at], adapters[at]


def _refusal(leaf: WeightedAdapter, names: dict[str, str], reason: str) -> Refusal:
    return Refusal(id=leaf.id, name=names.get(leaf.id, ""), reason=reason)


def _check_left(leaves: Sequence[WeightedAdapter], refused: Sequence[Refusal]) -> None:
    if len(leaves) < 2:
        told = "; ".join(f"{one.name or one.id}: {one.reason}" for one in refused)
        raise AverageSpecInvalid(f"{len(leaves)} of these adapters can be averaged ({told})", field="adapters")


def _size(leaf: WeightedAdapter) -> int:
    return sum(file.stat().st_size for file in Path(leaf.path).glob("*.safetensors"))


def _writing(source: Opened, recipe: Recipe, decision: Decision) -> float:
    """Seconds of the last pass, judged by one module: it reads, finds the singular values and makes the factors."""
    largest = max(source.union.modules, key=lambda module: module.rows + module.columns)
    begun = time.monotonic()
    factors = source.factors(largest.name)
    grams = source.grams(largest.name, factors)
    found = spectrum(grams, decision.middle(grams, source.present(largest.name)))
    apply(factors, found.best(recipe.rule.rank))
    one = time.monotonic() - begun
    return one * sum(m.rows + m.columns for m in source.union.modules) / (largest.rows + largest.columns)


def _preview(source: Opened, recipe: Recipe, decision: Decision, steps: Steps) -> Preview:
    rank_of = recipe.ranks(source, decision, steps)
    rows, numbers, cut, total = [], 0, 0.0, 0.0
    for module in source.union.modules:
        steps()
        grams = source.grams(module.name)
        found = spectrum(grams, decision.middle(grams, source.present(module.name)))
        best = found.best(rank_of(module.name, found))
        cut, total = cut + best.cut, total + best.total
        rank = len(best.singular_values)
        numbers += rank * (module.rows + module.columns)
        rows.append(ModulePreview(name=module.name, rank=rank, residual_ppm=share_ppm(best.cut, best.total)))
    return Preview(
        rank=max(row.rank for row in rows),
        parameters=numbers,
        residual_ppm=share_ppm(cut, total),
        modules=tuple(rows),
    )


def _reason(asked: str, decision: Decision, alike: Likeness) -> str:
    use = METHODS[decision.method].use
    return use if asked != AUTO else f"they are {alike.kind}; this is for {use}"


def _warnings(recipe: Recipe, decision: Decision, votes: Votes, alike: Likeness) -> list[str]:
    """When an average is the wrong tool, what was changed, and what nothing here defends against."""
    told = []
    if alike.kind == "unlike":
        told.append(
            "they learnt different things: an average keeps a part of each at most, and the adapter made for a"
            " question is better at it than any average (measured: loss 1.41 against 1.79)"
        )
    if alike.kind == "one vote":
        told.append(
            f"all of them are near-copies of one another (cosine above {COPY_COSINE:g}): an average adds little"
        )
    for one, other in alike.opposite:
        pair = " and ".join(recipe.leaves[votes.members[vote][0]].id for vote in (one, other))
        told.append(f"{pair} work against each other: what one has learnt, the other takes back")
    if len(votes.members) == 2 and len({leaf.author for leaf in recipe.leaves}) > 1:
        told.append("with two votes nobody can be outvoted: a bad one has half")
    if decision.strength_ppm < wanted_ppm(decision.method, recipe.strength, recipe.inherited):
        told.append(f"the strength is lowered to {decision.strength_ppm / MILLION:g}: no vote may get further")
    largest = max(decision.coefficients_ppm, default=0)
    if len(votes.members) > 2 and largest > round(MAX_SHARE * MILLION) + 1:
        told.append(f"one adapter makes up {largest / MILLION:.0%}: a backdoor in it comes through")
    told.append("the figures see size and direction only: a bad adapter of ordinary size gets in; test the result")
    return told
