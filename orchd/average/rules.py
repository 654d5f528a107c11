"""The methods and rank rules by name, and when each is the right one. No numpy here: the daemon reads this."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from orchd.errors import AverageSpecInvalid, RankRuleInvalid

MAX_RANK = 1_024
MILLION = 1_000_000
MEAN, AUTO = "mean", "auto"
UNLIKE, DEFENDED = "tsv", "clip"
"""What `auto` takes for unlike and for alike adapters (`average.md` §0.5 and §4)."""


class Method(NamedTuple):
    """What is to be known of a method before any number is read.

    `voted`: near-copies and one author's adapters are one vote, and no vote weighs more than a third. `weighted`: it
    asks for weights. `least` votes are needed. `strength` is the one taken when none is given, `most` the largest; 0
    is the one at which no vote exceeds `votes.MAX_REACH`. `linear`: its result is Σ cᵢ ΔWᵢ.
    """

    voted: bool
    weighted: bool
    least: int
    linear: bool
    strength: float
    most: float
    use: str


METHODS: Mapping[str, Method] = {
    MEAN: Method(False, True, 1, True, 1.0, 100.0, "adapters of people you trust, and steps of one training in rounds"),
    "clip": Method(True, True, 1, True, 1.0, 0.0, "alike adapters of strangers: nobody is louder than the median"),
    "tsv": Method(
        True, True, 1, False, 0.4, 1.0, "unlike adapters (TSV-M): whitened, so that they overwrite each other less"
    ),
    "geometric-median": Method(
        True, True, 1, True, 1.0, 0.0, "alike adapters when up to half of the votes may be wrong in any direction"
    ),
    "median": Method(
        True, False, 3, False, 1.0, 0.0, "alike adapters when a minority is wrong in size more than in direction"
    ),
    "trimmed-mean": Method(
        True, False, 3, False, 1.0, 0.0, "as the median, but keeps more of the honest votes when few are wrong"
    ),
    "multi-krum": Method(
        True, False, 3, True, 1.0, 0.0, "alike adapters with many liars; on unlike ones it throws out honest votes"
    ),
    "krum": Method(
        True, False, 3, True, 1.0, 0.0, "picks the one vote that most others are near to; says who is the odd one out"
    ),
}
"""Strengths and uses: `average.md` §0, §2 and §4 of the project's measurements."""


@dataclass(frozen=True)
class RankRule:
    """Which rank each module of the average gets.

    `fixed`: at most `rank`. `budget`: as many numbers in all as `rank` everywhere takes, given to the modules where
    they bring most. `energy`: the smallest that keeps `energy_ppm` of a module's squared length. `stacked`: all
    directions, so that nothing is cut off.
    """

    kind: Literal["fixed", "energy", "budget", "stacked"]
    rank: int = MAX_RANK
    energy_ppm: int = MILLION

    @classmethod
    def parse(cls, given: int | str) -> Self:
        """`16`, `energy:.95`, `budget:16` or `stacked`. Raises `AverageSpecInvalid`, `RankRuleInvalid`."""
        kind, colon, value = str(given).strip().partition(":")
        try:
            if kind == "stacked" and not colon:
                return cls("stacked")
            if kind == "energy" and colon:
                return cls("energy", energy_ppm=_share(float(value)))
            if kind == "budget" and colon:
                return cls("budget", _rank(int(value)))
            if not colon:
                return cls("fixed", _rank(int(kind)))
        except ValueError:
            pass
        raise RankRuleInvalid(f"no rank rule {str(given)[:40]!r}", field="rank")

    @property
    def text(self) -> str:
        """As `parse` takes it; the same rule always has the same text."""
        if self.kind == "energy":
            return f"energy:{self.energy_ppm / MILLION:g}"
        return {"fixed": f"{self.rank}", "budget": f"budget:{self.rank}", "stacked": "stacked"}[self.kind]


def recipe_method(method: str, rule: RankRule) -> str:
    """What a lineage and a recipe's digest call the method: with the rank rule, unless the rank is a fixed one."""
    return method if rule.kind == "fixed" else f"{method}/{rule.text}"


def parse_recipe(method: str, rank: int) -> tuple[str, RankRule]:
    """The method and rank rule that a lineage names. Raises `AverageSpecInvalid`, `RankRuleInvalid`."""
    name, slash, rule = method.partition("/")
    return check_method(name), RankRule.parse(rule if slash else rank)


def check_method(method: str) -> str:
    """Raises `AverageSpecInvalid` for a method that is not here."""
    if method not in METHODS:
        raise AverageSpecInvalid(f"no method {method[:40]!r}; there is {', '.join(METHODS)}", field="method")
    return method


def check_wanted(method: str) -> str:
    """As `check_method`, for what a user may ask for: `auto` too."""
    return method if method == AUTO else check_method(method)


def _rank(rank: int) -> int:
    if not 1 <= rank <= MAX_RANK:
        raise AverageSpecInvalid(f"the rank {rank} is not from 1 to {MAX_RANK}", field="rank")
    return rank


def _share(energy: float) -> int:
    if not (math.isfinite(energy) and 0.01 <= energy <= 1):
        raise RankRuleInvalid(f"the energy {energy} is not from .01 to 1", field="rank")
    return round(energy * MILLION)
