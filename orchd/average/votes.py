"""Who has a vote, and how much one vote may weigh: what every method but the plain mean begins with.

All of it works on the adapters' inner products ⟨ΔWᵢ, ΔWⱼ⟩, (k, k) float64. Without it the robust rules help an
attacker who sends copies: Krum and multi-Krum then choose them (`average.md` §4, attack success 1.00 and .94), and what
lets a backdoor through is concentration (success 0 up to a share of .4, .97 at .7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchd.average.gram import Matrix, cosines, norms

COPY_COSINE = 0.9
"""Two adapters with a larger cosine are near-copies, hence one vote (`average.md` §4)."""
MAX_SHARE = 1 / 3
"""No vote weighs more, where there are three or more."""
MAX_REACH = 0.4
"""Share times strength of one vote stays at or under this: a backdoor at .4 had no success, at .5 .03 (§0.9)."""


@dataclass(frozen=True)
class Votes:
    """`mix` (g, k): vote v is Σ mix[v, i] ΔWᵢ. `weights` (g,) sum to 1; `members[v]` are the adapters of vote v."""

    mix: Matrix
    weights: Matrix
    members: tuple[tuple[int, ...], ...]

    @property
    def strongest(self) -> float:
        """The largest strength at which no vote exceeds `MAX_REACH`; never below 1, the average itself."""
        return max(1.0, MAX_REACH / float(self.weights.max()))


def useless(inner: Matrix) -> list[int]:
    """The adapters that can have no vote: their squared norm is zero or no finite number."""
    squares = np.diag(inner)
    return [int(i) for i in np.flatnonzero(~(np.isfinite(squares) & (squares > 0)))]


def cast_votes(inner: Matrix, authors: Sequence[str], weights: Sequence[float]) -> Votes:
    """One vote for each author and for each set of near-copies, weighted by its heaviest member, capped.

    An empty author is nobody else's; where all have one author, there is nobody to outvote, and only copies share a
    vote. Within a vote members count by their weight, none longer than their lower median:
    a scaled copy does not take the vote over. Another copy of an adapter changes nothing.
    """
    given = np.asarray(weights, dtype=np.float64)
    members = _near_copies(inner, _by_author(authors))
    mix = np.zeros((len(members), len(given)))
    for vote, inside in enumerate(members):
        mix[vote, inside] = given[inside] / given[inside].sum() * clipping(norms(inner)[inside])
    heaviest = np.array([given[inside].max() for inside in members])
    return Votes(mix, capped(heaviest / heaviest.sum()), tuple(tuple(inside) for inside in members))


def capped(shares: Matrix, limit: float = MAX_SHARE) -> Matrix:
    """Shares that sum to 1, none above `limit` (or above 1/g, where g are too few): the rest goes to the others."""
    limit = max(limit, 1 / len(shares))
    out = shares.copy()
    full = np.zeros(len(out), dtype=bool)
    while (over := (out > limit) & ~full).any():
        full |= over
        out[full] = limit
        if full.all():
            break
        out[~full] *= (1 - limit * full.sum()) / out[~full].sum()
    return out


def lower_median(values: Matrix) -> float:
    """The middle one, of an even number the smaller middle one: of two, the louder can't drag it up."""
    return float(np.sort(values)[(len(values) - 1) // 2])


def clipping(lengths: Matrix) -> Matrix:
    """Factors (k,) of at most 1 that make none longer than the lower median."""
    limit = lower_median(lengths)
    return np.minimum(1.0, np.divide(limit, lengths, out=np.ones_like(lengths), where=lengths > 0))


def _by_author(authors: Sequence[str]) -> list[list[int]]:
    alone = len(set(authors)) == 1
    found: dict[str, list[int]] = {}
    for index, author in enumerate(authors):
        found.setdefault(f"#{index}" if alone or not author else author, []).append(index)
    return list(found.values())


def _near_copies(inner: Matrix, groups: list[list[int]]) -> list[list[int]]:
    """Merge groups, nearest first, while any two of their authors' means are near-copies (complete linkage).

    With a chain of pairs instead, one adapter in the middle of several honest ones would make them all one vote.
    """
    mix = np.zeros((len(groups), len(inner)))
    for row, group in enumerate(groups):
        mix[row, group] = 1.0
    near = cosines(mix @ inner @ mix.T)
    parts = [[row] for row in range(len(groups))]
    while len(parts) > 1:
        worst = np.array([[near[np.ix_(a, b)].min() for b in parts] for a in parts])
        np.fill_diagonal(worst, -1.0)
        first, second = divmod(int(worst.argmax()), len(parts))
        if worst[first, second] <= COPY_COSINE:
            break
        parts[first] = parts[first] + parts.pop(second)
    return sorted(sorted(i for row in part for i in groups[row]) for part in parts)
