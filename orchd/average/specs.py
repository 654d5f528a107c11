"""What goes into an averaging job and what comes out. The daemon imports this: no numpy here."""

from __future__ import annotations

from typing import Literal

import msgspec

from orchd.average.gate_specs import GatePlan, GateReport, GateSpec, Opinion
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

    `method` and `rank` are as `orchd.average.rules` has them: 16, "energy:.95", "budget:16", "stacked". A strength of
    None is the method's own. `inherited` multiplies it: the strength of the averages that these leaves came out of.

    With `gate` one's own held-out data decides who is in it, and how strong it is; `ungated` says why it does not,
    where the result is to say so. `opinions` are those of followed authors, and count in both cases.
    """

    adapters: tuple[WeightedAdapter, ...]
    rank: int | str = 16
    method: str = "mean"
    strength: float | None = None
    inherited: float = 1.0
    dtype: Dtype = "BF16"
    gate: GateSpec | None = None
    ungated: str = ""
    opinions: tuple[Opinion, ...] = ()


class ModulePreview(_Value, frozen=True, kw_only=True):
    """One module of the result; `residual_ppm` is a share of its own length."""

    name: str
    rank: int
    residual_ppm: int


class AverageResult(_Value, frozen=True, kw_only=True):
    """A finished average.

    `adapter` is the PEFT folder relative to the job's folder, `method` the one that was used. `rank` is the largest
    rank of a module; it is smaller than the wanted one where the leaves together have no more. `residual_ppm` is what
    truncation cut off, ‖ΔW_rank − ΔW_exact‖ / ‖ΔW_exact‖ over all modules, in parts per million; `tolerance_ppm` what
    the bytes may be off by besides, because of `dtype`. `cosines[i][j]` and `norms[i]` (Frobenius, of ΔWᵢ) are in the
    order of the spec's adapters; `weights_ppm` too, they sum to a million. `strength_ppm` is the one used, which may be
    smaller than the wanted one: no vote gets too far. `votes` are the places of the adapters that had one together, and
    `coefficients_ppm` what became of the weights, without the strength; empty where the result is no weighted sum.
    `modules` say what was cut off of each.

    Where the gate refused some (`gate`), all of it is of the others, whose ids are `leaves`; empty: all are in it.
    """

    adapter: str
    method: str = "mean"
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
    modules: tuple[ModulePreview, ...] = ()
    leaves: tuple[str, ...] = ()
    gate: GateReport | None = None


class AverageExtra(msgspec.Struct, frozen=True, kw_only=True):
    """`extra.average` of a manifest: what an average took of each leaf, in the lineage's order, without the strength.

    In parts per million. Only methods that end in a weighted sum, and are more than the plain mean, have it. `missing`
    are leaves that should be in it and could not be had: the weights are those of the rest.
    """

    version: int = 1
    coefficients_ppm: tuple[int, ...] = ()
    missing: tuple[bytes, ...] = ()


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


class Refusal(_Value, frozen=True, kw_only=True):
    """An adapter that can't be in the average, and why."""

    id: str
    name: str
    reason: str


class PlanSpec(_Value, frozen=True, kw_only=True):
    """What would `average` be and cost? With `through`, all of it is computed, and only not written.

    `refused` are those that the daemon has refused already.
    """

    average: AverageSpec
    refused: tuple[Refusal, ...] = ()
    names: tuple[str, ...] = ()
    through: bool = False
    gate: GatePlan | None = None


class Planned(_Value, frozen=True, kw_only=True):
    """One leaf. `weight_ppm` is its recipe's, `taken_ppm` what becomes of it, None where the result is no sum.

    `vote` counts from 1; the same number is the same vote. `norm` is ‖ΔW‖ (Frobenius), `size` in bytes.
    """

    id: str
    name: str
    author: str
    vote: int
    weight_ppm: int
    taken_ppm: int | None
    norm: float
    size: int


class Preview(_Value, frozen=True, kw_only=True):
    """What would come out: the largest rank, its numbers, and what truncation would cut off, by module too."""

    rank: int
    parameters: int
    residual_ppm: int
    modules: tuple[ModulePreview, ...]


class AveragePlan(_Value, frozen=True, kw_only=True):
    """What an average would do. `likeness` is "alike", "unlike" or "one vote", `cosine` the mean of two votes.

    `bytes` are those of the leaves' weights, `seconds` what the average would take, judged by going through them
    once. `warnings` are sentences. `gate` says which data decides, `judged` what it decided where all was computed.
    `asked` is the method that was asked for, such as "auto", with its strength.
    """

    method: str
    rank: str
    strength_ppm: int
    reason: str
    likeness: str
    cosine: float
    leaves: tuple[Planned, ...]
    cosines: tuple[tuple[float, ...], ...]
    refused: tuple[Refusal, ...]
    warnings: tuple[str, ...]
    bytes: int
    seconds: float
    preview: Preview | None = None
    gate: GatePlan | None = None
    judged: GateReport | None = None
    asked: str = ""
    asked_strength: float | None = None
