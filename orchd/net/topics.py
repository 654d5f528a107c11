"""Topics on the DHT: who is there under this name?

A topic is the Kademlia key `multihash(sha256("orchd/topic/" + name))`; whoever has joined it is a *provider* of that
key (https://github.com/libp2p/specs/blob/master/kad-dht/README.md). The lookup is our own: the library's answers from
its local store first, so that a node which announced a topic finds only itself, and a foreign server's answer is
taken in whole, not its first 20. `Rounds` decides when to announce and look up; it is pure, time and randomness are
arguments.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable
from dataclasses import dataclass

import trio
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.net.hardening import DHT_QUERY_TIMEOUT_S
from orchd.net.messages import topic_key

log = logging.getLogger(__name__)

#: Servers asked at once, and asked in all, in one lookup.
PARALLEL, SERVERS = 10, 30
#: An announcement or a lookup is given up after this many seconds.
ROUND_TIMEOUT_S = 30.0
#: After a join: the first pause between lookups, doubling up to the configured one; in seconds.
FIRST_PAUSE_S = 1.0
#: In a small network every new peer is one of those that ought to hold our records.
SMALL_NETWORK = 20
#: New peers make us announce again, but not more often than this, in seconds.
REANNOUNCE_PAUSE_S = 2.0
#: A server takes ten announcements of one peer in ten seconds and drops the rest without a word.
ANNOUNCE_AT_ONCE, ANNOUNCE_PAUSE_S = 8, 11.0
MULTIHASH_SHA256 = b"\x12\x20"


def provider_key(name: str) -> bytes:
    """The DHT key of a topic: a multihash of 34 bytes."""
    return MULTIHASH_SHA256 + topic_key(name)


async def announce(dht: KadDHT, name: str) -> bool:
    """Tell the servers closest to the topic's key that this node is there; whether one has taken it."""
    with trio.move_on_after(ROUND_TIMEOUT_S):
        return bool(await dht.provider_store.provide(provider_key(name)))
    return False


async def lookup(dht: KadDHT, name: str) -> dict[ID, list[Multiaddr]]:
    """Everybody who has announced the topic to any of the servers closest to its key, with their addresses.

    Iterative: each answer also names closer servers. What this node has stored for others counts as an answer;
    this node itself is left out.
    """
    key = provider_key(name)
    search = _Search(key, dht.local_peer_id)
    search.heard_of(_first_servers(dht, key))
    for info in dht.provider_store.get_providers(key):
        search.found(info.peer_id, info.addrs)
    with trio.move_on_after(ROUND_TIMEOUT_S):
        while batch := search.next_servers():
            async with trio.open_nursery() as nursery:
                for server in batch:
                    nursery.start_soon(_ask_server, dht, key, server, search)
    return search.providers


async def _ask_server(dht: KadDHT, key: bytes, server: ID, search: _Search) -> None:
    with trio.move_on_after(DHT_QUERY_TIMEOUT_S):
        infos, closer = await dht.provider_store._get_providers_from_peer_with_closers(server, key)
        for info in infos:
            search.found(info.peer_id, info.addrs)
        search.heard_of(closer)


def _first_servers(dht: KadDHT, key: bytes) -> list[ID]:
    return [*dht.routing_table.find_local_closest_peers(key, SERVERS), *dht.host.get_connected_peers()]


class _Search:
    """What one lookup has found so far."""

    def __init__(self, key: bytes, this_node: ID) -> None:
        self.providers: dict[ID, list[Multiaddr]] = {}
        self._key = key
        self._this_node = this_node
        self._servers: list[ID] = []
        self._asked: set[ID] = {this_node}

    def found(self, peer: ID, addresses: Iterable[Multiaddr]) -> None:
        if peer != self._this_node:
            known = self.providers.setdefault(peer, [])
            known += [address for address in addresses if address not in known]

    def heard_of(self, servers: Iterable[ID]) -> None:
        every = {*self._servers, *servers} - {self._this_node}
        self._servers = sort_peer_ids_by_distance(self._key, list(every))[:SERVERS]

    def next_servers(self) -> list[ID]:
        """The closest servers that have not been asked yet."""
        batch = [server for server in self._servers if server not in self._asked][:PARALLEL]
        self._asked.update(batch)
        return batch


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

    def retry_announce(self, name: str, now: float) -> None:
        """Nobody has taken the announcement: it is due again with the next lookup."""
        if name in self._due:
            self._due[name].announce_at = max(self._due[name].lookup_at, now + FIRST_PAUSE_S)

    def next_at(self) -> float:
        """When something is due next."""
        return min((min(due.announce_at, due.lookup_at) for due in self._due.values()), default=float("inf"))
