"""The job `average.round`: the next global of a federation from the one before and the members' increments.

ΔW of everything that goes in is stacked: the new global is Σ cⱼ ΔWⱼ over increments, what they started from, the global
before and the one before that, some of the cⱼ negative. All of it follows from one set of Gram matrices, and nothing is
formed but the result of rank r (`combine.py`).
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass

import numpy as np

from orchd.average.adapter import AdapterWriter
from orchd.average.combine import apply, mean_matrix, spectrum
from orchd.average.course import Steps
from orchd.average.gram import Matrix, cosines, norms, squared_length
from orchd.average.methods import clip
from orchd.average.opened import Opened, opened
from orchd.average.recipe import MILLION, TOLERANCE_PPM
from orchd.average.rounds_specs import RoundResult, RoundSpec, VerifyRoundSpec
from orchd.average.specs import VerifyResult
from orchd.average.votes import cast_votes, useless
from orchd.errors import AverageIsZero, LeafIsZero
from orchd.jobs.context import JobContext

ADAPTER_FOLDER = "adapter"
MAX_TOLERANCE_PPM = 20_000
"""A lineage can't excuse more than this, as for averages of one shot. Members' bytes of a global differ by rounding."""


def run(spec: RoundSpec, job: JobContext) -> RoundResult:
    """Write the new global into `adapter/` of the job's folder. The order of the increments does not matter.

    Raises `LeafIsZero` when no increment changes anything, `AdapterConfigRefused`, `TensorsRefused`, `ShapesDiffer`,
    `AverageIsZero`, `JobCancelled`; then no folder is left.
    """
    begun = time.monotonic()
    folders = _folders(spec)
    folder = job.workdir / ADAPTER_FOLDER
    with opened([(path, path) for path in folders]) as adapters:
        source = Opened(adapters, keep=True)
        steps = Steps(job, 2 * len(source.names))
        taken = take(spec, folders, source.inner(steps))
        coefficients = combined(spec, folders, taken.coefficients)
        rank = min(spec.rank, source.union.largest)
        writer = AdapterWriter(folder, spec.dtype, rank, source.union.modules)
        try:
            total, cut = _write(source, coefficients, rank, writer, steps)
            largest, _ = writer.finish(source.union.targets)
        except BaseException:
            writer.abort()
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return RoundResult(
        adapter=ADAPTER_FOLDER,
        rank=largest,
        parameters=writer.parameters,
        residual_ppm=round(MILLION * (cut / total) ** 0.5),
        tolerance_ppm=TOLERANCE_PPM[spec.dtype],
        taken_ppm=tuple(round(MILLION * float(one)) for one in taken.coefficients),
        votes=taken.votes,
        norms=tuple(float(one) for one in norms(taken.inner)),
        cosines=tuple(tuple(float(one) for one in row) for row in cosines(taken.inner)),
        seconds=time.monotonic() - begun,
    )


@dataclass(frozen=True)
class Taken:
    """Of each increment, in the spec's order: its coefficient, without the strength, and its vote (from 1; 0 for
    none); `inner` (k, k) are their inner products."""

    coefficients: Matrix
    votes: tuple[int, ...]
    inner: Matrix


def take(spec: RoundSpec, folders: list[str], inner: Matrix) -> Taken:
    """From the inner products of all folders to what is taken of each increment: copies are one vote, none is louder
    than the median, none weighs more than a third. Raises `LeafIsZero`."""
    differences = np.zeros((len(spec.increments), len(folders)))
    for row, one in enumerate(spec.increments):
        differences[row, folders.index(one.path)] += 1
        if one.start is not None:
            differences[row, folders.index(one.start)] -= 1
    among = differences @ inner @ differences.T
    idle = set(useless(among))
    kept = sorted((at for at in range(len(among)) if at not in idle), key=lambda at: spec.increments[at].id)
    if not kept:
        raise LeafIsZero("none of the round's increments changes anything")
    left = among[np.ix_(kept, kept)]
    authors = [spec.increments[at].author for at in kept]
    votes = cast_votes(left, authors, [spec.increments[at].weight_ppm for at in kept])
    coefficients = np.zeros(len(among))
    coefficients[kept] = clip(votes.mix @ left @ votes.mix.T, votes.weights) @ votes.mix
    numbers = [0] * len(among)
    for number, inside in enumerate(votes.members, 1):
        for at in inside:
            numbers[kept[at]] = number
    return Taken(coefficients, tuple(numbers), among)


def combined(spec: RoundSpec, folders: list[str], taken: Matrix) -> Matrix:
    """(len(folders),) what the new global takes of each folder's ΔW."""
    out = np.zeros(len(folders))
    momentum, strength = spec.momentum_ppm / MILLION, spec.strength_ppm / MILLION

    def add(path: str | None, value: float) -> None:
        if path is not None:
            out[folders.index(path)] += value

    add(spec.previous, 1 + momentum)
    add(spec.before, -momentum)
    for one, coefficient in zip(spec.increments, taken, strict=True):
        add(one.path, strength * float(coefficient))
        add(one.start, -strength * float(coefficient))
    return out


