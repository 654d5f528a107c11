"""From the leaves' inner products to what an average takes of each: votes, coefficients, strength."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchd.average.combine import mean_matrix
from orchd.average.gram import Grams, Matrix, norms
from orchd.average.likeness import likeness
from orchd.average.methods import COEFFICIENTS
from orchd.average.middles import MIDDLES
from orchd.average.recipe import MILLION, strength_in_ppm
from orchd.average.rules import AUTO, DEFENDED, METHODS, UNLIKE
from orchd.average.specs import WeightedAdapter
from orchd.average.votes import Votes, cast_votes, clipping, useless
from orchd.errors import LeafIsZero, TooFewVotes


@dataclass(frozen=True)
class Decision:
    """The result of a module is B `middle` A. `strength_ppm` is the one used.

    `coefficients` (k,), without the strength, are None for a method that is no weighted sum; `votes` for the mean.
    """

    method: str
    strength_ppm: int
    coefficients: Matrix | None
    votes: Votes | None

    def middle(self, grams: Grams, present: Sequence[int]) -> Matrix:
        """M (R, R) of one module, of which the leaves `present` have factors."""
        strength = self.strength_ppm / MILLION
        if self.coefficients is not None:
            return mean_matrix(grams.ranks, grams.scales, [float(self.coefficients[i]) * strength for i in present])
        assert self.votes is not None
        return strength * MIDDLES[self.method](grams, self.votes.mix[:, list(present)], self.votes.weights)

    @property
    def coefficients_ppm(self) -> tuple[int, ...]:
        return () if self.coefficients is None else tuple(round(MILLION * float(c)) for c in self.coefficients)


def plain(ppm: Sequence[int], strength_ppm: int) -> Decision:
    """The mean: nobody's votes are counted, and the weights are the coefficients."""
    return Decision("mean", strength_ppm, np.asarray(ppm) / MILLION, None)


def decide(
    method: str,
    inner: Matrix,
    leaves: Sequence[WeightedAdapter],
    ppm: Sequence[int],
    strength: float | None,
    inherited: float = 1.0,
) -> Decision:
    """What `method` makes of leaves with these inner products (k, k) and weights; `auto` looks how alike they are.

    A strength at which one vote would get too far is lowered. Raises `LeafIsZero`, `TooFewVotes`,
    `AverageSpecInvalid`.
    """
    if zero := useless(inner):
        raise LeafIsZero(f"{leaves[zero[0]].id} changes nothing, or its numbers are no finite ones", field="adapters")
    votes = cast_votes(inner, [leaf.author for leaf in leaves], ppm)
    if method == AUTO:
        method = UNLIKE if likeness(inner, votes).kind == "unlike" else DEFENDED
    about = METHODS[method]
    wanted = wanted_ppm(method, strength, inherited)
    if not about.voted:
        return plain(ppm, wanted)
    if len(votes.members) < about.least:
        raise TooFewVotes(
            f"{method} needs {about.least} votes; {len(leaves)} adapters have {len(votes.members)}", field="adapters"
        )
    most = about.most or votes.strongest
    coefficients = None
    among = votes.mix @ inner @ votes.mix.T
    if about.linear:
        coefficients = COEFFICIENTS[method](among, votes.weights) @ votes.mix
    if method == UNLIKE:  # its whitening takes each vote at its own length
        votes = replace(votes, mix=clipping(norms(among))[:, None] * votes.mix)
    return Decision(method, min(wanted, math.floor(most * MILLION)), coefficients, votes)


def wanted_ppm(method: str, strength: float | None, inherited: float) -> int:
    """Raises `AverageSpecInvalid`."""
    return strength_in_ppm((METHODS[method].strength if strength is None else strength) * inherited)
