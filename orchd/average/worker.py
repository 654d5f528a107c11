"""The jobs `average` and `average.verify`: a module of all leaves at a time, numpy only."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from orchd.average.adapter import AdapterWriter
from orchd.average.combine import apply, spectrum
from orchd.average.course import RankOf, Recipe, Steps
from orchd.average.decide import Decision
from orchd.average.gram import Matrix, cosines, inner_products, norms, squared_length
from orchd.average.opened import Opened, opened
from orchd.average.recipe import MILLION, TOLERANCE_PPM, share_ppm
from orchd.average.rules import RankRule
from orchd.average.specs import AverageResult, AverageSpec, ModulePreview, VerifyResult, VerifySpec
from orchd.errors import AverageIsZero
from orchd.jobs.context import JobContext

ADAPTER_FOLDER = "adapter"
MAX_TOLERANCE_PPM = 20_000
"""A lineage can't excuse more than this: 2 % off is no rounding."""
COEFFICIENT_PPM = 10
"""Coefficients that a manifest states may differ by this from those computed here: rounding, and BLAS."""


def run(spec: AverageSpec, job: JobContext) -> AverageResult:
    """Write the average of the leaves at the wanted rank into `adapter/` of the job's folder.

    Raises `AverageSpecInvalid`, `RankRuleInvalid`, `TooFewVotes`, `LeafIsZero`, `AdapterConfigRefused`,
    `TensorsRefused`, `ShapesDiffer`, `AverageIsZero`, `AverageOverflows`, `JobCancelled`; then no folder is left. The
    same leaves give the same bytes in whatever order the spec names them.
    """
    started = time.monotonic()
    recipe = Recipe.of(spec.method, spec.rank, spec.strength, spec.adapters, spec.inherited)
    with (
        opened([(leaf.id, leaf.path) for leaf in recipe.leaves]) as leaves,
        _removed_on_error(job.workdir / ADAPTER_FOLDER) as folder,
    ):
        source = Opened(leaves, keep=recipe.passes(write=True) > 1)
        steps = Steps(job, recipe.passes(write=True) * len(source.names), source)
        decision = recipe.decide(source, steps)
        rank_of = recipe.ranks(source, decision, steps)
        writer = AdapterWriter(folder, spec.dtype, recipe.bound(source), source.union.modules)
        try:
            sums = _write(source, decision, rank_of, writer, steps)
            largest, targets = writer.finish(source.union.targets)
        except BaseException:
            writer.abort()
            raise
    back = [recipe.leaves.index(leaf) for leaf in spec.adapters]
    place = {at: index for index, at in enumerate(back)}
    taken = decision.coefficients_ppm
    return AverageResult(
        adapter=ADAPTER_FOLDER,
        method=decision.method,
        rank=largest,
        alpha=float(writer.alpha),
        rslora=False,
        target_modules=targets,
        dtype=spec.dtype,
        parameters=writer.parameters,
        residual_ppm=share_ppm(sums.cut, sums.total),
        tolerance_ppm=TOLERANCE_PPM[spec.dtype],
        weights_ppm=tuple(recipe.ppm[at] for at in back),
        strength_ppm=decision.strength_ppm,
        norms=tuple(float(n) for n in norms(sums.inner)[back]),
        cosines=tuple(tuple(float(c) for c in row) for row in cosines(sums.inner)[back][:, back]),
        seconds=time.monotonic() - started,
        votes=tuple(tuple(sorted(place[at] for at in vote)) for vote in decision.votes.members)
        if decision.votes
        else (),
        coefficients_ppm=tuple(taken[at] for at in back) if taken else (),
        modules=tuple(sums.modules),
    )


def run_verify(spec: VerifySpec, job: JobContext) -> VerifyResult:
    """Recompute how far the claimed average is from its leaves' exact one, without forming either.

    Raises as `run` does. A claim that does not hold is an answer, not an error.
    """
    recipe = Recipe.of(spec.method, spec.rank, spec.strength, spec.leaves)
    folders = [(leaf.id, leaf.path) for leaf in recipe.leaves]
    with opened(folders) as leaves, opened([("the average", spec.claimed)]) as claimed:
        source = Opened(leaves, keep=recipe.passes(write=False) > 1)
        both = Opened([*leaves, *claimed], keep=False)
        steps = Steps(job, recipe.passes(write=False) * len(source.names) + len(both.names))
        decision = recipe.decide(source, steps)
        rank_of = recipe.ranks(source, decision, steps)
        sums = _compare(both, decision, rank_of, steps)
    if not sums.total:
        raise AverageIsZero("the exact average of these leaves is zero; a share of it says nothing")
    tolerance = min(spec.tolerance_ppm, MAX_TOLERANCE_PPM) / MILLION
    error = (max(0.0, sums.distance - sums.cut) / sums.total) ** 0.5
    given = {leaf.id: ppm for leaf, ppm in zip(spec.leaves, spec.coefficients_ppm, strict=False)}
    wrong = _too_large(sums, recipe.rule) or _other_coefficients(given, recipe, decision)
    return VerifyResult(
        relative_error=error,
        tolerance=tolerance,
        holds=error <= tolerance and not wrong,
        distance=(sums.distance / sums.total) ** 0.5,
        residual=(sums.cut / sums.total) ** 0.5,
        detail=wrong or _detail(error, tolerance),
    )


