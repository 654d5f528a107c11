"""Intervals and paired tests, against scipy 1.17's values and against what chance does."""

from __future__ import annotations

import numpy as np
import pytest

from orchd.lm.significance import (
    FEWEST,
    MOST_FLIPPED,
    Interval,
    Sums,
    interval,
    paired,
    share_interval,
    t_quantile,
    wilson,
)


def p_value(differences: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return paired(Sums(differences, np.ones(len(differences)))).p


@pytest.mark.parametrize(
    ("freedom", "wanted"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (10, 2.22814), (100, 1.98397)]
)
def test_students_t(freedom: int, wanted: float) -> None:
    assert t_quantile(freedom) == pytest.approx(wanted, rel=2e-3)


def test_wilsons_interval() -> None:
    assert wilson(0.9, 10) == pytest.approx((0.59585, 0.982124), abs=1e-5)
    low, high = wilson(1.0, 20) or Interval(0, 0)
    assert high == 1
    assert 0.8 < low < 0.9
    assert wilson(0.0, 0) is None


def test_a_paired_test_of_few_makes_every_exchange() -> None:
    assert p_value(np.array([0.5, 0.3, -0.1, 0.8, 0.2, 0.4, -0.05, 0.6])) == 0.03125  # scipy's permutation_test
    assert p_value(np.array([1.0, 1.0, 1.0, 0.0])) == 0.25
    assert p_value(np.zeros(5)) == 1.0


def test_random_exchanges_agree_with_the_normal_distribution() -> None:
    differences = np.random.default_rng(1).normal(0.1, 1, 2_500)
    some = differences[:1_500]
    by_flips = p_value(some)
    z = abs(some.sum()) / np.sqrt(some @ some)
    from statistics import NormalDist

    assert by_flips == pytest.approx(2 * (1 - NormalDist().cdf(float(z))), abs=0.01)
    assert p_value(differences) < 0.001


def test_intervals_hold_what_is_true_as_often_as_they_say() -> None:
    rng, held, rounds = np.random.default_rng(0), 0, 400
    for _ in range(rounds):
        weights = rng.integers(1, 30, 12).astype(float)
        values = weights * rng.normal(2.0, 0.5, 12)
        low, high = interval(Sums(values, weights)) or Interval(0, 0)
        held += low <= 2.0 <= high
    assert 0.90 < held / rounds < 0.98


@pytest.mark.parametrize("units", [6, 8, 13, 14, 40, MOST_FLIPPED + 1])
def test_verdict_and_interval_never_contradict_each_other(units: int) -> None:
    rng, told = np.random.default_rng(units), set()
    for shift in np.linspace(0, 3 / np.sqrt(units), 25):
        weights = rng.integers(1, 20, units).astype(float)
        p, bounds = paired(Sums(weights * rng.normal(shift, 1, units), weights))
        assert bounds is not None
        assert (p < 0.05) == (not bounds.low <= 0 <= bounds.high)
        told.add(p < 0.05)
    assert told == {True, False}


def test_paired_intervals_hold_what_is_true_as_often_as_they_say() -> None:
    rng, held, rounds = np.random.default_rng(0), 0, 400
    for _ in range(rounds):
        weights = rng.integers(1, 30, 12).astype(float)
        bounds = paired(Sums(weights * rng.normal(2.0, 0.5, 12), weights)).bounds
        assert bounds is not None
        held += bounds.low <= 2.0 <= bounds.high
    assert 0.92 < held / rounds < 0.98


def test_the_inverted_test_agrees_with_students_t_on_many_units() -> None:
    sums = Sums(np.random.default_rng(3).normal(0.2, 1, 300), np.ones(300))
    assert paired(sums).bounds == pytest.approx(interval(sums), abs=0.01)


def test_of_too_few_units_nothing_is_told() -> None:
    few = Sums(np.full(FEWEST - 1, 9.0) + np.arange(FEWEST - 1), np.ones(FEWEST - 1))
    assert paired(few).bounds is None
    assert paired(few).p > 0.05
    more = Sums(np.full(FEWEST, 9.0) + np.arange(FEWEST), np.ones(FEWEST))
    assert paired(more).p < 0.05


def test_units_that_all_differ_alike_have_no_interval() -> None:
    assert paired(Sums(np.zeros(20), np.ones(20))) == (1.0, None)
    assert paired(Sums(np.zeros(MOST_FLIPPED + 1), np.ones(MOST_FLIPPED + 1))) == (1.0, None)


def test_nothing_right_has_an_interval_whatever_the_units_weigh() -> None:
    assert share_interval(Sums(np.zeros(4), np.array([3.0, 5.0, 2.0, 9.0]))) == wilson(0.0, 4)
    assert share_interval(Sums(np.array([3.0, 5.0]), np.array([3.0, 5.0]))) == wilson(1.0, 2)


def test_one_unit_or_all_alike_tell_no_interval() -> None:
    assert interval(Sums(np.array([3.0]), np.array([2.0]))) is None
    assert interval(Sums(np.array([3.0, 0.0]), np.array([2.0, 0.0]))) is None
    assert interval(Sums(np.array([2.0, 4.0]), np.array([1.0, 2.0]))) is None


def test_a_share_over_units_of_several_is_bound_to_0_and_1() -> None:
    several = Sums(np.array([3.0, 1.0]), np.array([3.0, 2.0]))
    assert share_interval(several) == pytest.approx((0, 1))
    assert share_interval(Sums(np.array([1.0, 0.0]), np.array([1.0, 1.0]))) == pytest.approx(wilson(0.5, 2))
