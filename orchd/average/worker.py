"""The jobs `average` and `average.verify`: a module of all leaves at a time, numpy only."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchd.average.adapter import Adapter, AdapterWriter, Module
from orchd.average.combine import apply, best_rank, mean_matrix
from orchd.average.gram import cosines, grams_of, inner_products, norms, squared_norm
from orchd.average.recipe import MILLION, TOLERANCE_PPM, check_plan, strength_in_ppm, weights_ppm
from orchd.average.specs import (
    AverageResult,
    AverageSpec,
    VerifyResult,
    VerifySpec,
    WeightedAdapter,
)
from orchd.errors import AverageIsZero, ShapesDiffer
from orchd.jobs.context import JobContext

ADAPTER_FOLDER = "adapter"
MAX_TOLERANCE_PPM = 20_000
"""A lineage can't excuse more than this: 2 % off is no rounding."""


def run(spec: AverageSpec, job: JobContext) -> AverageResult:
    """Write the exact average of the leaves at the wanted rank into `adapter/` of the job's folder.

    Raises `AverageSpecInvalid`, `AdapterConfigRefused`, `TensorsRefused`, `ShapesDiffer`, `AverageIsZero`,
    `AverageOverflows`, `JobCancelled`; then no folder is left. The same leaves give the same bytes in whatever order
    the spec names them.
    """
    started = time.monotonic()
    check_plan(spec.method, spec.rank)
    strength_ppm = strength_in_ppm(spec.strength)
    ppm = weights_ppm([(leaf.id, leaf.weight) for leaf in spec.adapters])
    ordered = sorted(spec.adapters, key=lambda leaf: leaf.id)
    weights = _weights(ordered, ppm, strength_ppm)
    with _opened([leaf.path for leaf in ordered]) as leaves, _removed_on_error(job.workdir / ADAPTER_FOLDER) as folder:
        union = Union.of(leaves)
        rank = min(spec.rank, max(sum(m.rank for m in found) for found in union.found.values()))
        writer = AdapterWriter(folder, spec.dtype, rank, union.modules)
        try:
            sums = _write(leaves, union, weights, spec.rank, writer, job)
            largest, targets = writer.finish(union.targets)
        except BaseException:
            writer.abort()
            raise
    back = [ordered.index(leaf) for leaf in spec.adapters]
    return AverageResult(
        adapter=ADAPTER_FOLDER,
        rank=largest,
        alpha=float(largest),
        rslora=False,
        target_modules=targets,
        dtype=spec.dtype,
        parameters=writer.parameters,
        residual_ppm=round(MILLION * (sums.cut / sums.total) ** 0.5),
        tolerance_ppm=TOLERANCE_PPM[spec.dtype],
        weights_ppm=tuple(ppm[leaf.id] for leaf in spec.adapters),
        strength_ppm=strength_ppm,
        norms=tuple(float(n) for n in norms(sums.inner)[back]),
        cosines=tuple(tuple(float(c) for c in row) for row in cosines(sums.inner)[back][:, back]),
        seconds=time.monotonic() - started,
    )


def run_verify(spec: VerifySpec, job: JobContext) -> VerifyResult:
    """Recompute how far the claimed average is from its leaves' exact one, without forming either.

    Raises `AverageSpecInvalid`, `AdapterConfigRefused`, `TensorsRefused`, `ShapesDiffer`, `AverageIsZero`,
    `JobCancelled`.
    A claim that does not hold is an answer, not an error.
    """
    check_plan(spec.method, spec.rank)
    ppm = weights_ppm([(leaf.id, leaf.weight) for leaf in spec.leaves])
    ordered = sorted(spec.leaves, key=lambda leaf: leaf.id)
    weights = _weights(ordered, ppm, strength_in_ppm(spec.strength))
    with _opened([spec.claimed]) as (claimed,), _opened([leaf.path for leaf in ordered]) as leaves:
        union = Union.of([*leaves, claimed])
        sums = _compare(claimed, leaves, union, weights, spec.rank, job)
    if not sums.total:
        raise AverageIsZero("the exact average of these leaves is zero; a share of it says nothing")
    tolerance = min(spec.tolerance_ppm, MAX_TOLERANCE_PPM) / MILLION
    error = (max(0.0, sums.distance - sums.cut) / sums.total) ** 0.5
    too_large = [m.name for m in claimed.modules.values() if m.rank > spec.rank]
    return VerifyResult(
        relative_error=error,
        tolerance=tolerance,
        holds=error <= tolerance and not too_large,
        distance=(sums.distance / sums.total) ** 0.5,
        residual=(sums.cut / sums.total) ** 0.5,
        detail=_detail(error, tolerance, too_large, spec.rank),
    )


