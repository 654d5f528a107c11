"""The jobs `average` and `average.plan`: what one's own data says first, then what is written or told.

torch is loaded only where there is data to judge by.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from orchd.average import planner, worker
from orchd.average.course import Recipe, Steps
from orchd.average.gate import Gate
from orchd.average.gate_specs import GateReport, JudgedLeaf
from orchd.average.opened import Opened, opened
from orchd.average.specs import AveragePlan, AverageResult, AverageSpec, PlanSpec
from orchd.jobs.context import JobContext


def run(spec: AverageSpec, job: JobContext) -> AverageResult:
    """Judge, then write what was decided. Raises as `orchd.average.worker.run` does, and as `judged`."""
    chosen, report = judged(spec, job)
    result = worker.run(chosen, job)
    return replace(result, gate=report, leaves=tuple(leaf.id for leaf in chosen.adapters))


def run_plan(spec: PlanSpec, job: JobContext) -> AveragePlan:
    """With `through` the gate decides too, and nothing is written."""
    if not spec.through or not _asked(spec.average):
        return replace(planner.run_plan(spec, job), gate=spec.gate)
    first = planner.run_plan(replace(spec, through=False), job)
    able = {leaf.id for leaf in first.leaves}
    whole = replace(spec.average, adapters=tuple(leaf for leaf in spec.average.adapters if leaf.id in able))
    chosen, report = judged(whole, job)
    names = dict(zip((leaf.id for leaf in spec.average.adapters), spec.names, strict=False))
    kept = tuple(names.get(leaf.id, "") for leaf in chosen.adapters)
    told = planner.run_plan(replace(spec, average=chosen, names=kept, refused=first.refused), job)
    return replace(told, gate=spec.gate, judged=report)


def judged(spec: AverageSpec, job: JobContext) -> tuple[AverageSpec, GateReport | None]:
    """What is to be averaged after all, and why; the report is None where nobody asked for one.

    Raises `TooFewPassed`, `GateDataUnfit`, `BaseUnusable`, `AdapterUnfit`, `JobCancelled`, and as opening the leaves
    does.
    """
    if not _asked(spec):
        return spec, None
    recipe = Recipe.of(spec.method, spec.rank, spec.strength, spec.adapters, spec.inherited)
    opinions = {one.adapter: one for one in spec.opinions}
    with opened([(leaf.id, leaf.path) for leaf in recipe.leaves]) as leaves:
        source = Opened(leaves, keep=True)
        gate = Gate(recipe, source.inner(Steps(job, len(source.names))), opinions)
        if spec.gate is None:
            kept = gate.usable()
            return _narrowed(spec, recipe, kept), _told(
                spec, GateReport(verdict="off", reason=spec.ungated), gate.judged
            )
        from orchd.judging.court import hold  # torch

        outcome, report = hold(spec.gate, gate, source, job)
    chosen = _narrowed(spec, recipe, outcome.members)
    return replace(chosen, method=outcome.method, strength=outcome.strength), _told(spec, report, outcome.leaves)


def _asked(spec: AverageSpec) -> bool:
    return spec.gate is not None or bool(spec.ungated)


def _narrowed(spec: AverageSpec, recipe: Recipe, members: Sequence[int]) -> AverageSpec:
    ids = {recipe.leaves[at].id for at in members}
    return replace(spec, adapters=tuple(leaf for leaf in spec.adapters if leaf.id in ids))


def _told(spec: AverageSpec, report: GateReport, leaves: Sequence[JudgedLeaf]) -> GateReport:
    """With what was found of the leaves, in the order of the spec."""
    found = {leaf.id: leaf for leaf in leaves}
    return replace(report, leaves=tuple(found[leaf.id] for leaf in spec.adapters))
