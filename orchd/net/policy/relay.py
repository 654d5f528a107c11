"""Relaying for others, within limits: who has a slot, and who may open a circuit to whom.

A peer with a *slot* is told to others as reachable through this node; a *circuit* is one connection between two peers
that goes through it. Both cost the giver, so there are few, fewer of one peer and of one place, and half of the slots
are kept for peers that share a topic with this node. A slot lasts an hour and is gone with the connection. Pure: times
are seconds of any steady clock, places are those of `reach.network_of`, empty where they say nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, TypeVar

from orchd.net.policy.rates import Bucket, Quotas

#: Slots in all, for peers that share no topic with this node, and for one place.
SLOTS, STRANGERS, SLOTS_PER_PLACE = 64, 32, 8
#: How long a slot is good for, in seconds.
SLOT_S = 3600
#: Circuits at once: in all, from one peer, and to one peer.
CIRCUITS, CIRCUITS_FROM, CIRCUITS_TO = 32, 4, 8
#: Of one circuit: seconds, and bytes in both directions together.
CIRCUIT_S, CIRCUIT_BYTES = 3600, 256 << 20
#: Bytes that the circuits of one place, and those of one peer without one, carry in an hour.
HOURLY_BYTES, HOUR_S = 1 << 30, 3600.0
#: Circuits a second that one peer may ask for, and how many at once after a silence.
ASKED_RATE, ASKED_BURST = 0.1, 8.0
#: Peers whose asking is remembered.
REMEMBERED = 1024

P = TypeVar("P", bound=Hashable)


class Refusal(Enum):
    #: This node relays for nobody.
    OFF = auto()
    #: There is no room, or this peer has had its share.
    FULL = auto()
    #: The other peer has no slot here.
    NO_SLOT = auto()


@dataclass(eq=False)
class Circuit(Generic[P]):
    """One that is open. `left`: bytes that it may still carry."""

    source: P
    target: P
    place: str
    left: int = CIRCUIT_BYTES


@dataclass
class _Slot:
    place: str
    is_member: bool
    until: float


@dataclass
class Slots(Generic[P]):
    """On one relay."""

    is_on: bool = True
    _slots: dict[P, _Slot] = field(default_factory=dict)
    _circuits: set[Circuit[P]] = field(default_factory=set)
    _asked: dict[P, Bucket] = field(default_factory=dict)
    _quotas: Quotas[P | str] = field(default_factory=lambda: Quotas(HOURLY_BYTES, HOUR_S))

    def reserve(self, peer: P, place: str, is_member: bool, now: float) -> Refusal | None:
        """Give or renew a slot."""
        if not self.is_on:
            return Refusal.OFF
        self._expire(now)
        others = [slot for holder, slot in self._slots.items() if holder != peer]
        near = [slot for slot in others if place and slot.place == place]
        strangers = [slot for slot in others if not slot.is_member]
        if len(others) >= SLOTS or len(near) >= SLOTS_PER_PLACE or (not is_member and len(strangers) >= STRANGERS):
            return Refusal.FULL
        self._slots[peer] = _Slot(place, is_member, now + SLOT_S)
        return None

    def connect(self, source: P, target: P, place: str, now: float) -> Circuit[P] | Refusal:
        """Open a circuit from `source`, which is at `place`. It has to be closed."""
        if not self.is_on:
            return Refusal.OFF
        self._expire(now)
        if not self._bucket(source, now).take(now):
            return Refusal.FULL
        if target not in self._slots or source == target:
            return Refusal.NO_SLOT
        sources = Counter(circuit.source for circuit in self._circuits)
        targets = Counter(circuit.target for circuit in self._circuits)
        full = len(self._circuits) >= CIRCUITS
        if full or sources[source] >= CIRCUITS_FROM or targets[target] >= CIRCUITS_TO:
            return Refusal.FULL
        circuit = Circuit(source, target, place)
        self._circuits.add(circuit)
        return circuit

    def carry(self, circuit: Circuit[P], count: int, now: float) -> bool:
        """Whether so many bytes more may go through; they are counted then."""
        if count > circuit.left or not self._quotas.take(circuit.place or circuit.source, now, count):
            return False
        circuit.left -= count
        return True

    def close(self, circuit: Circuit[P]) -> None:
        self._circuits.discard(circuit)

    def gone(self, peer: P) -> None:
        """It is not connected directly any more."""
        self._slots.pop(peer, None)

    def has(self, peer: P) -> bool:
        """Whether it has a slot."""
        return peer in self._slots

    @property
    def held(self) -> int:
        """Slots."""
        return len(self._slots)

    @property
    def open(self) -> int:
        """Circuits."""
        return len(self._circuits)

    def _expire(self, now: float) -> None:
        for peer in [peer for peer, slot in self._slots.items() if slot.until <= now]:
            del self._slots[peer]

    def _bucket(self, peer: P, now: float) -> Bucket:
        if peer not in self._asked:
            while len(self._asked) >= REMEMBERED:
                del self._asked[next(iter(self._asked))]
            self._asked[peer] = Bucket(ASKED_RATE, ASKED_BURST, now)
        return self._asked[peer]


# ---- the other side: whose slots to ask for ----------------------------------------------------------------------

#: Slots that a node behind a router holds, and how long a relay that refused or did not answer is left alone, in
#: seconds.
WANTED, REFUSED_PAUSE_S, FAILED_PAUSE_S = 2, 600.0, 10.0


@dataclass(frozen=True)
class Candidate(Generic[P]):
    """A peer that this node has dialled, and that says it relays. `is_trusted`: one of the settings, or one that shares
    a topic."""

    peer: P
    place: str
    is_near: bool
    is_trusted: bool


def is_needed(relay: Candidate[P], inbound: int, from_afar: int) -> bool:
    """Whether a slot there is of use: who was reached directly needs none, on this network or from outside.

    `inbound` counts direct connections that others have made to this node, `from_afar` those from other networks.
    """
    return not (inbound if relay.is_near else from_afar)


def choose(
    candidates: list[Candidate[P]], held: list[Candidate[P]], inbound: int, from_afar: int
) -> list[Candidate[P]]:
    """Whom to ask for a slot, best first, so that `WANTED` are held: at different places, those outside and trusted
    ones first."""
    wanted = [one for one in candidates if is_needed(one, inbound, from_afar)]
    wanted.sort(key=lambda one: (one.is_near, not one.is_trusted))
    chosen: list[Candidate[P]] = []
    for one in wanted:
        places = {other.place for other in (*held, *chosen)}
        if one.peer not in {other.peer for other in held} and (not one.place or one.place not in places):
            chosen.append(one)
    return chosen[: max(0, WANTED - len(held))]