@dataclass(frozen=True)
class Union:
    """All modules that any of the adapters has. `found[name]` are the modules of that name, of equal shape."""

    modules: tuple[Module, ...]
    found: dict[str, list[Module]]
    targets: tuple[str, ...]

    @classmethod
    def of(cls, adapters: Sequence[Adapter]) -> Union:
        """Raises `ShapesDiffer` naming the module."""
        found: dict[str, list[Module]] = {}
        for adapter in adapters:
            for module in adapter.modules.values():
                found.setdefault(module.name, []).append(module)
        for name, same in found.items():
            shapes = {(m.rows, m.columns, m.embedding) for m in same}
            if len(shapes) > 1:
                listed = " and ".join(sorted(f"{rows}×{columns}" for rows, columns, _ in shapes))
                raise ShapesDiffer(f"the adapters' shapes for {name[:120]} differ: {listed}")
        if not found:
            raise AverageIsZero("the adapters have no module at all")
        return cls(
            modules=tuple(found[name][0] for name in sorted(found)),
            found=found,
            targets=tuple(target for adapter in adapters for target in adapter.target_modules),
        )


@dataclass
class Sums:
    """Sums over modules of squared Frobenius norms: all directions, those cut off, and the claim's distance."""

    inner: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    total: float = 0.0
    cut: float = 0.0
    distance: float = 0.0


def _write(
    leaves: Sequence[Adapter],
    union: Union,
    weights: Sequence[float],
    rank: int,
    writer: AdapterWriter,
    job: JobContext,
) -> Sums:
    sums = Sums(np.zeros((len(leaves), len(leaves))))
    for done, module in enumerate(union.modules):
        job.progress(done, len(union.modules), "modules")
        present = [i for i, leaf in enumerate(leaves) if module.name in leaf.modules]
        factors = [leaves[i].factors(module.name) for i in present]
        grams = grams_of(factors)
        sums.inner[np.ix_(present, present)] += inner_products(grams)
        middle = mean_matrix(grams.ranks, grams.scales, [weights[i] for i in present])
        best = best_rank(grams, middle, rank)
        sums.total += best.total
        sums.cut += best.cut
        if len(best.singular_values):
            writer.add(module, apply(factors, best))
    job.progress(len(union.modules), len(union.modules), "modules")
    if not writer.parameters:
        raise AverageIsZero("the average of these adapters is zero everywhere")
    return sums


def _compare(
    claimed: Adapter,
    leaves: Sequence[Adapter],
    union: Union,
    weights: Sequence[float],
    rank: int,
    job: JobContext,
) -> Sums:
    sums = Sums(np.zeros((0, 0)))
    everyone, signs = [*leaves, claimed], [*(-w for w in weights), 1.0]
    for done, module in enumerate(union.modules):
        job.progress(done, len(union.modules), "modules")
        present = [i for i, adapter in enumerate(everyone) if module.name in adapter.modules]
        grams = grams_of([everyone[i].factors(module.name) for i in present])
        sums.distance += squared_norm(inner_products(grams), [signs[i] for i in present])
        own = [weights[i] for i in present if i < len(leaves)]
        if own:
            honest = grams.first(len(own))
            best = best_rank(honest, mean_matrix(honest.ranks, honest.scales, own), rank)
            sums.total += best.total
            sums.cut += best.cut
    job.progress(len(union.modules), len(union.modules), "modules")
    return sums


def _weights(leaves: Sequence[WeightedAdapter], ppm: dict[str, int], strength_ppm: int) -> list[float]:
    return [ppm[leaf.id] / MILLION * (strength_ppm / MILLION) for leaf in leaves]


def _detail(error: float, tolerance: float, too_large: Sequence[str], rank: int) -> str:
    if too_large:
        return f"{too_large[0]} has a larger rank than the recipe's {rank}"
    if error > tolerance:
        return f"it is {100 * error:.3g} % off, at most {100 * tolerance:.3g} % is rounding"
    return "it is the average of its leaves"


@contextmanager
def _opened(paths: Sequence[str]) -> Iterator[list[Adapter]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Adapter(Path(path))) for path in paths]


@contextmanager
def _removed_on_error(folder: Path) -> Iterator[Path]:
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
