"""Have these adapters learnt the same kind of thing? In words, from the cosines of their votes; and what follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchd.average.gram import Matrix, cosines
from orchd.average.votes import Votes

ALIKE_COSINE = 0.05
"""From this mean cosine of two votes on, adapters are alike.

Far below 1, as adapters that start from different random A share little of it even when they learn the same. Measured
on the demo base (rank 16, 80 steps, own seeds): one skill .28 and .34, two halves of one invented language .07 to .08,
different skills .00 to .01.
"""
OPPOSITE_COSINE = -0.2
"""Two votes below this work against each other: what one wrote, the other takes back."""

Kind = Literal["alike", "unlike", "one vote"]


@dataclass(frozen=True)
class Likeness:
    """`mean` is over all pairs of votes; `opposite` are the pairs that work against each other."""

    kind: Kind
    mean: float
    opposite: tuple[tuple[int, int], ...]


def likeness(inner: Matrix, votes: Votes) -> Likeness:
    """`inner` (k, k) of the adapters."""
    count = len(votes.members)
    if count < 2:
        return Likeness("one vote", 1.0, ())
    between = cosines(votes.mix @ inner @ votes.mix.T)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    mean = float(np.mean([between[i, j] for i, j in pairs]))
    opposite = tuple((j, i) for i, j in pairs if between[i, j] < OPPOSITE_COSINE)
    return Likeness("alike" if mean >= ALIKE_COSINE else "unlike", mean, opposite)
