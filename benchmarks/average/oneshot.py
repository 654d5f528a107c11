"""Rows `oneshot-alike`, `oneshot-parts` and `oneshot-unlike`: the loss of one average of eight adapters (pool.py).

orchd's is what `orchctl average start --dataset` makes without another word: it chooses method and strength by
itself, on the validation rows. Every other method may choose its strength (and density) on the same rows, as well as it
can; all write rank 16, and all are scored on rows that nobody has chosen anything by. `ratio` is the best other
method's loss by ours; the methods of orchd that the default did not take count as others too. Not among them: `pooled`,
one training on everybody's rows with everybody's steps, which is what nobody can have.

Figures are means over the seeds. `ORCHD_BENCH_SEEDS` says how many, of 3. The whole table, with what each chose, goes
to `results/average-oneshot.json`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.average.pool import BASE, FAMILIES, RANK, SEEDS, Pool, Rows, dataset, pool
from benchmarks.average.scoring import (
    DENSITIES,
    PEFT_WAYS,
    STRENGTHS,
    Delta,
    Judge,
    Tuned,
    delta_of,
    factorwise,
    peft,
    progress,
)
from benchmarks.average.shapes import job
from benchmarks.report import RESULTS, Row, lower_is_better
from orchd.average.gate_specs import GateSpec
from orchd.average.rules import AUTO, METHODS
from orchd.average.specs import AverageResult, AverageSpec, WeightedAdapter
from orchd.judging.job import run

OURS: Final = "orchd"
GOAL: Final = 1.01
Table = dict[str, dict[str, Any]]


def rows() -> Iterator[Row]:
    everything: dict[str, list[Table]] = {}
    for family in FAMILIES:
        tables = everything[family] = [table(pool(family, seed)) for seed in SEEDS]
        yield row(family, tables)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "average-oneshot.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


def row(family: str, tables: Sequence[Table]) -> Row:
    means = {name: statistics.mean(one[name]["test"] for one in tables) for name in tables[0]}
    others = {name: loss for name, loss in means.items() if name not in (OURS, "pooled")}
    best = min(others, key=lambda name: others[name])
    figures = {name.replace("-", "_").replace(" ", "_"): round(loss, 4) for name, loss in means.items() if name != OURS}
    return lower_is_better(
        f"oneshot-{family}",
        "nats a token",
        means[OURS],
        (f"best other: {best}", others[best]),
        ("at most 1 % above", GOAL * others[best]),
        **figures,
    )


def table(made: Pool) -> Table:
    """Every contender's losses, and what it chose."""
    judge = Judge(made.data.validation, made.data.test)
    found: Table = {}

    def add(name: str, tuned: Tuned, **more: Any) -> None:
        found[name] = tuned._asdict() | more
        progress(f"{made.family} seed {made.seed}: {name:18} {tuned.test:.4f} at {tuned.strength:g} {more or ''}")

    add("base", judge.tuned({}, strengths=(1.0,)))
    singles = [judge.tuned(delta_of(folder), strengths=(1.0,)) for folder in made.peers]
    add("single adapter", min(singles, key=lambda one: one.validation), all=[one.test for one in singles])
    add("pooled", judge.tuned(delta_of(made.pooled), strengths=(1.0,)))
    add("factor-wise", judge.tuned(factorwise(made.peers)))
    for way in PEFT_WAYS:
        densities: Sequence[float | None] = (None,) if way in ("linear", "svd") else DENSITIES
        add(f"peft {way}", judge.tuned(*(peft(made.peers, way, density) for density in densities)))
    for method, about in METHODS.items():
        most = [by for by in STRENGTHS if by <= (about.most or STRENGTHS[-1])]
        add(method, judge.tuned(averaged(made.peers, method=method, strength=1.0)[0], strengths=most))
    delta, result = averaged(made.peers, validation=made.data.validation)
    ours = Tuned(result.strength_ppm / 1e6, judge.loss(delta, judge.validation), judge.loss(delta, judge.test))
    verdict = "" if result.gate is None else f"{result.gate.verdict}: {result.gate.reason}"
    add(OURS, ours, method=result.method, kept=len(result.leaves), verdict=verdict)
    return found


def averaged(folders: Sequence[Path], *, validation: Rows = (), **settings: Any) -> tuple[Delta, AverageResult]:
    """By orchd: with `validation` rows as `orchctl average start --dataset` does it, gate and all.

    Every adapter is of an author of its own.
    """
    with tempfile.TemporaryDirectory(prefix="orchd-bench-") as place:
        root = Path(place)
        leaves = tuple(
            WeightedAdapter(id=f"{at:04}", path=str(folder), author=f"author {at}") for at, folder in enumerate(folders)
        )
        gate = None
        if validation:
            settings = {"method": AUTO} | settings
            gate = GateSpec(base=str(BASE), dataset=str(dataset(validation, root / "own", "validation")))
        spec = AverageSpec(adapters=leaves, rank=RANK, dtype="F32", gate=gate, **settings)
        result = run(spec, job(root / "work"))
        return delta_of(root / "work" / result.adapter), result
