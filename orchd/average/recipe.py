"""The recipe: what two nodes can agree on about an average, although their bytes may differ in the last bit.

A recipe is the sorted leaves with their weights, the method, rank, strength and dtype, and in a round the previous
global and the digest of the outer optimiser's state. Its digest is SHA-256 over deterministic msgpack
(`orchd.records.codec`). Weights are whole parts per million, so that no float is signed and everyone rounds alike.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple, TypeVar

from orchd.average.rules import MEAN
from orchd.average.rules import MILLION as MILLION  # of a whole
from orchd.average.specs import Dtype
from orchd.errors import AverageSpecInvalid
from orchd.records.codec import encode
from orchd.records.ids import ADAPTER, text_id

RECIPE_VERSION = 2
"""Of every method and rank rule but the plain mean at a fixed rank, whose recipes are of version 1."""
MAX_STRENGTH = 100.0

TOLERANCE_PPM: Mapping[Dtype, int] = {"F32": 50, "F16": 5_000, "BF16": 5_000}
"""How far an honest average may be from the exact one besides truncation, by dtype, in parts per million of its norm.

Rounding A′ and B′ to p bits of mantissa moves ΔW by at most 2 · 2^-(p+1) of its norm while their rows and columns are
orthogonal: 2^-8 = 3,906 ppm for BF16; for F16 less, unless entries are subnormal. For F32 what matters is
the noise of the verification itself: it subtracts squares in float64, so it sees some √(10⁻¹⁵) ≈ .03 ppm, more when
leaves cancel.
"""

Id = TypeVar("Id", bytes, str)


class Parent(NamedTuple):
    """What the lineage of an average says: its leaves with weights in ppm, and the strength they were multiplied by."""

    leaves: Sequence[tuple[bytes, int]]
    strength_ppm: int


class Expanded(NamedTuple):
    """Leaves with weights in ppm that sum to a million, sorted by id; the strength that went out of them."""

    leaves: tuple[tuple[bytes, int], ...]
    strength_ppm: int


def recipe_digest(
    leaves: Sequence[tuple[bytes, int]],
    *,
    method: str,
    rank: int,
    strength_ppm: int,
    dtype: str,
    previous: bytes | None = None,
    outer: bytes | None = None,
) -> bytes:
    """The 32-byte digest of a recipe. `leaves` are (id, weight in ppm) in any order; each id once.

    `method` is as a lineage has it (`rules.recipe_method`), with the rank rule.
    """
    return hashlib.sha256(
        encode(
            {
                "dtype": dtype,
                "leaves": sorted([leaf, weight] for leaf, weight in leaves),
                "method": method,
                "outer": outer,
                "previous": previous,
                "rank": rank,
                "strength_ppm": strength_ppm,
                "version": 1 if method == MEAN else RECIPE_VERSION,
            }
        )
    ).digest()


def weights_ppm(weighted: Sequence[tuple[Id, float | Fraction]]) -> dict[Id, int]:
    """Weights as whole parts per million that sum to exactly a million; only ratios count, and the order does not.

    Each is rounded down and the rest goes to the largest fractions, ties to the smaller id. Weights that already are
    ppm of a million come back as they are. Raises `AverageSpecInvalid` for what can't be averaged.
    """
    _check_weights(weighted)
    total = sum(Fraction(weight) for _, weight in weighted)
    exact = {leaf: Fraction(weight) * MILLION / total for leaf, weight in weighted}
    ppm = {leaf: math.floor(share) for leaf, share in exact.items()}
    by_need = sorted(exact, key=lambda leaf: (ppm[leaf] - exact[leaf], leaf))
    for leaf in by_need[: MILLION - sum(ppm.values())]:
        ppm[leaf] += 1
    for leaf, share in ppm.items():
        if not share:
            raise AverageSpecInvalid(f"the weight of {_shown(leaf)} is under a millionth of the whole", field="weights")
    return ppm


def strength_in_ppm(strength: float) -> int:
    """The strength as whole parts per million. Raises `AverageSpecInvalid`."""
    if not (math.isfinite(strength) and 0 < strength <= MAX_STRENGTH):
        raise AverageSpecInvalid(
            f"the strength {strength} is not above 0 and at most {MAX_STRENGTH:g}", field="strength"
        )
    return max(1, round(strength * MILLION))


def expand_leaves(parents: Sequence[tuple[bytes, float]], averages: Mapping[bytes, Parent]) -> Expanded:
    """The leaves of `parents` (id, weight): those that `averages` knows are replaced by their leaves, once each.

    Averaging averages then counts no leaf twice, and before truncation gives the same function. A lineage lists
    leaves only, so that one step is enough. The strengths of the parents end in the expanded strength.
    """
    shares: dict[bytes, Fraction] = {}
    for parent, ppm in weights_ppm(parents).items():
        known = averages.get(parent, Parent(((parent, MILLION),), MILLION))
        for leaf, weight in known.leaves:
            part = Fraction(ppm * weight * known.strength_ppm, MILLION**3)
            shares[leaf] = shares.get(leaf, Fraction(0)) + part
    leaves = weights_ppm(list(shares.items()))
    return Expanded(tuple(sorted(leaves.items())), round(sum(shares.values()) * MILLION))


def share_ppm(cut: float, total: float) -> int:
    """The root of a share of squared lengths, in parts per million; 0 of nothing."""
    return round(MILLION * (cut / total) ** 0.5) if total else 0


def _check_weights(weighted: Sequence[tuple[Id, float | Fraction]]) -> None:
    if not weighted:
        raise AverageSpecInvalid("no adapter to average", field="adapters")
    seen: set[Id] = set()
    for leaf, weight in weighted:
        if leaf in seen:
            raise AverageSpecInvalid(f"{_shown(leaf)} is named twice", field="adapters")
        seen.add(leaf)
        if not math.isfinite(weight) or weight <= 0:
            raise AverageSpecInvalid(f"the weight of {_shown(leaf)} is {weight}; it must be above 0", field="weights")


def _shown(leaf: bytes | str) -> str:
    return text_id(ADAPTER, leaf) if isinstance(leaf, bytes) else leaf[:80]
