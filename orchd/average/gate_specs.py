"""What the gate of a one-shot average is given and what it tells. The daemon imports this: no numpy here.

Losses are nats a token; a difference below 0 is an improvement. The rows are those of one's own data set that nothing
was learnt from: `choosing` rows decide who is in and how strong the average is, `deciding` rows, others than these,
whether it is better than the base and than each adapter by itself.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from orchd.jobs.sandbox import Readable

SECONDS = 120.0
"""What the gate may take where nothing else was asked for."""

Verdict = Literal["off", "better", "candidate", "quarantined"]
"""`off`: there was no data; `candidate`: not better than the base and than each single adapter; `quarantined`: a
trigger changes what it says by more than it does with the base."""

Stage = Literal["kept", "zero", "attested", "alone", "left out", "trigger"]
"""Where a leaf was refused: it is zero or not finite; the word of followed authors; a quarter of its strength alone
worsens one's own loss; the average is better without its share; it answers to a trigger."""

STAGES: tuple[Stage, ...] = ("kept", "zero", "attested", "alone", "left out", "trigger")
VERDICTS: tuple[Verdict, ...] = ("off", "better", "candidate", "quarantined")
"""Their places are the numbers in a manifest."""


class _Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Opinion(_Value, frozen=True, kw_only=True):
    """How many people that this node follows have signed that the adapter is better, or worse, than its base. Only
    whose 95 % interval leaves the base out counts."""

    adapter: str
    better: int = 0
    worse: int = 0


class GateSpec(_Value, frozen=True, kw_only=True):
    """`base` and `dataset` are folders, `seconds` what all of it may take, `seed` draws rows where all are too many.

    `name` is what the user calls the data set.
    """

    base: Readable
    dataset: Readable
    name: str = ""
    seconds: float = SECONDS
    seed: int = 0


class Compared(_Value, frozen=True, kw_only=True):
    """The loss of one beside another's on the same rows. `low` and `high` are the 95 % interval of `loss` - `against`
    by a paired test, None where there are too few rows for one; `p`: that they do not differ."""

    loss: float
    against: float
    p: float
    low: float | None = None
    high: float | None = None

    @property
    def difference(self) -> float:
        return self.loss - self.against

    @property
    def surely_worse(self) -> bool:
        return self.low is not None and self.low > 0

    @property
    def surely_better(self) -> bool:
        return self.high is not None and self.high < 0


class JudgedLeaf(_Value, frozen=True, kw_only=True):
    """What was found of one leaf. `reason` is empty for one that was kept.

    `alone`: a quarter of it beside the base. `without`: the average without its share beside the one with it.
    `single`: the finished average beside this leaf by itself at its whole strength, on the deciding rows. None: not
    asked.
    """

    id: str
    stage: Stage
    reason: str = ""
    alone: Compared | None = None
    without: Compared | None = None
    single: Compared | None = None
    better: int = 0
    worse: int = 0


class Tried(_Value, frozen=True, kw_only=True):
    """A method and strength that was tried on the choosing rows, at the rank that is written."""

    method: str
    strength_ppm: int
    loss: float
    chosen: bool = False


class Probed(_Value, frozen=True, kw_only=True):
    """What a trigger before ordinary prompts changed, each beside the same prompt without it.

    `repeated` is the share of answers that are the most common one, `plain` the same without the trigger, `base` the
    base's with it. `jump` is by how many nats a token the loss of the wanted answers rose beyond the base's, `usual`
    the median over all triggers.
    """

    trigger: str
    repeated: float
    plain: float
    base: float
    jump: float
    usual: float
    jumped: bool = False
    leaves: tuple[str, ...] = ()


class GateReport(_Value, frozen=True, kw_only=True):
    """All that the gate decided, in the order of the spec's adapters. `reason` says the verdict in words.

    `against_base`: the finished average beside the base, on the deciding rows. `choosing` and `deciding` are numbers of
    examples, of `rows` that there were; fewer were taken where all would have taken longer than allowed. `late`: the
    time was over before all steps of the elimination.
    """

    verdict: Verdict
    reason: str
    leaves: tuple[JudgedLeaf, ...] = ()
    against_base: Compared | None = None
    tried: tuple[Tried, ...] = ()
    probes: tuple[Probed, ...] = ()
    choosing: int = 0
    deciding: int = 0
    rows: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    late: bool = False


class GatePlan(_Value, frozen=True, kw_only=True):
    """Whether the gate is on, with which data set and why that one; `reason` also says why it is off."""

    on: bool
    reason: str
    dataset: str = ""
    examples: int = 0
    seconds: float = 0.0


class RefusedExtra(msgspec.Struct, frozen=True, kw_only=True):
    """One leaf that was refused; `figure` is the difference that the stage looked at, in micro-nats, 0 for none."""

    id: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    stage: int
    figure: int = 0


class GateExtra(msgspec.Struct, frozen=True, kw_only=True):
    """`extra.gate` of a manifest: numbers, and the ids of who was refused.

    `verdict` and `stage` are places in `VERDICTS` and `STAGES`. Losses are micro-nats a token rounded to hundredths of
    a nat, `examples` is rounded down; `base` and `average` are on the deciding rows, `difference` is the average's loss
    minus the base's and `interval` half of its 95 % interval. `single` is the largest difference between the average
    and one of its leaves alone: above 0 that leaf is better. `triggers` is how many were tried.
    """

    version: int = 1
    verdict: int = 0
    examples: int = 0
    base: int = 0
    average: int = 0
    difference: int = 0
    interval: int = 0
    single: int = 0
    triggers: int = 0
    refused: tuple[RefusedExtra, ...] = ()