@dataclass
class Sums:
    """Sums over modules of squared Frobenius norms: all directions, those cut off, and the claim's distance.

    `ranks` are those that the rule gives, `claimed` the claim's, `costs` the numbers one direction takes.
    """

    inner: Matrix
    total: float = 0.0
    cut: float = 0.0
    distance: float = 0.0
    ranks: dict[str, int] = field(default_factory=dict)
    claimed: dict[str, int] = field(default_factory=dict)
    costs: dict[str, int] = field(default_factory=dict)
    modules: list[ModulePreview] = field(default_factory=list)


def _write(source: Opened, decision: Decision, rank_of: RankOf, writer: AdapterWriter, steps: Steps) -> Sums:
    sums = Sums(np.zeros((len(source.adapters), len(source.adapters))))
    for module in source.union.modules:
        steps()
        present = source.present(module.name)
        factors = source.factors(module.name)
        grams = source.grams(module.name, factors)
        sums.inner[np.ix_(present, present)] += inner_products(grams)
        found = spectrum(grams, decision.middle(grams, present))
        best = found.best(rank_of(module.name, found))
        sums.total += best.total
        sums.cut += best.cut
        rank = len(best.singular_values)
        sums.modules.append(ModulePreview(name=module.name, rank=rank, residual_ppm=share_ppm(best.cut, best.total)))
        if rank:
            writer.add(module, apply(factors, best))
    steps.finish()
    if not writer.parameters:
        raise AverageIsZero("the average of these adapters is zero everywhere")
    return sums


def _compare(both: Opened, decision: Decision, rank_of: RankOf, steps: Steps) -> Sums:
    """The last of `both` is the claim, the others are the leaves."""
    count = len(both.adapters) - 1
    claimed = both.adapters[count]
    sums = Sums(np.zeros((0, 0)))
    for module in both.union.modules:
        steps()
        name = module.name
        own = [i for i in both.present(name) if i < count]
        grams = both.grams(name)
        leaves = grams.first(len(own))
        middle = np.zeros_like(grams.a)
        if own:
            inside = decision.middle(leaves, own)
            middle[: len(inside), : len(inside)] = inside
            found = spectrum(leaves, inside)
            sums.ranks[name] = rank_of(name, found)
            best = found.best(sums.ranks[name])
            sums.total += best.total
            sums.cut += best.cut
        if name in claimed.modules:
            size = sums.claimed[name] = claimed.modules[name].rank
            np.fill_diagonal(middle[-size:, -size:], -grams.scales[-1])
        sums.costs[name] = module.rows + module.columns
        sums.distance += squared_length(grams, middle)
    steps.finish()
    return sums


def _too_large(sums: Sums, rule: RankRule) -> str:
    """Whether the claim has more than its recipe gives; a rank that rounding decides may be one off in a budget."""
    if rule.kind == "budget":
        allowed = rule.rank * sum(sums.costs[name] for name in sums.ranks)
        taken = sum(rank * sums.costs[name] for name, rank in sums.claimed.items())
        return f"it holds {taken} numbers, its recipe has a budget of {allowed}" if taken > allowed else ""
    for name, rank in sums.claimed.items():
        if rank > sums.ranks.get(name, 0) and rule.kind != "stacked":
            return f"{name} has a larger rank than the recipe's {sums.ranks.get(name, 0)}"
    return ""


def _other_coefficients(given: Mapping[str, int], recipe: Recipe, decision: Decision) -> str:
    found = {leaf.id: ppm for leaf, ppm in zip(recipe.leaves, decision.coefficients_ppm, strict=False)}
    for leaf, ppm in given.items():
        if abs(ppm - found.get(leaf, 0)) > COEFFICIENT_PPM:
            return f"it says that it took {ppm} ppm of {leaf}; {recipe.method} takes {found.get(leaf, 0)}"
    return ""


def _detail(error: float, tolerance: float) -> str:
    if error > tolerance:
        return f"it is {100 * error:.3g} % off, at most {100 * tolerance:.3g} % is rounding"
    return "it is the average of its leaves"


@contextmanager
def _removed_on_error(folder: Path) -> Iterator[Path]:
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
