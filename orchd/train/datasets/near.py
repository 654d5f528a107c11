"""Rows that say nearly the same, found without comparing each with each.

MinHash signatures of word triples in 20 bands of 3 (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3)
name candidates; the exact Jaccard similarity of their triples decides. Short rows, where one other word makes another
example, and triples that many rows share (a template, a standing instruction) are left out.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

SAME: Final = 0.8
"""From this similarity on, one of two rows is a near duplicate, and is left out."""

RELATED: Final = 0.6
"""From this similarity on, two rows are never divided between training and scoring."""

MIN_TRIPLES: Final = 30
"""Rows with fewer (about as many words) are the same only when they are equal."""

COMMON_SHARE: Final = 0.05
"""A triple in more than this share of a sample of the rows is a template's."""

SAMPLE_ROWS: Final = 2_000
_BANDS, _PER_BAND = 20, 3
_WORD: Final = re.compile(r"\w+")
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)

Triples = NDArray[np.uint64]


class Groups:
    """Disjoint sets of row numbers (union-find); each is named by the smallest."""

    def __init__(self, rows: int) -> None:
        self._parent = list(range(rows))

    def find(self, row: int) -> int:
        while self._parent[row] != row:
            self._parent[row] = row = self._parent[self._parent[row]]
        return row

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.find(one), self.find(other)))
        self._parent[high] = low


def triples(text: str) -> Triples:
    """Hashes of each three words in a row, each once, in order of size."""
    words = np.array([zlib.crc32(word.encode()) for word in _WORD.findall(text.casefold())], dtype=np.uint64)
    if len(words) < 3:
        return words[:0]
    with np.errstate(over="ignore"):
        mixed = (words[:-2] * _MIX + words[1:-1]) * _MIX + words[2:]
        return np.unique((mixed ^ (mixed >> np.uint64(29))) * _MIX)


def find_near(
    count: int, text_of: Callable[[int], str], groups: Groups, check: Callable[[], None] = lambda: None
) -> list[int]:
    """Join related rows in ``groups``, and return the numbers of the near duplicates, ascending.

    ``text_of(row)`` gives a row's text; of near duplicates the one with the smallest number stays. ``check`` is
    called often and may raise to stop.
    """
    common = _common(count, text_of)

    @lru_cache(maxsize=4096)
    def own(row: int) -> Triples:
        found = triples(text_of(row))
        return np.setdiff1d(found, common, assume_unique=True) if len(common) else found

    numbers, bands = _signatures(count, own, check)
    gone: set[int] = set()
    for one, other in sorted(_candidates(numbers, bands)):
        check()
        if one in gone or other in gone:
            continue
        similarity = _jaccard(own(one), own(other))
        if similarity >= RELATED:
            groups.join(one, other)
        if similarity >= SAME:
            gone.add(other)
    return sorted(gone)


def _common(count: int, text_of: Callable[[int], str]) -> Triples:
    """The triples of a template: in many rows of an even sample."""
    step = max(1, count // SAMPLE_ROWS)
    sample = [triples(text_of(row)) for row in range(0, count, step)]
    if len(sample) < 40:  # so few rows show no template
        return np.empty(0, np.uint64)
    values, seen = np.unique(np.concatenate(sample), return_counts=True)
    return values[seen > COMMON_SHARE * len(sample)]


def _signatures(
    count: int, own: Callable[[int], Triples], check: Callable[[], None]
) -> tuple[list[int], Sequence[NDArray[np.uint64]]]:
    """The rows that are long enough, and one hash for each of their bands."""
    rng = np.random.default_rng(0)
    factors = rng.integers(1, 2**63, size=(_BANDS * _PER_BAND, 1), dtype=np.uint64) | np.uint64(1)
    numbers: list[int] = []
    bands: list[NDArray[np.uint64]] = []
    with np.errstate(over="ignore"):
        for row in range(count):
            check()
            found = own(row)
            if len(found) < MIN_TRIPLES:
                continue
            signature = (found * factors).min(axis=1).reshape(_BANDS, _PER_BAND)
            band = signature[:, 0].copy()
            for column in range(1, _PER_BAND):
                band = band * _MIX + signature[:, column]
            numbers.append(row)
            bands.append(band)
    return numbers, bands


def _candidates(numbers: Sequence[int], bands: Sequence[NDArray[np.uint64]]) -> set[tuple[int, int]]:
    """Pairs with an equal band: each row with the first and with the one before it of those that share it."""
    found: set[tuple[int, int]] = set()
    if not numbers:
        return found
    for band in np.stack(bands).T:
        order = np.argsort(band, kind="stable")
        first = before = int(order[0])
        for at in map(int, order[1:]):
            if band[at] == band[first]:
                found.update({(numbers[first], numbers[at]), (numbers[before], numbers[at])})
            else:
                first = at
            before = at
    return found


def _jaccard(one: Triples, other: Triples) -> float:
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / max(1, len(one) + len(other) - both)
