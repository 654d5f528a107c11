"""How much better than its base an adapter is, by the word of distinct people that this node follows.

Each person counts once, with their newest measurement of the loss beside the base's; the author's own word does not
count. What is ranked by is the lower end of the 95 % interval of the mean gain, so that one lucky measurement of few
examples does not stand above several sound ones.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import variance
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from orchd.records import MICRO, Attestation, verify
from orchd.registry.local_rows import Received
from orchd.registry.trust import ATTESTATION, View

if TYPE_CHECKING:
    from orchd.registry.registry import Registry

NINETY_FIVE: Final = 1.96
METRIC: Final = "loss"
DIFFERENCE_INTERVAL: Final = "difference_interval"
"""In an attestation's `extra`: half of the 95 % interval of the paired difference to the base, in the metric's unit."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Nats a token by which the loss is below the base's: the mean over `evaluators` people, and the lower end of its
    95 % interval."""

    gain: float
    low: float
    evaluators: int


class Gain(NamedTuple):
    """One person's measurement, in nats a token: `half` of its 95 % interval."""

    person: str
    value: float
    half: float


def standings(registry: Registry, view: View, only: Sequence[str] | None = None) -> dict[str, Standing]:
    """By adapter that somebody followed has measured: of all, or of these."""
    return {adapter: standing(each) for adapter, each in _told(registry, view, only).items() if each}


def _told(registry: Registry, view: View, only: Sequence[str] | None) -> dict[str, list[Gain]]:
    """By adapter, what each followed person but its author measured."""
    people = sorted(view.followed())
    keys = [key for person in people for key in sorted(view.keys_of(person))]
    if not keys:
        return {}
    condition, params = "kind = ? AND list_contains(?::VARCHAR[], author)", [ATTESTATION, keys]
    if only is not None:
        condition, params = f"{condition} AND list_contains(?::VARCHAR[], adapter)", [*params, list(only)]
    received = registry.local.where(Received, condition, params)
    gains = newest_gains(
        view, ((row.adapter, verify(row.envelope, Attestation).record, row.author) for row in received)
    )
    found = registry.index.read(
        "SELECT digest, author FROM adapter WHERE list_contains(?::VARCHAR[], digest)", [list(gains)]
    )
    authors: dict[str, str] = dict(found)
    return {
        adapter: [one for one in each if adapter not in authors or not view.same(one.person, authors[adapter])]
        for adapter, each in gains.items()
    }


def words(registry: Registry, view: View, only: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Of these adapters, how many followed people measured each as surely better than the base, and as surely worse:
    beyond their 95 % interval."""
    found: dict[str, tuple[int, int]] = {}
    for adapter, each in _told(registry, view, only).items():
        better, worse = sum(one.value > one.half for one in each), sum(-one.value > one.half for one in each)
        if better or worse:
            found[adapter] = (better, worse)
    return found


def newest_gains(view: View, told: Iterable[tuple[str, Attestation, str]]) -> Mapping[str, Sequence[Gain]]:
    """By adapter, the newest measurement of each person. Who has been caught telling two stories is not asked."""
    newest: dict[tuple[str, str], Attestation] = {}
    for adapter, record, author in told:
        person = view.newest(author)
        before = newest.get((adapter, person))
        if record.metric != METRIC or record.base_value is None or view.equivocated(person):
            continue
        if before is None or record.created_ms > before.created_ms:
            newest[adapter, person] = record
    found: dict[str, list[Gain]] = defaultdict(list)
    for (adapter, person), record in sorted(newest.items(), key=lambda item: item[0]):
        found[adapter].append(_gain(person, record))
    return found


def _gain(person: str, record: Attestation) -> Gain:
    """Where only the interval of the adapter's own figure is told, the base's may be as wide, and the two add up."""
    told = record.extra.get(DIFFERENCE_INTERVAL)
    half = told if isinstance(told, int) and told >= 0 else 2 * record.interval
    return Gain(person, ((record.base_value or 0) - record.value) / MICRO, half / MICRO)


def standing(gains: Sequence[Gain]) -> Standing:
    """The mean, each person alike, and how sure it is: by what each said of their own measurement, or by how much they
    differ where that is more. ``gains`` are not empty."""
    count = len(gains)
    mean = sum(one.value for one in gains) / count
    within = sum((one.half / NINETY_FIVE) ** 2 for one in gains) / count**2
    between = variance([one.value for one in gains]) / count if count > 1 else 0.0
    return Standing(gain=mean, low=mean - NINETY_FIVE * math.sqrt(max(within, between)), evaluators=count)
