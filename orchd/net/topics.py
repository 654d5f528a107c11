"""Topics on the DHT: who is there under this name?

A topic is the Kademlia key `multihash(sha256("orchd/topic/" + name))`; whoever has joined it is a *provider* of that
key (https://github.com/libp2p/specs/blob/master/kad-dht/README.md). The lookup is our own: the library's answers from
its local store first, so that a node which announced a topic finds only itself, and a foreign server's answer is
taken in whole, not its first 20. When to do either, and whom to ask, is decided in `policy/rounds.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import trio
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.net.hardening import DHT_QUERY_TIMEOUT_S
from orchd.net.messages import topic_key
from orchd.net.policy.rounds import AGAIN_SERVERS, SERVERS, SMALL_NETWORK, Search

log = logging.getLogger(__name__)

#: An announcement or a lookup is given up after this many seconds.
ROUND_TIMEOUT_S = 30.0
MULTIHASH_SHA256 = b"\x12\x20"


def provider_key(name: str) -> bytes:
    """The DHT key of a topic: a multihash of 34 bytes."""
    return MULTIHASH_SHA256 + topic_key(name)


async def announce(dht: KadDHT, name: str, aside: Iterable[ID] = (), *, again: bool = False) -> bool:
    """Tell the servers closest to the topic's key, and those `aside`, that this node is there; whether one of the
    closest has taken it.

    `again`: it was told before. In a network that is small enough to be known a few of the closest servers are told
    then, more than a lookup for upkeep asks; in a larger one they are looked up.
    """
    key = provider_key(name)
    taken = False
    with trio.move_on_after(ROUND_TIMEOUT_S):
        if again and dht.get_routing_table_size() <= SMALL_NETWORK:
            dht.provider_store.add_provider(key, PeerInfo(dht.local_peer_id, dht.host.get_addrs()))
            taken = await _tell(dht, key, dht.routing_table.find_local_closest_peers(key, AGAIN_SERVERS))
        taken = taken or bool(await dht.provider_store.provide(key))
        await _tell(dht, key, aside)
    return taken


async def _tell(dht: KadDHT, key: bytes, servers: Iterable[ID]) -> bool:
    """Whether any has taken it."""
    taken: list[ID] = []

    async def tell(server: ID) -> None:
        with trio.move_on_after(DHT_QUERY_TIMEOUT_S):
            if await dht.provider_store._send_add_provider(server, key):
                taken.append(server)

    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(tell, server)
    return bool(taken)


async def lookup(dht: KadDHT, name: str, servers: int = SERVERS, aside: Iterable[ID] = ()) -> dict[ID, list[Multiaddr]]:
    """Everybody who has announced the topic to any of so many servers closest to its key, or to those `aside`, with
    their addresses.

    Iterative: each answer also names closer servers. What this node has stored for others counts as an answer;
    this node itself is left out.
    """
    key = provider_key(name)
    search: Search[ID, Multiaddr] = Search(key, dht.local_peer_id, servers)
    search.also(aside)
    search.heard_of(_first_servers(dht, key))
    for info in dht.provider_store.get_providers(key):
        search.found(info.peer_id, info.addrs)
    with trio.move_on_after(ROUND_TIMEOUT_S):
        while batch := search.next_servers():
            async with trio.open_nursery() as nursery:
                for server in batch:
                    nursery.start_soon(_ask_server, dht, key, server, search)
    return search.providers


async def _ask_server(dht: KadDHT, key: bytes, server: ID, search: Search[ID, Multiaddr]) -> None:
    with trio.move_on_after(DHT_QUERY_TIMEOUT_S):
        infos, closer = await dht.provider_store._get_providers_from_peer_with_closers(server, key)
        for info in infos:
            search.found(info.peer_id, info.addrs)
        search.heard_of(closer)


def _first_servers(dht: KadDHT, key: bytes) -> list[ID]:
    return [*dht.routing_table.find_local_closest_peers(key, SERVERS), *dht.host.get_connected_peers()]
