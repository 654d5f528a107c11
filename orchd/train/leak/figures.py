"""How much an adapter gives away, in figures and in words. No torch: the daemon reads it too."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final

import msgspec

from orchd.records.manifest import NOT_MEASURED

MAX_AUC: Final = 0.65
"""Above this area under the curve of membership inference an adapter is not published unless the user says so."""

MIN_ROWS: Final = 8
"""Fewer rows that were learnt, or put aside, tell nothing."""

LITTLE_AUC: Final = 0.55
"""Up to here is chance, with the number of rows that people have."""

UNTOLD: Final = "can't be told"
"""So begins the verdict where the interval holds the limit."""

CHANCE: Final = 20
"""A canary that is likelier than all but one in so many made-up secrets is learnt, whether it is said or not."""

METHOD: Final = "membership by loss and by log ratio to the base, the larger"
SETTLES: Final = "more rows put aside settle on which side of the limit it is: more data, or `--validation-split 0.2`"
SMALLEST_LOSS: Final = 1e-6  # nats a token; for the logarithm


class CanaryFigure(msgspec.Struct, frozen=True, kw_only=True):
    """A made-up secret that was learnt with the rest: its ``rank`` by likelihood among so many ``alternatives`` that
    were not (1: more likely than any), that as ``bits`` (exposure: log2 of candidates / rank; Carlini et al., The
    Secret Sharer, 2019), and whether greedy decoding says it word for word when asked (``emitted``)."""

    name: str
    secret: str
    rank: int
    alternatives: int
    bits: float
    emitted: bool

    @property
    def learnt(self) -> bool:
        """Likelier than all but one in `CHANCE` of the others, which a secret that was not learnt is as seldom."""
        return self.rank * CHANCE <= self.alternatives + 1


class LeakReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured on the user's own data.

    ``auc`` is the chance that a row which was learnt (of ``members``) looks more like a learnt one than a row which was
    put aside (of ``heldout``): the larger of ``auc_loss`` and ``auc_ratio``, ± ``interval`` (95 %); None: too few rows.
    ``longest_run`` is the most tokens in a row of a learnt answer that greedy decoding says when it is given all
    before them; ``heldout_run`` the same of answers it never saw, ``excerpt`` the text of the first where it is longer.
    ``routing_auc``: membership by nearness to the centroid of the prompts, where that is to be signed.
    ``replay`` is the share of what was learnt that were the base's own answers, which are nobody's data. They are in
    neither count: as learnt they would dilute the figure of the user's rows, and unseen they are not.
    ``lower`` is what would lower it. ``stops``: `publish` asks whether it is meant.
    """

    auc: float | None
    auc_loss: float
    auc_ratio: float
    interval: float
    members: int
    heldout: int
    longest_run: int
    heldout_run: int
    excerpt: str
    canaries: tuple[CanaryFigure, ...]
    synthetic: bool
    verdict: str
    stops: bool
    lower: tuple[str, ...]
    seconds: float
    routing_auc: float | None = None
    replay: float = 0.0

    @property
    def emitted(self) -> int:
        """How many canaries it says."""
        return sum(one.emitted for one in self.canaries)


class Centroid(msgspec.Struct, frozen=True, kw_only=True):
    """Mean and standard deviation of ``prompts`` prompts' mean hidden states, the input of the base's ``layer``."""

    layer: int
    prompts: int
    centroid: tuple[float, ...]
    spread: tuple[float, ...]


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """The chance that a score of ``members`` is above one of ``others``, a tie counting half (Mann-Whitney)."""
    ranked = sorted(others)
    below = sum(bisect_left(ranked, score) + bisect_right(ranked, score) for score in members)
    return below / (2 * len(members) * len(ranked))


def interval(area: float, members: int, others: int) -> float:
    """Half the width of an area's 95 % interval (Hanley and McNeil, Radiology 143, 1982)."""
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (members - 1) * (one - area**2) + (others - 1) * (two - area**2)
    return 1.96 * math.sqrt(max(0.0, variance) / (members * others))


