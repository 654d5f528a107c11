"""How sure a figure is: intervals, and paired tests of two models on the same examples. numpy, no torch.

A figure is a ratio of sums over units: nats over tokens, right answers over questions. A unit is what was drawn by
chance, a conversation or a document, so that the tokens of one do not pass for independent.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE: Final = 0.95
FLIPS: Final = 9_999
"""Random exchanges of a paired test; where there are fewer in all, all of them are made."""

MOST_FLIPPED: Final = 2_000
"""Units of which more are compared by the normal distribution: there the two agree."""

_NORMAL: Final = NormalDist()
Array = NDArray[np.float64]


class Sums(NamedTuple):
    """By unit, float64 (units,): what is counted, and how often. Units of weight 0 say nothing."""

    values: Array
    weights: Array

    @property
    def ratio(self) -> float:
        total = float(self.weights.sum())
        return float(self.values.sum()) / total if total else 0.0

    @property
    def units(self) -> int:
        return int(np.count_nonzero(self.weights))


class Interval(NamedTuple):
    low: float
    high: float


def interval(sums: Sums) -> Interval | None:
    """95 % of a ratio of sums (Cochran, Sampling Techniques, 3rd ed., 6.4), with Student's t for few units; None where
    there is but one, or all are alike: that says nothing about how much others differ."""
    if sums.units < 2:
        return None
    half = t_quantile(sums.units - 1) * standard_error(sums)
    return Interval(sums.ratio - half, sums.ratio + half) if half else None


def share_interval(sums: Sums) -> Interval | None:
    """95 % of a share. Where each unit is one yes or no it is Wilson's (1927), which is not nothing when all are alike;
    else as of any ratio, inside 0 to 1."""
    single = bool(np.all((sums.weights == 0) | (sums.weights == 1)) and np.all((sums.values == 0) | (sums.values == 1)))
    if single:
        return wilson(sums.ratio, sums.units)
    found = interval(sums)
    return found and Interval(max(0.0, found.low), min(1.0, found.high))


def wilson(share: float, count: int) -> Interval | None:
    if not count:
        return None
    z = _NORMAL.inv_cdf((1 + CONFIDENCE) / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def standard_error(sums: Sums) -> float:
    """Of a ratio of sums over at least two units."""
    units, total = sums.units, float(sums.weights.sum())
    off = sums.values - sums.ratio * sums.weights
    return math.sqrt(float(off @ off) * units / (units - 1)) / total


def t_quantile(freedom: int) -> float:
    """Of Student's t, two-sided 95 %: Cornish and Fisher's expansion, .5 % off at 3 degrees and better above; exact
    for 1 and 2 (Abramowitz and Stegun, 26.7.5)."""
    tail = (1 + CONFIDENCE) / 2
    if freedom == 1:
        return math.tan(math.pi * (tail - 0.5))
    if freedom == 2:
        return (2 * tail - 1) * math.sqrt(2 / (4 * tail * (1 - tail)))
    z = _NORMAL.inv_cdf(tail)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * freedom**4)
    )


def p_value(differences: Array, seed: int = 0) -> float:
    """Two-sided: the share of exchanges, of either model's result in any of the units, that differ as much in sum.

    ``differences`` (units,) are the one's minus the other's. All exchanges for few units, `FLIPS` random ones by
    ``seed`` for more (Phipson and Smyth 2010: never 0), and the normal distribution above `MOST_FLIPPED` units.
    """
    told = differences[differences != 0]
    count, observed = len(told), abs(float(told.sum()))
    if not count:
        return 1.0
    if count > MOST_FLIPPED:
        return math.erfc(observed / math.sqrt(2 * float(told @ told)))
    least = observed * (1 - 1e-9)  # sums in another order differ in the last bits
    if 2**count <= FLIPS:
        flips = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float(np.mean(np.abs((1 - 2 * flips) @ told) >= least))
    rng, beyond = np.random.default_rng(seed), 1
    for size in _chunks(FLIPS, max(1, 2_000_000 // count)):
        signs = rng.integers(0, 2, (size, count), dtype=np.int8) * 2 - 1
        beyond += int(np.count_nonzero(np.abs(signs @ told) >= least))
    return beyond / (FLIPS + 1)


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]
