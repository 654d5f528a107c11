"""Recipes: who averaged what, in whole numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchd.average.recipe import Parent, expand_leaves, recipe_digest, strength_in_ppm, weights_ppm
from orchd.average.rules import METHODS, RankRule, check_method, parse_recipe, recipe_method
from orchd.errors import AverageSpecInvalid, RankRuleInvalid

A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))
PLAN = {"method": "mean", "rank": 16, "strength_ppm": 1_000_000, "dtype": "BF16"}


def test_the_digest_of_a_known_recipe_stays() -> None:
    """A change here means that nodes of two versions no longer agree: raise RECIPE_VERSION with it."""
    digest = recipe_digest([(A, 500_000), (B, 500_000)], **PLAN)
    assert digest.hex() == "e54cb96fc25bb51c7ea38f2d3d915516cb321f0b3f02e6ca362060937b573b92"


def test_the_digest_depends_on_everything_but_the_order() -> None:
    leaves = [(A, 400_000), (B, 600_000)]
    digest = recipe_digest(leaves, **PLAN)
    assert recipe_digest(leaves[::-1], **PLAN) == digest
    others = [
        recipe_digest([(A, 600_000), (B, 400_000)], **PLAN),
        recipe_digest([(A, 400_000), (C, 600_000)], **PLAN),
        *(recipe_digest(leaves, **(PLAN | change)) for change in ({"rank": 8}, {"method": "x"}, {"dtype": "F32"})),
        recipe_digest(leaves, **(PLAN | {"strength_ppm": 2_000_000})),
        recipe_digest(leaves, **PLAN, previous=C),
        recipe_digest(leaves, **PLAN, outer=C),
    ]
    assert len({digest, *others}) == len(others) + 1


@given(st.dictionaries(st.binary(min_size=1, max_size=4), st.floats(0.01, 1e9), min_size=1, max_size=20))
def test_weights_sum_to_a_million(weighted: dict[bytes, float]) -> None:
    big = {leaf: w for leaf, w in weighted.items() if w / sum(weighted.values()) > 2e-6}
    ppm = weights_ppm(list(big.items()))
    assert sum(ppm.values()) == 1_000_000
    assert all(abs(ppm[leaf] - 1e6 * w / sum(big.values())) <= 1.001 for leaf, w in big.items())
    assert weights_ppm(list(reversed(big.items()))) == ppm
    assert weights_ppm([(leaf, n / 1e6) for leaf, n in ppm.items()]) == ppm


def test_three_equal_weights_are_the_same_for_everyone() -> None:
    expected = {A: 333_334, B: 333_333, C: 333_333}
    assert weights_ppm([(C, 1), (A, 1), (B, 1)]) == expected == weights_ppm([(B, 0.1), (C, 0.1), (A, 0.1)])


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf, 1e-9])
def test_a_weight_that_means_nothing_is_refused(weight: float) -> None:
    with pytest.raises(AverageSpecInvalid, match="weight of a"):
        weights_ppm([("a", weight), ("b", 1.0)])


def test_nobody_and_somebody_twice_are_refused() -> None:
    with pytest.raises(AverageSpecInvalid, match="no adapter"):
        weights_ppm([])
    with pytest.raises(AverageSpecInvalid, match="a is named twice"):
        weights_ppm([("a", 1.0), ("a", 1.0)])


def test_a_huge_weight_is_only_a_ratio() -> None:
    assert weights_ppm([("a", 1e9), ("b", 1e9)]) == {"a": 500_000, "b": 500_000}


@pytest.mark.parametrize("strength", [0.0, -1.0, math.nan, math.inf, 101.0])
def test_a_senseless_strength_is_refused(strength: float) -> None:
    with pytest.raises(AverageSpecInvalid, match="strength"):
        strength_in_ppm(strength)


@pytest.mark.parametrize("method", ["krum?", "", "mean/stacked"])
def test_a_method_that_is_not_here_is_refused(method: str) -> None:
    with pytest.raises(AverageSpecInvalid, match="no method"):
        check_method(method)


@pytest.mark.parametrize("rank", [0, 1025, -3, "0", "budget:0", "budget:1025"])
def test_a_rank_out_of_bounds_is_refused(rank: int | str) -> None:
    with pytest.raises(AverageSpecInvalid, match="not from 1 to 1024"):
        RankRule.parse(rank)


@pytest.mark.parametrize(
    "rule", ["", "1.5", "energy", "energy:", "energy:0", "energy:nan", "energy:1.1", "stacked:3", "budget", "16:2", "k"]
)
def test_a_rank_rule_that_is_none_is_refused(rule: str) -> None:
    with pytest.raises(RankRuleInvalid):
        RankRule.parse(rule)


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize(
    ("given", "text"),
    [(16, "16"), (" 7", "7"), ("energy:.95", "energy:0.95"), ("budget:8", "budget:8"), ("stacked",) * 2],
)
def test_a_lineage_names_method_and_rule(method: str, given: int | str, text: str) -> None:
    rule = RankRule.parse(given)
    assert rule.text == text
    assert parse_recipe(recipe_method(method, rule), rule.rank) == (method, rule)


def test_recipes_of_other_methods_and_rules_have_digests_of_their_own() -> None:
    leaves = [(A, 500_000), (B, 500_000)]
    named = [recipe_method(m, RankRule.parse(r)) for m in METHODS for r in (16, "energy:.9", "budget:16", "stacked")]
    digests = {recipe_digest(leaves, **{**PLAN, "method": name}) for name in named}
    assert len(digests) == len(named)


def test_an_average_of_an_average_counts_its_leaves() -> None:
    half = Parent([(A, 500_000), (B, 500_000)], 1_000_000)
    found = expand_leaves([(b"avg", 1), (C, 1)], {b"avg": half})
    assert found.leaves == ((A, 250_000), (B, 250_000), (C, 500_000))
    assert found.strength_ppm == 1_000_000


def test_a_leaf_in_two_averages_counts_once() -> None:
    one, two = Parent([(A, 500_000), (B, 500_000)], 10**6), Parent([(A, 500_000), (C, 500_000)], 10**6)
    found = expand_leaves([(b"one", 1), (b"two", 1)], {b"one": one, b"two": two})
    assert found.leaves == ((A, 500_000), (B, 250_000), (C, 250_000))


def test_the_strength_of_a_parent_is_kept() -> None:
    strong = Parent([(A, 10**6)], 3_000_000)
    found = expand_leaves([(b"strong", 1), (B, 1)], {b"strong": strong})
    assert found.leaves == ((A, 750_000), (B, 250_000))
    assert found.strength_ppm == 2_000_000
