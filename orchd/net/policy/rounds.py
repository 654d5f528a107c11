"""When a topic is announced and looked up on the DHT, and which servers a lookup asks. Pure.

A peer's place among keys is the SHA-256 of its id, a key's that of the key
(https://github.com/libp2p/specs/blob/master/kad-dht/README.md); near is what XOR makes small.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

#: Servers asked at once, and asked in all, in one lookup.
PARALLEL, SERVERS = 10, 30
#: Servers asked in all in a lookup for upkeep, and the pause between lookups from which on they are that, in seconds;
#: and those that are told again, of the ones closest to a key, where all are known.
UPKEEP_SERVERS, UPKEEP_PAUSE_S, AGAIN_SERVERS = 3, 60.0, 8
#: Connected peers that are asked, or told of an announcement, besides the servers closest to the key: at first, and for
#: upkeep. Who holds all places around a key can hide a topic from those servers' clients, not from these.
ASIDE, UPKEEP_ASIDE = 8, 2
#: After a join: the first pause between lookups, doubling up to the configured one; in seconds.
FIRST_PAUSE_S = 1.0
#: In a small network every new peer is one of those that ought to hold our records.
SMALL_NETWORK = 20
#: New peers make us announce again, but not more often than this, in seconds.
REANNOUNCE_PAUSE_S = 2.0
#: A server takes ten announcements of one peer in ten seconds and drops the rest without a word.
ANNOUNCE_AT_ONCE, ANNOUNCE_PAUSE_S = 8, 11.0


class Peer(Hashable, Protocol):
    """Whatever names a peer."""

    def to_bytes(self) -> bytes: ...


P = TypeVar("P", bound=Peer)
A = TypeVar("A")


@dataclass
class _Due:
    announce_at: float
    lookup_at: float
    pause: float = FIRST_PAUSE_S


class Rounds:
    """When which topic is to be announced and looked up. Times in seconds of any one clock."""

    def __init__(self, announce_every_s: float, lookup_every_s: float, rng: random.Random) -> None:
        self._announce_every = announce_every_s
        self._lookup_every = lookup_every_s
        self._rng = rng
        self._due: dict[str, _Due] = {}
        self._reannounce_after = float("-inf")

    def joined(self, name: str, now: float) -> None:
        self._due[name] = _Due(now, now)

    def left(self, name: str) -> None:
        self._due.pop(name, None)

    def new_peer(self, now: float, network_size: int) -> None:
        """A peer has entered the routing table: if the network is small, our records belong there too."""
        if network_size > SMALL_NETWORK:
            return
        at = max(now, self._reannounce_after)
        self._reannounce_after = at + REANNOUNCE_PAUSE_S
        for due in self._due.values():
            due.announce_at = min(due.announce_at, at)
            due.lookup_at = min(due.lookup_at, at)

    def moved(self, now: float) -> None:
        """This node has other addresses than those that were announced."""
        at = max(now, self._reannounce_after)
        self._reannounce_after = at + REANNOUNCE_PAUSE_S
        for due in self._due.values():
            due.announce_at = min(due.announce_at, at)

    def to_announce(self, now: float) -> list[str]:
        """Topics whose announcement is due, at most `ANNOUNCE_AT_ONCE`; the rest are due when servers take more.

        Each is due again after the interval, less a random tenth.
        """
        names = [name for name, due in self._due.items() if due.announce_at <= now]
        for name in names[ANNOUNCE_AT_ONCE:]:
            self._due[name].announce_at = now + ANNOUNCE_PAUSE_S
        for name in names[:ANNOUNCE_AT_ONCE]:
            self._due[name].announce_at = now + self._announce_every * self._rng.uniform(0.9, 1.0)
        return names[:ANNOUNCE_AT_ONCE]

    def to_look_up(self, now: float) -> list[str]:
        """Topics to look up, with pauses that double from `FIRST_PAUSE_S` to the configured one."""
        names = [name for name, due in self._due.items() if due.lookup_at <= now]
        for name in names:
            due = self._due[name]
            due.lookup_at = now + due.pause * self._rng.uniform(0.9, 1.1)
            due.pause = min(due.pause * 2, self._lookup_every)
        return names

    def enough(self, name: str, now: float) -> None:
        """Enough members are connected: the next lookup is for upkeep."""
        if (due := self._due.get(name)) and due.pause < self._lookup_every:
            due.pause = self._lookup_every
            due.lookup_at = now + due.pause * self._rng.uniform(0.9, 1.1)

    def servers(self, name: str) -> int:
        """How many a lookup that is due now is to ask: few when those before have asked many again and again."""
        due = self._due.get(name)
        return UPKEEP_SERVERS if due and due.pause > min(UPKEEP_PAUSE_S, self._lookup_every) else SERVERS

    def retry_announce(self, name: str, now: float) -> None:
        """Nobody has taken the announcement: it is due again with the next lookup."""
        if name in self._due:
            self._due[name].announce_at = max(self._due[name].lookup_at, now + FIRST_PAUSE_S)

    def next_at(self) -> float:
        """When something is due next."""
        return min((min(due.announce_at, due.lookup_at) for due in self._due.values()), default=float("inf"))


class Search(Generic[P, A]):
    """What one lookup of `key`, which asks the `most` closest servers, has found so far. `A` is an address."""

    def __init__(self, key: bytes, this_node: P, most: int = SERVERS) -> None:
        self.providers: dict[P, list[A]] = {}
        self._place = _number(key)
        self._this_node, self._most = this_node, most
        self._servers: list[P] = []
        self._aside: list[P] = []
        self._distances: dict[P, int] = {}
        self._asked: set[P] = {this_node}

    def found(self, peer: P, addresses: Iterable[A]) -> None:
        if peer != self._this_node:
            known = self.providers.setdefault(peer, [])
            known += [address for address in addresses if address not in known]

    def also(self, servers: Iterable[P]) -> None:
        """Servers that are asked wherever they stand."""
        self._aside += [server for server in servers if server != self._this_node and server not in self._aside]

    def heard_of(self, servers: Iterable[P]) -> None:
        every = {*self._servers, *servers} - {self._this_node}
        self._servers = sorted(every, key=self._distance)[: self._most]

    def next_servers(self) -> list[P]:
        """The closest servers that have not been asked yet."""
        batch = [server for server in (*self._aside, *self._servers) if server not in self._asked][:PARALLEL]
        self._asked.update(batch)
        return batch

    def _distance(self, peer: P) -> int:
        if peer not in self._distances:
            self._distances[peer] = _number(peer.to_bytes()) ^ self._place
        return self._distances[peer]


def aside(connected: Iterable[P], network_size: int, rng: random.Random, most: int = ASIDE) -> list[P]:
    """Whom to ask, or to tell, besides the closest servers: some of the connected peers, by chance. In a small network
    the closest servers are everybody."""
    peers = sorted(connected, key=_name)
    return rng.sample(peers, min(most, len(peers))) if network_size > SMALL_NETWORK else []


def _name(peer: Peer) -> bytes:
    return peer.to_bytes()


def _number(key: bytes) -> int:
    return int.from_bytes(hashlib.sha256(key).digest())
