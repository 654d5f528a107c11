"""What goes into an averaging job and what comes out. The daemon imports this: no numpy here."""

from __future__ import annotations

from typing import Literal

import msgspec

from orchd.jobs.sandbox import Readable

Dtype = Literal["BF16", "F16", "F32"]


class _Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class WeightedAdapter(_Value, frozen=True, kw_only=True):
    """One leaf: its id (`adp_…`), the PEFT folder on this machine, its weight (only the ratio to the others counts).

    `author` tells authors apart, whose adapters have one vote together; an empty one is nobody else's.
    """

    id: str
    path: Readable
    weight: float = 1.0
    author: str = ""


class AverageSpec(_Value, frozen=True, kw_only=True):
    """Average `adapters` by `method` at `rank`, the whole times `strength`, and write it in `dtype`.

    `method` and `rank` are as `orchd.average.rules` has them: 16, "energy:.95", "budget:16", "stacked".
    """

    adapters: tuple[WeightedAdapter, ...]
    rank: int | str = 16
    method: str = "mean"
    strength: float = 1.0
    dtype: Dtype = "BF16"


class AverageResult(_Value, frozen=True, kw_only=True):
    """A finished average.

    `adapter` is the PEFT folder relative to the job's folder. `rank` is the largest rank of a module; it is smaller
    than the wanted one where the leaves together have no more. `residual_ppm` is what truncation cut off,
    ‖ΔW_rank − ΔW_exact‖ / ‖ΔW_exact‖ over all modules, in parts per million; `tolerance_ppm` what the bytes may be
    off by besides, because of `dtype`. `cosines[i][j]` and `norms[i]` (Frobenius, of ΔWᵢ) are in the order of
    the spec's adapters; `weights_ppm` too, they sum to a million. `strength_ppm` is the one used, which may be smaller
    than the wanted one: no vote gets too far. `votes` are the places of the adapters that had one together, and
    `coefficients_ppm` what became of the weights, without the strength; empty where the result is no weighted sum.
    """

    adapter: str
    rank: int
    alpha: float
    rslora: bool
    target_modules: tuple[str, ...]
    dtype: Dtype
    parameters: int
    residual_ppm: int
    tolerance_ppm: int
    weights_ppm: tuple[int, ...]
    strength_ppm: int
    norms: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]
    seconds: float
    votes: tuple[tuple[int, ...], ...] = ()
    coefficients_ppm: tuple[int, ...] = ()


class AverageExtra(_Value, frozen=True, kw_only=True):
    """`extra.average` of a manifest: what an average took of each leaf, in the lineage's order, without the strength.

    In parts per million. Only methods that end in a weighted sum, and are more than the plain mean, have it.
    """

    version: int = 1
    coefficients_ppm: tuple[int, ...] = ()


class VerifySpec(_Value, frozen=True, kw_only=True):
    """Is the adapter in the folder `claimed` what the recipe says? `tolerance_ppm` is the one its lineage states.

    `coefficients_ppm`, in the order of `leaves`, are those that its manifest states besides; empty where none are.
    """

    claimed: Readable
    leaves: tuple[WeightedAdapter, ...]
    rank: int | str
    method: str = "mean"
    strength: float = 1.0
    tolerance_ppm: int = 5_000
    coefficients_ppm: tuple[int, ...] = ()


class VerifyResult(_Value, frozen=True, kw_only=True):
    """What the recomputation found. All figures are shares of ‖ΔW_exact‖, the exact average of the leaves.

    `distance` is ‖ΔW_claimed − ΔW_exact‖ and `residual` the smallest distance that any adapter of this rank can have
    (Eckart-Young); `relative_error` = √(distance² − residual²) is what rounding or a lie added, and is compared with
    `tolerance`. `detail` says in words why it does not hold.
    """

    relative_error: float
    tolerance: float
    holds: bool
    distance: float
    residual: float
    detail: str
