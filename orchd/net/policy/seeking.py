"""Whom to dial of those who were found. Pure.

A topic may have thousands of members, and a look-up names them all. Some are enough, taken by chance: whoever fills the
look-up with keys of its own gets its share of the connections and no more, and of one place come few.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from typing import Generic, TypeVar

from orchd.net.policy.rounds import Peer

#: Connections that we seek (others may still come), members of one topic that are enough, and of those from one place.
PEERS_SOUGHT, MEMBERS_WANTED, MEMBERS_PER_PLACE = 100, 24, 4
#: A peer that can't be reached is left alone for so many seconds; of how many this is remembered.
UNREACHABLE_PAUSE_S, UNREACHABLE = 30.0, 4096

P = TypeVar("P", bound=Peer)


class Seeking(Generic[P]):
    """Times are seconds of any one clock."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._avoided: OrderedDict[P, float] = OrderedDict()

    def failed(self, peer: P, now: float) -> None:
        """It could not be reached."""
        self._avoided.pop(peer, None)
        self._avoided[peer] = now + UNREACHABLE_PAUSE_S
        if len(self._avoided) > UNREACHABLE:
            self._avoided.popitem(last=False)

    def forgive(self, peer: P) -> None:
        self._avoided.pop(peer, None)

    def avoids(self, peer: P, now: float) -> bool:
        """Whether it could not be reached a moment ago."""
        return now < self._avoided.get(peer, now)

    def choose(self, found: Mapping[P, str], members: Mapping[P, str], connected: Collection[P], now: float) -> list[P]:
        """Whom to dial of the members of a topic that were `found`, each with its place (nothing for one that says
        nothing, as on one's own machine). `members` of the topic and `connected` peers are connected already."""
        room = min(MEMBERS_WANTED - len(members), PEERS_SOUGHT - len(connected))
        crowd = Counter(members.values())
        chosen: list[P] = []
        waiting = sorted((peer for peer in found if peer not in connected and not self.avoids(peer, now)), key=_order)
        self._rng.shuffle(waiting)
        for peer in waiting:
            place = found[peer]
            if len(chosen) < room and (not place or crowd[place] < MEMBERS_PER_PLACE):
                crowd[place] += 1
                chosen.append(peer)
        return chosen


def is_enough(members: int) -> bool:
    """Whether so many members of a topic are connected that looking for more has time."""
    return members >= MEMBERS_WANTED // 2


def _order(peer: Peer) -> bytes:
    return peer.to_bytes()
