"""What a member of a federation knows: plain values, kept as JSON so that it goes on where it was killed.

Recipes are hexadecimal digests; "" is the base, before the first round. Adapters are ids (`adp_…`), authors are keys
as text. Times are milliseconds of this node's own clock; no other clock is asked.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache

import msgspec

from orchd.average.recipe import MILLION, recipe_digest, weights_ppm
from orchd.average.specs import Dtype
from orchd.records.codec import encode
from orchd.records.ids import ADAPTER, parse_id

METHOD = "round-clip"
"""In a lineage: increments as votes, clipped to their median norm, none above a third (`average.md` §3 and §4)."""
DTYPE: Dtype = "BF16"
AUTO_MOMENTUM_PPM, AUTO_MEMBERS = 500_000, 4
"""With so many members or more the outer step takes momentum, unless it is told (`average.md` §3)."""
MAX_AGE = 2
"""Increments that are more rounds late are not used, and who is so far behind goes over to what the others have."""


class Phase(StrEnum):
    TRAINING = "training"
    GATHERING = "gathering"
    SETTLING = "settling"
    CLOSING = "closing"  # the last round is over; a heavier recipe of it may still come
    DONE = "done"
    STOPPED = "stopped"

    @property
    def ended(self) -> bool:
        return self in (Phase.DONE, Phase.STOPPED)


class _Value(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Outer(_Value, frozen=True, kw_only=True):
    """The outer step: G' = G + momentum · (G - what was before G) + strength · the increments' average.

    A momentum of None is `AUTO_MOMENTUM_PPM` from `AUTO_MEMBERS` members on, and none below.
    """

    momentum_ppm: int | None = None
    strength_ppm: int = MILLION

    def momentum(self, members: int) -> int:
        if self.momentum_ppm is None:
            return AUTO_MOMENTUM_PPM if members >= AUTO_MEMBERS else 0
        return self.momentum_ppm


class Rules(_Value, frozen=True, kw_only=True):
    """What all members of one federation have agreed on. `cadence_ms` is the longest that a round waits."""

    rounds: int
    cadence_ms: int
    min_peers: int
    rank: int
    outer: Outer = Outer()

    @property
    def linger_ms(self) -> int:
        """How long it is waited for others whom nobody is sure of."""
        return max(1, self.cadence_ms // 10)


class Increment(_Value, frozen=True, kw_only=True):
    """What a member learnt in a round, going on from the global of the recipe `start`."""

    adapter: str
    author: str
    round: int
    start: str


class Recipe(_Value, frozen=True, kw_only=True):
    """What a round's average is: leaves (adapter, ppm) by id, `previous` global and the one `before` it."""

    leaves: tuple[tuple[str, int], ...]
    previous: str
    before: str
    momentum_ppm: int
    strength_ppm: int
    rank: int

    @property
    def outer(self) -> bytes:
        """The digest of the outer optimiser's state: its settings and the global that its momentum comes from."""
        return outer_digest(self.momentum_ppm, self.before)

    @property
    def digest(self) -> str:
        return _digest(self)


@lru_cache(maxsize=4_096)
def _digest(recipe: Recipe) -> str:
    return recipe_digest(
        [(parse_id(leaf, ADAPTER), ppm) for leaf, ppm in recipe.leaves],
        method=METHOD,
        rank=recipe.rank,
        strength_ppm=recipe.strength_ppm,
        dtype=DTYPE,
        previous=bytes.fromhex(recipe.previous) or None,
        outer=recipe.outer,
    ).hex()


def outer_digest(momentum_ppm: int, before: str) -> bytes:
    """32 bytes. Without a momentum it does not matter what was before."""
    state = {"momentum_ppm": momentum_ppm, "before": bytes.fromhex(before) if momentum_ppm else b""}
    return hashlib.sha256(encode(state)).digest()


class Average(_Value, frozen=True, kw_only=True):
    """A round's average that somebody announced."""

    adapter: str
    author: str
    round: int
    recipe: Recipe


class Judgement(_Value, frozen=True, kw_only=True):
    """Losses (nats a token) on somebody's own held-out data with the previous global and with the new one.

    `worse`: by more than chance there. `half` is half of the 95 % interval of `after`.
    """

    before: float
    after: float
    worse: bool
    examples: int = 0
    half: float = 0.0


class Global(_Value, frozen=True, kw_only=True):
    """What a round ended with. `adapter` is the one here, "" where there is none; `weight` that of its leaves."""

    round: int
    recipe: str = ""
    adapter: str = ""
    weight: int = 0

    @property
    def here(self) -> bool:
        """The base is always."""
        return not self.recipe or bool(self.adapter)


