"""What goes into the job that averages a round's increments, and what comes out. No numpy here: the daemon reads it."""

from __future__ import annotations

from typing import Any

import msgspec

from orchd.average.specs import Dtype
from orchd.jobs.sandbox import Readable


class _Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class IncrementPath(_Value, frozen=True, kw_only=True):
    """One increment: ΔW of `path` less that of `start`, the global that its training went on from (None: the base).

    `weight_ppm` is its recipe's, `author` tells members apart.
    """

    id: str
    path: Readable
    start: Readable | None = None
    weight_ppm: int
    author: str


class RoundSpec(_Value, frozen=True, kw_only=True):
    """G' = `previous` + momentum · (`previous` - `before`) + strength · Σ cᵢ · increment i, at most of `rank`.

    The folders are PEFT's; None is the base, which is zero. The cᵢ come of the weights by `rounds_state.METHOD`.
    """

    increments: tuple[IncrementPath, ...]
    previous: Readable | None = None
    before: Readable | None = None
    momentum_ppm: int = 0
    strength_ppm: int = 1_000_000
    rank: int = 16
    dtype: Dtype = "BF16"


class VerifyRoundSpec(_Value, frozen=True, kw_only=True):
    """Is the adapter in the folder `claimed` what `round` gives? `tolerance_ppm` is the one that its lineage states."""

    claimed: Readable
    round: RoundSpec
    tolerance_ppm: int = 5_000


class RoundResult(_Value, frozen=True, kw_only=True):
    """`adapter` is the PEFT folder relative to the job's folder. `taken_ppm`, `votes` (from 1), `norms` (Frobenius) and
    `cosines` are of the increments, in the spec's order; an increment that changes nothing takes part in no vote (0).
    `residual_ppm` is what the rank cut off of the new global."""

    adapter: str
    rank: int
    parameters: int
    residual_ppm: int
    tolerance_ppm: int
    taken_ppm: tuple[int, ...]
    votes: tuple[int, ...]
    norms: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]
    seconds: float


class RoundExtra(msgspec.Struct, frozen=True, kw_only=True):
    """`extra.round` of an increment's or a round's average's manifest. Recipes are digests (32 bytes), empty for the
    base: `start` what an increment goes on from; `previous`, `before` and `momentum_ppm` as in `rounds_state.Recipe`.
    """

    version: int = 1
    start: bytes = b""
    previous: bytes = b""
    before: bytes = b""
    momentum_ppm: int = 0


msgspec.json.Decoder(RoundExtra)  # before two threads are the first to convert one (`records/envelope.py`)


def round_extra(extra: dict[str, Any]) -> RoundExtra | None:
    """None where there is none, or of another form."""
    try:
        found = msgspec.convert(extra.get("round"), RoundExtra)
    except msgspec.ValidationError:
        return None
    digests = (found.start, found.previous, found.before)
    sound = all(len(one) in (0, 32) for one in digests) and found.version == 1
    return found if sound and 0 <= found.momentum_ppm <= 10**9 else None
