"""Rank rules: by energy, by a budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchd.average.ranks import energy_rank, water_filled

falling = st.lists(st.floats(1e-3, 100), min_size=1, max_size=6).map(lambda v: np.array(sorted(v, reverse=True)))


@given(squares=falling, share=st.floats(0.01, 1))
def test_the_smallest_rank_that_keeps_the_share(
    squares: np.ndarray[tuple[int], np.dtype[np.float64]], share: float
) -> None:
    rank = energy_rank(squares, share)
    assert squares[:rank].sum() >= share * squares.sum() * (1 - 1e-9)
    assert squares[: rank - 1].sum() < share * squares.sum()


def test_energy_of_nothing_and_of_everything() -> None:
    assert energy_rank(np.zeros(3), 0.9) == 0
    assert energy_rank(np.array([2.0, 1.0, 0.0]), 1.0) == 2


@settings(max_examples=60)
@given(modules=st.lists(st.tuples(falling, st.sampled_from([10, 30])), min_size=1, max_size=3), rank=st.integers(1, 3))
def test_a_budget_is_kept_and_beats_uniform_ranks(
    modules: list[tuple[np.ndarray[tuple[int], np.dtype[np.float64]], int]], rank: int
) -> None:
    squares = {str(n): found for n, (found, _) in enumerate(modules)}
    costs = {str(n): cost for n, (_, cost) in enumerate(modules)}
    ranks = water_filled(squares, costs, rank)
    budget = rank * sum(costs.values())

    def kept(chosen: dict[str, int]) -> float:
        return sum(float(squares[name][:r].sum()) for name, r in chosen.items())

    assert sum(costs[name] * r for name, r in ranks.items()) <= budget
    assert kept(ranks) >= kept({name: min(rank, len(found)) for name, found in squares.items()}) - 1e-9
    if len(set(costs.values())) == 1:  # then the greedy choice is the best of all
        every = itertools.product(*(range(len(found) + 1) for found in squares.values()))
        best = max(
            kept(dict(zip(squares, choice, strict=True)))
            for choice in every
            if sum(choice) * next(iter(costs.values())) <= budget
        )
        assert kept(ranks) == pytest.approx(best)


def test_numbers_go_where_they_bring_most() -> None:
    squares = {"rich": np.array([9.0, 8.0, 7.0]), "poor": np.array([1.0, 0.1, 0.1]), "none": np.zeros(3)}
    assert water_filled(squares, {"rich": 10, "poor": 10, "none": 10}, 1) == {"rich": 3, "poor": 0, "none": 0}