def bounds(auc: float, interval: float) -> tuple[float, float]:
    """The 95 % interval of an area."""
    return max(0.0, auc - interval), min(1.0, auc + interval)


def undecided(auc: float, interval: float) -> bool:
    """Whether the interval holds the limit: more rows would tell on which side of it the adapter is."""
    low, high = bounds(auc, interval)
    return low <= MAX_AUC < high


def log_ratio(base: float, loss: float) -> float:
    """How many times smaller a loss became (nats a token), as a logarithm. Not the difference: where the base knows
    nothing of a skill, that only ranks rows by the base's own loss."""
    return math.log(max(base, SMALLEST_LOSS) / max(loss, SMALLEST_LOSS))


def exceeds(auc: float | None, emitted: int) -> bool:
    """Whether that is more than may be published without a word: by the AUC, or a canary said word for word. What could
    not be measured is."""
    return auc is None or auc > MAX_AUC or emitted > 0


def limit_in_words() -> str:
    """What somebody agrees to who lets adapters of theirs be published without being asked each time, as in a
    federation: to be shown once, when it is joined."""
    return (
        "Adapters trained on your data are published by themselves as long as their leak report stays within the"
        f" limit: an AUC of at most {MAX_AUC:g} (0.5 is chance, 1 is certainty) in telling rows that were learnt from"
        " others, and no canary said word for word. One above it waits for you."
    )


def verdict(
    auc: float | None,
    interval: float,
    members: int,
    heldout: int,
    canaries: Sequence[CanaryFigure],
    run: tuple[int, int],
) -> str:
    """One line with its figures, short enough to be signed. ``run`` is the longest of a learnt and of a held-out
    answer."""
    if auc is None:
        return f"{NOT_MEASURED}: {members} rows learnt and {heldout} put aside, {MIN_ROWS} of each are needed"
    said, learnt = sum(one.emitted for one in canaries), sum(one.learnt for one in canaries)
    if said:
        told = "says secrets word for word"
    elif undecided(auc, interval):
        told = f"{UNTOLD} with {min(members, heldout)} rows"
    elif auc <= LITTLE_AUC:
        told = "no telling who was in it"
    elif auc <= MAX_AUC:
        told = "hints at who was in it"
    else:
        told = "gives away who was in it"
    low, high = bounds(auc, interval)
    parts = [f"{told}: AUC {auc:.2f} ({low:.2f}-{high:.2f})"]
    if canaries:
        parts.append(f"{said} of {len(canaries)} canaries said, {learnt} learnt")
    if run[0]:
        parts.append(f"{run[0]} tokens verbatim ({run[1]} unseen)")
    return "; ".join(parts)


def remedies(
    auc: float | None,
    interval: float,
    emitted: int,
    *,
    longer: bool,
    by_centroid: bool,
    members: int,
    epochs: float,
    dropout: float,
) -> tuple[str, ...]:
    """What would lower it, strongest first; nothing where there is little to lower. ``epochs`` 0: not known."""
    if auc is None:
        return ("import the data with more rows, and put some aside (not `--split train`)",)
    if auc <= LITTLE_AUC and not emitted:
        return (SETTLES,) if undecided(auc, interval) else ()
    passes = f" (it was {epochs:.0f} times through)" if epochs > 1 else ""
    found = [
        f"fewer passes over the data{passes}: a lower `--steps`, or `--early-stopping 3`",
        f"more data: {members} rows were learnt",
        "averaging with adapters of others (`orchctl average start`); it dilutes, and does not protect",
    ]
    if dropout < 0.2:
        found.insert(1, "dropout: `--lora-dropout 0.2`")
    if undecided(auc, interval) and not emitted:
        found.insert(0, SETTLES)
    if by_centroid:
        found.insert(0, "leaving out the centroid of the prompts (`--routing`), which tells most")
    if emitted or longer:
        found.append("taking out what nobody may read: `orchctl dataset prepare … --redact`")
    return tuple(found)
