"""What a member of a federation is told (events), and what it has done for it (commands)."""

from __future__ import annotations

from dataclasses import dataclass

from orchd.average.rounds_state import Average, Global, Increment, Judgement, Played, Recipe, Share

# ---- commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Train:
    """Go on from `start` on one's own data, as round `round` of all."""

    round: int
    start: Global


@dataclass(frozen=True)
class StopTraining:
    round: int


@dataclass(frozen=True)
class Announce:
    """Tell the topic of an increment or an average of one's own."""

    adapter: str


@dataclass(frozen=True)
class Fetch:
    """Bring an adapter through the door."""

    adapter: str


@dataclass(frozen=True)
class Look:
    """Bring an adapter's manifest alone: a leaf that nobody has announced to us."""

    adapter: str


@dataclass(frozen=True)
class Make:
    """Average `increments` by `recipe`; `globals` are the adapters of the recipes that they and it go on from."""

    round: int
    recipe: Recipe
    increments: tuple[Increment, ...]
    globals: tuple[Global, ...]


@dataclass(frozen=True)
class Judge:
    """Measure `adapter` beside `before` ("" is the base) on one's own held-out data."""

    recipe: str
    adapter: str
    before: str


@dataclass(frozen=True)
class Attest:
    """Sign what was measured of one's own average."""

    round: int
    adapter: str
    judgement: Judgement


@dataclass(frozen=True)
class Adopt:
    """The round is over with this global."""

    played: Played


Command = Train | StopTraining | Announce | Fetch | Look | Make | Judge | Attest | Adopt


# ---- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class Trained:
    """One's own increment is in the registry."""

    increment: Increment


@dataclass(frozen=True)
class TrainingFailed:
    round: int
    reason: str


@dataclass(frozen=True)
class Heard:
    """An increment's manifest was seen."""

    increment: Increment


@dataclass(frozen=True)
class Arrived:
    """An adapter was admitted here."""

    adapter: str


@dataclass(frozen=True)
class Refused:
    """An adapter did not get in, or can't be used."""

    adapter: str
    reason: str


@dataclass(frozen=True)
class AverageHeard:
    average: Average


@dataclass(frozen=True)
class Made:
    """One's own average by a recipe is in the registry."""

    recipe: str
    adapter: str
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class Failed:
    """What was to be made or judged can't be."""

    recipe: str
    reason: str


@dataclass(frozen=True)
class Judged:
    """`judgement` is None where there is no data of one's own to judge by."""

    recipe: str
    judgement: Judgement | None


@dataclass(frozen=True)
class Attested:
    round: int
    adapter: str
    author: str
    judgement: Judgement


@dataclass(frozen=True)
class Stop:
    reason: str


Event = (
    Tick
    | Trained
    | TrainingFailed
    | Heard
    | Arrived
    | Refused
    | AverageHeard
    | Made
    | Failed
    | Judged
    | Attested
    | Stop
)
