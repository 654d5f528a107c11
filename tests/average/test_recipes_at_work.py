"""Every method with every rank rule as a job: written, verified, and a wrong one found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from orchd.average import opened
from orchd.average.adapter import Adapter
from orchd.average.rules import METHODS
from orchd.average.specs import AverageSpec, WeightedAdapter
from orchd.average.worker import run
from orchd.errors import AverageSpecInvalid, LeafIsZero, RankRuleInvalid, TooFewVotes

from .bench import Bench, leaves
from .peft_folders import SHAPES, Lora, dense, dense_mean, distance, random_lora, truncated

RULES = (3, "energy:.9", "budget:2", "stacked")
VOTED = [name for name, about in METHODS.items() if about.voted]


def peers(bench: Bench, count: int = 5) -> list[Path]:
    """Of different ranks and modules, around a common part."""
    common = random_lora(0, rank=2)
    made = []
    for seed in range(1, count + 1):
        own = random_lora(seed, rank=2, modules=sorted(SHAPES)[: 3 - seed % 2])
        factors = {
            name: (common.factors[name][0] + a, common.factors[name][1] + b) for name, (a, b) in own.factors.items()
        }
        made.append(Lora(factors))
    return bench.write(*made)


@pytest.mark.parametrize("rank", RULES)
@pytest.mark.parametrize("method", list(METHODS))
def test_an_honest_average_holds_and_another_does_not(bench: Bench, method: str, rank: int | str) -> None:
    folders = peers(bench)
    average, result = bench.average(folders, method=method, rank=rank, dtype="BF16")
    plan = {"method": method, "rank": rank, "strength": result.strength_ppm / 1e6}
    check = bench.verify(average, folders, **plan, coefficients_ppm=result.coefficients_ppm)
    assert check.holds, check.detail
    assert check.residual == pytest.approx(result.residual_ppm / 1e6, abs=1e-6)
    assert not bench.verify(average, folders[1:], **plan).holds
    other = "mean" if method == "tsv" else "tsv"
    assert not bench.verify(average, folders, **{**plan, "method": other}).holds


@pytest.mark.parametrize("method", VOTED)
def test_grams_that_are_not_kept_give_the_same(bench: Bench, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = peers(bench)
    first, _ = bench.average(folders, method=method, rank="budget:2")
    monkeypatch.setattr(opened, "KEPT_GRAMS", 0)
    second, _ = bench.average(folders, method=method, rank="budget:2")
    weights = "adapter_model.safetensors"
    assert (first / weights).read_bytes() == (second / weights).read_bytes()


@pytest.mark.parametrize("method", VOTED)
def test_the_order_changes_no_byte_of_any_method(bench: Bench, method: str) -> None:
    folders = peers(bench)
    first, result = bench.average(folders, method=method)
    second, turned = bench.average(folders[::-1], method=method)
    weights = "adapter_model.safetensors"
    assert (first / weights).read_bytes() == (second / weights).read_bytes()
    assert turned.coefficients_ppm == result.coefficients_ppm[::-1]


def test_stacked_cuts_nothing_off(bench: Bench) -> None:
    folders = peers(bench)
    average, result = bench.average(folders, rank="stacked")
    assert result.residual_ppm == 0
    assert distance(dense(average), dense_mean(folders, [0.2] * 5)) < 5e-6


def test_energy_keeps_its_share_in_each_module(bench: Bench) -> None:
    folders = peers(bench)
    average, result = bench.average(folders, rank="energy:.9")
    exact = dense_mean(folders, [0.2] * 5)
    with Adapter(average) as written:
        ranks = {name: module.rank for name, module in written.modules.items()}
    assert result.rank == max(ranks.values())
    for name, delta in exact.items():
        squares = np.linalg.svd(delta, compute_uv=False) ** 2
        assert squares[: ranks[name]].sum() >= 0.9 * squares.sum()
        assert squares[: ranks[name] - 1].sum() < 0.9 * squares.sum()


def test_a_budget_is_that_of_the_uniform_rank_and_does_better(bench: Bench) -> None:
    weak = random_lora(9)
    name = "model.layers.1.q_proj"
    weak.factors[name] = (weak.factors[name][0], weak.factors[name][1] * np.float32(0.01))
    folders = bench.write(*(Lora({**random_lora(n).factors, name: weak.factors[name]}) for n in (1, 2)))
    even, uniform = bench.average(folders, rank=2)
    filled, shared = bench.average(folders, rank="budget:2")
    exact = dense_mean(folders, [0.5, 0.5])
    assert shared.parameters <= uniform.parameters
    assert distance(dense(filled), exact) < 0.9 * distance(dense(even), exact)
    config = json.loads((filled / "adapter_config.json").read_text())
    assert len({config["r"], *config["rank_pattern"].values()}) > 1


def test_each_module_of_other_ranks_is_its_best(bench: Bench) -> None:
    """The fold into the factors and `rank_pattern` give back scale 1."""
    folders = peers(bench)
    average, _ = bench.average(folders, rank="energy:.8")
    exact = dense_mean(folders, [0.2] * 5)
    with Adapter(average) as written:
        wanted = {name: truncated(exact[name], module.rank) for name, module in written.modules.items()}
    assert distance(dense(average), wanted) < 5e-6


def test_what_was_taken_of_each_is_told(bench: Bench) -> None:
    folders = peers(bench, 4)
    (loud,) = bench.write(Lora({n: (100 * a, b) for n, (a, b) in random_lora(50, rank=2).factors.items()}))
    average, result = bench.average([*folders, loud], method="clip", rank="stacked")
    assert result.votes == ((0,), (1,), (2,), (3,), (4,))
    assert 0 < result.coefficients_ppm[4] < result.coefficients_ppm[0] / 20
    taken = [c / 1e6 for c in result.coefficients_ppm]
    assert distance(dense(average), dense_mean([*folders, loud], taken)) < 1e-4
    assert bench.average(folders, method="median")[1].coefficients_ppm == ()
    assert bench.average(folders)[1].votes == ()


def test_false_coefficients_in_a_manifest_are_found(bench: Bench) -> None:
    folders = peers(bench)
    average, result = bench.average(folders, method="krum")
    told = result.coefficients_ppm
    assert sorted(told) == [0, 0, 0, 0, 1_000_000]
    assert bench.verify(average, folders, method="krum", rank=16, coefficients_ppm=told).holds
    turned = (*told[1:], told[0])
    check = bench.verify(average, folders, method="krum", rank=16, coefficients_ppm=turned)
    assert not check.holds
    assert "ppm of" in check.detail


def test_a_budget_that_is_exceeded_is_found(bench: Bench) -> None:
    folders = peers(bench)
    average, _ = bench.average(folders, rank=3)
    check = bench.verify(average, folders, rank="budget:1")
    assert not check.holds
    assert "budget" in check.detail


def test_a_strength_that_reaches_too_far_is_lowered(bench: Bench) -> None:
    folders = peers(bench)
    assert bench.average(folders, method="clip", strength=5.0)[1].strength_ppm == 2_000_000
    assert bench.average(folders, method="tsv", strength=5.0)[1].strength_ppm == 1_000_000
    assert bench.average(folders, strength=5.0)[1].strength_ppm == 5_000_000


def _run(bench: Bench, folders: list[Path], authors: list[str], **spec: object) -> None:
    job, _ = bench.job()
    named = [
        WeightedAdapter(id=leaf.id, path=leaf.path, author=author)
        for leaf, author in zip(leaves(folders), authors, strict=True)
    ]
    try:
        run(AverageSpec(adapters=tuple(named), **spec), job)
    finally:
        assert list(job.workdir.iterdir()) == []


@pytest.mark.parametrize("method", [name for name, about in METHODS.items() if about.least == 3])
def test_too_few_votes_are_refused(bench: Bench, method: str) -> None:
    folders = peers(bench, 4)
    with pytest.raises(TooFewVotes, match="4 adapters have 2"):
        _run(bench, folders, ["a", "a", "b", "b"], method=method)


@pytest.mark.parametrize("method", VOTED)
def test_an_adapter_of_zeros_is_refused_by_name(bench: Bench, method: str) -> None:
    zero = Lora({n: (a, 0 * b) for n, (a, b) in random_lora(7).factors.items()})
    folders = [*peers(bench, 3), *bench.write(zero)]
    with pytest.raises(LeafIsZero, match=folders[3].name):
        _run(bench, folders, ["", "", "", ""], method=method)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"method": "ties"}, AverageSpecInvalid),
        ({"rank": "energy:2"}, RankRuleInvalid),
        ({"rank": "all"}, RankRuleInvalid),
    ],
)
def test_a_plan_that_is_none_is_refused(bench: Bench, spec: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        _run(bench, peers(bench, 2), ["", ""], **spec)