class Share(_Value, frozen=True, kw_only=True):
    """What an average took of a member. `age` in rounds; `vote` counts from 1, and near-copies have one together."""

    author: str
    adapter: str
    weight_ppm: int
    taken_ppm: int
    age: int
    vote: int


class Turned(_Value, frozen=True, kw_only=True):
    """Who was refused, and why."""

    author: str
    adapter: str
    reason: str


class Outcome(StrEnum):
    ADOPTED = "adopted"
    HELD = "held"  # the average was worse, so the global before it stays
    TAKEN_OVER = "taken over"  # made by others while this node was away


class Played(_Value, frozen=True, kw_only=True):
    """A round that is over."""

    round: int
    outcome: Outcome
    recipe: str
    adapter: str
    began_ms: int
    ended_ms: int
    own: Judgement | None = None
    others: tuple[tuple[str, Judgement], ...] = ()
    shares: tuple[Share, ...] = ()
    turned: tuple[Turned, ...] = ()
    reason: str = ""


class Here(StrEnum):
    """How far an increment is."""

    HEARD = "heard"
    ASKED = "asked"
    HERE = "here"
    REFUSED = "refused"


class Known(msgspec.Struct, kw_only=True):
    """An increment that was heard of. `at_ms`: since when it is as it is."""

    increment: Increment
    state: Here
    at_ms: int
    reason: str = ""


class Candidate(msgspec.Struct, kw_only=True):
    """What a round may end with. `adapter` is this node's own, once made."""

    round: int
    recipe: Recipe
    adapter: str = ""
    shares: tuple[Share, ...] = ()
    judged: bool = False
    own: Judgement | None = None
    refused: str = ""
    #: Made by others, to go over to.
    foreign: bool = False


class Measured(msgspec.Struct, kw_only=True):
    """What others say of an average of a round, by who says it."""

    round: int
    told: dict[str, Judgement] = {}


class State(msgspec.Struct, kw_only=True):
    """All of it. `task` is the recipe that is being made or judged, "" for none."""

    rules: Rules
    me: str
    phase: Phase = Phase.TRAINING
    round: int = 1
    began_ms: int = 0
    deadline_ms: int = 0
    settle_ms: int = 0
    seen_ms: int = 0
    own: str = ""
    task: str = ""
    failures: int = 0
    reason: str = ""
    globals: list[Global] = msgspec.field(default_factory=lambda: [Global(round=0)])
    increments: dict[str, Known] = {}
    averages: dict[str, Average] = {}
    candidates: dict[str, Candidate] = {}
    #: By the adapter that was measured.
    attested: dict[str, Measured] = {}
    played: list[Played] = []

    @property
    def last(self) -> Global:
        """The global that this round goes on from."""
        return self.globals[-1]

    @property
    def before(self) -> Global:
        """The global before that."""
        return self.globals[-2] if len(self.globals) > 1 else self.globals[-1]


def age_of(increment: Increment, round: int, previous: str) -> int:
    """How many rounds late; what goes on from another global than the round does is late by one at least."""
    return max(round - increment.round, 0 if increment.start == previous else 1)


def damping(age: int) -> float:
    """`average.md` §3: late increments are better damped than dropped."""
    return 1 / math.sqrt(1 + age)


def weight_of(increments: Sequence[Increment], round: int, previous: str) -> int:
    """What a recipe weighs when members choose one: a million for each member, less for late ones."""
    return sum(round_half(MILLION * damping(age_of(one, round, previous))) for one in increments)


def round_half(value: float) -> int:
    return math.floor(value + 0.5)


def make_recipe(rules: Rules, increments: Sequence[Increment], round: int, previous: str, before: str) -> Recipe:
    """The recipe that the rules make of these increments, of one member each, in any order."""
    return _made(rules, frozenset(increments), round, previous, before)


@lru_cache(maxsize=4_096)
def _made(rules: Rules, increments: frozenset[Increment], round: int, previous: str, before: str) -> Recipe:
    weighted = [(one.adapter, damping(age_of(one, round, previous))) for one in increments]
    momentum = rules.outer.momentum(len(increments))
    return Recipe(
        leaves=tuple(sorted(weights_ppm(weighted).items())),
        previous=previous,
        before=before if momentum else "",
        momentum_ppm=momentum,
        strength_ppm=rules.outer.strength_ppm,
        rank=rules.rank,
    )
