"""The methods whose result is Σ cᵢ ΔWᵢ: from the votes' inner products (g, g) and weights (g,) to coefficients (g,).

`orchd.average.rules` says when to use which; `orchd.average.middles` holds those that no coefficients can express.
All are deterministic: equal scores go to the first vote, and votes are in the order of the leaves' ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from orchd.average.gram import Matrix, norms
from orchd.average.votes import clipping, lower_median

Coefficients = Callable[[Matrix, Matrix], Matrix]

SMOOTHING = 1e-6
"""Weiszfeld never divides by less than this share of the median norm (ν of RFA)."""
MAX_STEPS = 10_000
SETTLED = 1e-13
"""Weiszfeld stops when no coefficient moves by more."""

SCORE_DIGITS = 9
"""Krum scores that agree to so many digits of the largest are equal."""


def mean(inner: Matrix, weights: Matrix) -> Matrix:
    """The weights themselves."""
    return weights


def clip(inner: Matrix, weights: Matrix) -> Matrix:
    """Votes longer than the (lower) median norm are shortened to it; directions stay."""
    return np.asarray(weights * clipping(norms(inner)))


def geometric_median(inner: Matrix, weights: Matrix) -> Matrix:
    """The point with the smallest weighted sum of distances to the votes, by smoothed Weiszfeld steps in their span.

    Pillutla, Kakade and Harchaoui, "Robust aggregation for federated learning" (2022). It starts from the mean; every
    step divides each weight by the vote's distance to the point. Coefficients sum to 1.
    """
    least = SMOOTHING * lower_median(norms(inner))
    point = weights
    for _ in range(MAX_STEPS):
        pull = weights / np.maximum(_distances(inner, point), least)
        moved = pull / pull.sum()
        if np.abs(moved - point).max() <= SETTLED:
            break
        point = moved
    return np.asarray(moved)


def krum(inner: Matrix, weights: Matrix) -> Matrix:
    """The one vote with the smallest Krum score. Weights don't count."""
    chosen = np.zeros(len(inner))
    chosen[_order(krum_scores(inner))[0]] = 1.0
    return chosen


def multi_krum(inner: Matrix, weights: Matrix) -> Matrix:
    """The plain mean of the g - f - 2 votes with the smallest Krum scores. Weights don't count."""
    chosen = np.zeros(len(inner))
    count = neighbours(len(inner))
    chosen[_order(krum_scores(inner))[:count]] = 1 / count
    return chosen


def krum_scores(inner: Matrix) -> Matrix:
    """For each vote the sum of squared distances to its g - f - 2 nearest others.

    Blanchard et al., "Machine learning with adversaries" (2017), with the largest f that it allows: g ≥ 2f + 3.
    """
    squares = np.diag(inner)
    between = np.maximum(squares[:, None] + squares[None, :] - 2 * inner, 0.0)
    np.fill_diagonal(between, np.inf)
    return np.asarray(np.sort(between, axis=1)[:, : neighbours(len(inner))].sum(axis=1))


def _order(scores: Matrix) -> NDArray[np.intp]:
    """From the smallest on; of those that differ by rounding alone the first comes first, on every machine. Two votes
    that are nearest to each other have one score."""
    return np.argsort(np.round(scores / max(scores.max(), np.finfo(float).tiny), SCORE_DIGITS), kind="stable")


def neighbours(votes: int) -> int:
    """g - f - 2 with f = ⌊(g - 3) / 2⌋ wrong votes; needs three votes."""
    return votes - (votes - 3) // 2 - 2


def _distances(inner: Matrix, point: Matrix) -> Matrix:
    """From Σ cᵢ ΔWᵢ to each vote."""
    squares = np.diag(inner) - 2 * inner @ point + point @ inner @ point
    return np.sqrt(np.maximum(squares, 0.0))


COEFFICIENTS: Mapping[str, Coefficients] = {
    "mean": mean,
    "clip": clip,
    "geometric-median": geometric_median,
    "krum": krum,
    "multi-krum": multi_krum,
}