def _folders(spec: RoundSpec) -> list[str]:
    """Each once; those of the increments in the order of their ids, so that the bytes don't depend on the spec's."""
    ordered = sorted(spec.increments, key=lambda one: one.id)
    named = [spec.previous, spec.before, *(one.start for one in ordered), *(one.path for one in ordered)]
    return list(dict.fromkeys(path for path in named if path is not None))


def _write(source: Opened, coefficients: Matrix, rank: int, writer: AdapterWriter, steps: Steps) -> tuple[float, float]:
    """Σ σ² of everything, and of what the rank cut off."""
    total = cut = 0.0
    for module in source.union.modules:
        steps()
        factors = source.factors(module.name)
        grams = source.grams(module.name, factors)
        weights = [float(coefficients[at]) for at in source.present(module.name)]
        best = spectrum(grams, mean_matrix(grams.ranks, grams.scales, weights)).best(rank)
        total, cut = total + best.total, cut + best.cut
        if len(best.singular_values):
            writer.add(module, apply(factors, best))
    steps.finish()
    if not writer.parameters:
        raise AverageIsZero("the round's average is zero everywhere")
    return total, cut


def run_verify(spec: VerifyRoundSpec, job: JobContext) -> VerifyResult:
    """Recompute how far a claimed average of a round is from what its increments and globals give, without forming
    either. A claim that does not hold is an answer, not an error. Raises as `run` does."""
    round = spec.round
    folders = _folders(round)
    with (
        opened([(path, path) for path in folders]) as adapters,
        opened([("the average", spec.claimed)]) as claimed,
    ):
        source, both = Opened(adapters, keep=True), Opened([*adapters, *claimed], keep=False)
        steps = Steps(job, len(source.names) + len(both.names))
        coefficients = combined(round, folders, take(round, folders, source.inner(steps)).coefficients)
        total = cut = distance = 0.0
        largest = 0
        for name in both.names:
            steps()
            grams = both.grams(name)
            present = both.present(name)
            inside = [at for at in present if at < len(folders)]
            weights = [float(coefficients[at]) for at in inside]
            if inside:
                first = grams.first(len(inside))
                best = spectrum(first, mean_matrix(first.ranks, first.scales, weights)).best(round.rank)
                total, cut = total + best.total, cut + best.cut
            claims = [-1.0] if len(present) > len(inside) else []
            distance += squared_length(grams, mean_matrix(grams.ranks, grams.scales, weights + claims))
            largest = max(largest, grams.ranks[-1] if claims else 0)
        steps.finish()
    if not total:
        raise AverageIsZero("what these increments and globals give is zero; a share of it says nothing")
    error, tolerance = (max(0.0, distance - cut) / total) ** 0.5, min(spec.tolerance_ppm, MAX_TOLERANCE_PPM) / MILLION
    too_large = f"it is of rank {largest}, its recipe of {round.rank}" if largest > round.rank else ""
    return VerifyResult(
        relative_error=error,
        tolerance=tolerance,
        holds=error <= tolerance and not too_large,
        distance=(distance / total) ** 0.5,
        residual=(cut / total) ** 0.5,
        detail=too_large or _detail(error, tolerance),
    )


def _detail(error: float, tolerance: float) -> str:
    if error > tolerance:
        return f"it is {100 * error:.3g} % off, at most {100 * tolerance:.3g} % is rounding"
    return "it is what its increments make of the global before it"
