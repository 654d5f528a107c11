"""Who has a vote, and how much it may weigh."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchd.average.votes import MAX_REACH, MAX_SHARE, capped, cast_votes, lower_median, useless

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def inner_of(*vectors: list[float]) -> Array:
    points = np.array(vectors)
    return np.asarray(points @ points.T)


X, Y, Z = [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]


def test_strangers_that_differ_have_a_vote_each() -> None:
    votes = cast_votes(inner_of(X, Y, Z), ["a", "b", "c"], [1, 1, 1])
    assert votes.members == ((0,), (1,), (2,))
    assert np.allclose(votes.mix, np.eye(3))
    assert np.allclose(votes.weights, 1 / 3)


def test_one_author_has_one_vote() -> None:
    votes = cast_votes(inner_of(X, Y, Z), ["a", "b", "a"], [1, 1, 1])
    assert votes.members == ((0, 2), (1,))
    assert np.allclose(votes.mix, [[0.5, 0, 0.5], [0, 1, 0]])
    assert np.allclose(votes.weights, 0.5)


def test_where_all_have_one_author_each_has_a_vote() -> None:
    assert len(cast_votes(inner_of(X, Y, Z), ["a", "a", "a"], [1, 1, 1]).members) == 3
    assert cast_votes(inner_of(X, Y, X), ["a", "a", "a"], [1, 1, 1]).members == ((0, 2), (1,))


def test_unknown_authors_are_different_ones() -> None:
    assert len(cast_votes(inner_of(X, Y, Z), ["", "", ""], [1, 1, 1]).members) == 3


def test_near_copies_of_different_authors_are_one_vote() -> None:
    near, far = [1.0, 0.4, 0, 0], [1.0, 0.6, 0, 0]  # cosines to X .93 and .86
    assert cast_votes(inner_of(X, near, Z), ["a", "b", "c"], [1, 1, 1]).members == ((0, 1), (2,))
    assert len(cast_votes(inner_of(X, far, Z), ["a", "b", "c"], [1, 1, 1]).members) == 3


def test_one_in_the_middle_does_not_make_others_one_vote() -> None:
    """Two honest ones with a cosine of .7, and somebody's adapter between them."""
    one, other, between = [1.0, 0.43, 0, 0], [1.0, -0.43, 0, 0], [1.0, 0.01, 0, 0]
    votes = cast_votes(inner_of(one, other, between), ["a", "b", "c"], [1, 1, 1])
    assert votes.members == ((0, 2), (1,))


@settings(max_examples=30)
@given(copies=st.integers(1, 12), loud=st.floats(1, 1e6))
def test_more_and_louder_copies_change_nothing(copies: int, loud: float) -> None:
    """The vote of X stays X, and its weight a third."""
    vectors = [X, *[[loud, 0.0, 0, 0]] * copies, Y, Z]
    authors = [f"peer {n}" for n in range(len(vectors))]
    votes = cast_votes(inner_of(*vectors), authors, [1.0] * len(vectors))
    assert np.allclose(votes.weights, 1 / 3)
    row = votes.mix[0] @ np.array(vectors)
    assert np.allclose(row / np.linalg.norm(row), X)
    if copies == 1:  # two of them: the smaller is their lower median
        assert np.allclose(row, X)


def test_the_heaviest_member_gives_the_weight() -> None:
    votes = cast_votes(inner_of(X, Y, X), ["a", "b", "c"], [1, 4, 3])
    assert np.allclose(votes.weights, [0.5, 0.5])
    assert np.allclose(votes.mix[0], [0.25, 0, 0.75])


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12))
def test_no_share_is_above_a_third(values: list[float]) -> None:
    shares = np.array(values) / sum(values)
    out = capped(shares)
    limit = max(MAX_SHARE, 1 / len(values))
    assert out.sum() == pytest.approx(1)
    assert (out <= limit + 1e-9).all()
    below = out < limit - 1e-9
    assert (np.diff(out[below][np.argsort(shares[below])]) >= -1e-12).all()
    if (shares <= limit).all():
        assert np.allclose(out, shares)


def test_the_strongest_reaches_two_fifths() -> None:
    eight = cast_votes(np.eye(8), [""] * 8, [1] * 8)
    assert eight.strongest * eight.weights.max() == pytest.approx(MAX_REACH)
    assert cast_votes(np.eye(2), ["", ""], [1, 1]).strongest == 1.0


def test_zero_and_no_number_have_no_vote() -> None:
    assert useless(np.diag([1.0, 0.0, np.nan, np.inf, 2.0])) == [1, 2, 3]


def test_the_lower_median_is_the_quieter_of_two() -> None:
    assert lower_median(np.array([100.0, 1.0])) == 1.0
    assert lower_median(np.array([3.0, 1.0, 2.0])) == 2.0
