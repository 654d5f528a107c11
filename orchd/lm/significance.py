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

FEWEST: Final = 6
"""Units of which a paired test by exchanges can refuse anything at 5 %: 2 of their 2⁶ exchanges are 3 %."""

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
    """95 % of a share. Where each unit is one yes or no, or all units are nothing or all are whole, it is Wilson's
    (1927), which is not nothing when all are alike; else as of any ratio, inside 0 to 1."""
    single = bool(np.all((sums.weights == 0) | (sums.weights == 1)) and np.all((sums.values == 0) | (sums.values == 1)))
    if single or sums.ratio in (0, 1):
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


class Paired(NamedTuple):
    """A paired test: ``p`` that the difference is nothing, and the differences that the same test does not refuse at
    5 %. So the interval is without 0 exactly where ``p`` is below .05. None: no test of so few units could refuse any
    (fewer than `FEWEST`), or all units differ alike."""

    p: float
    bounds: Interval | None


def paired(differences: Sums, seed: int = 0) -> Paired:
    """Two-sided test of a ratio of sums by random exchanges of either model's result in any of the units, inverted for
    the interval. ``differences`` are the one's values minus the other's.

    All exchanges for few units, `FLIPS` random ones by ``seed`` for more (Phipson and Smyth 2010: never 0), and the
    normal distribution above `MOST_FLIPPED` units (Fieller's interval).
    """
    there = differences.weights > 0
    values, weights = differences.values[there], differences.weights[there]
    if len(values) > MOST_FLIPPED:
        return _normally(values, weights)
    lows, highs = _spans(values, weights, seed)
    p = float(np.mean((lows <= 0) & (highs >= 0)))
    needed = math.ceil((1 - CONFIDENCE) * len(lows) - 1e-9)
    low, high = float(np.partition(lows, needed - 1)[needed - 1]), float(np.partition(highs, -needed)[-needed])
    return Paired(p, Interval(low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None)


def _spans(values: Array, weights: Array, seed: int) -> tuple[Array, Array]:
    """For each exchange, float64 (exchanges,): the lowest and the highest difference beside which it is as far off as
    what was seen. One that leaves all as it is, or exchanges all, always is.

    With V and W the sums of values and weights and A and B those after an exchange, |A - θB| ≥ |V - θW| holds for θ
    from one root of the two sides to the other: (A - V) / (B - W) and (A + V) / (B + W).
    """
    total, weight, scale = float(values.sum()), float(weights.sum()), float(np.abs(values).sum())
    sums = _exchanged(np.column_stack([values, weights]), seed)
    after = np.where(
        np.abs(np.abs(sums[:, 0]) - abs(total)) <= 1e-9 * scale, np.copysign(total, sums[:, 0]), sums[:, 0]
    )
    apart = np.abs(sums[:, 1]) < weight * (1 - 1e-12)
    below, above = np.where(apart, sums[:, 1] - weight, 1.0), np.where(apart, sums[:, 1] + weight, 1.0)
    one, other = (after - total) / below, (after + total) / above
    lows, highs = np.minimum(one, other), np.maximum(one, other)
    return np.where(apart, lows, -np.inf), np.where(apart, highs, np.inf)


def _exchanged(columns: Array, seed: int) -> Array:
    """The sums of ``columns`` (units, 2) with random signs of the units: all signs for few; with what was seen itself
    where they are drawn."""
    count = len(columns)
    if 2**count <= FLIPS:
        return np.asarray((1.0 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)) @ columns)
    rng, found = np.random.default_rng(seed), [columns.sum(0, keepdims=True)]
    for size in _chunks(FLIPS, max(1, 2_000_000 // count)):
        found.append((rng.integers(0, 2, (size, count), dtype=np.int8) * 2 - 1) @ columns)
    return np.concatenate(found)


def _normally(values: Array, weights: Array) -> Paired:
    total, weight, z = float(values.sum()), float(weights.sum()), _NORMAL.inv_cdf((1 + CONFIDENCE) / 2)
    spread = float(values @ values)
    if not spread:
        return Paired(1.0, None)
    square = weight**2 - z * z * float(weights @ weights)
    middle = total * weight - z * z * float(values @ weights)
    root = math.sqrt(max(0.0, middle**2 - square * (total**2 - z * z * spread)))
    bounds = Interval((middle - root) / square, (middle + root) / square)
    return Paired(math.erfc(abs(total) / math.sqrt(2 * spread)), bounds if bounds.low < bounds.high else None)


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]
