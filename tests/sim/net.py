"""All nodes, the DHT that they are, and what is counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchd.net.messages import topic_key
from orchd.net.policy.gossip import Verdict
from orchd.net.policy.names import is_open
from orchd.net.policy.rounds import Search
from orchd.records import Announcement, Record, Revocation, Verified
from tests.sim.works import Work
from tests.sim.world import GOSSIP_LOST, Peer, World

if TYPE_CHECKING:
    from tests.sim.node import Node

#: Servers that take an announcement, servers that a look-up begins with, and how long a record holds, in seconds.
CLOSEST, FIRST, HOLDS_S = 20, 30, 3600.0


@dataclass
class Net:
    """`works` are the honest adapters by id; `made_at`, `heard_at` and `admitted_at` tell when what came where."""

    world: World
    names: tuple[str, ...]
    nodes: dict[Peer, Node] = field(default_factory=dict)
    bootstrap: tuple[Peer, ...] = ()
    works: dict[bytes, Work] = field(default_factory=dict)
    #: Keys of the authors whom every honest node follows.
    followed: set[bytes] = field(default_factory=set)
    peers: dict[bytes, Peer] = field(default_factory=dict)
    revoked_at: dict[bytes, float] = field(default_factory=dict)
    admitted_at: dict[tuple[bytes, Peer], float] = field(default_factory=dict)
    heard_at: dict[tuple[bytes, Peer], float] = field(default_factory=dict)
    forged: list[tuple[bytes, Peer]] = field(default_factory=list)
    leaks: list[tuple[str, Peer]] = field(default_factory=list)
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    blames: Counter[str] = field(default_factory=Counter)
    repairs: int = 0
    lookups: int = 0
    messages: int = 0

    def __post_init__(self) -> None:
        self.keys = {name: topic_key(name) for name in self.names}
        self._order: dict[str, list[Node]] = {}

    def settle(self) -> None:
        """All nodes are there: who is closest to which key does not change any more."""
        everybody = list(self.nodes.values())
        numbers = {node.id: _number(node.id.to_bytes()) for node in everybody}
        for name in self.names:
            key = _number(name.encode())
            self._order[name] = sorted(everybody, key=lambda node: numbers[node.id] ^ key)

    # ---- the DHT ------------------------------------------------------------------------------------------------

    def closest(self, name: str, count: int) -> list[Node]:
        """As Kademlia finds them when it works."""
        found: list[Node] = []
        for node in self._order[name]:
            if node.online:
                found.append(node)
                if len(found) == count:
                    break
        return found

    def announce(self, node: Node, name: str, aside: list[Peer]) -> None:
        until = self.world.now + HOLDS_S
        servers = {one.id: one for one in self.closest(name, CLOSEST)} | {
            peer: node.links[peer] for peer in aside if peer in node.links
        }
        for server in servers.values():
            server.store(name, node.id, until)

    def search(self, node: Node, name: str, search: Search[Peer, str]) -> None:
        self.lookups += 1
        search.heard_of(one.id for one in self.closest(name, FIRST))
        seen: dict[Peer, None] = {}
        while batch := search.next_servers():
            for peer in batch:
                server = self.nodes[peer]
                if server.online:
                    seen.update(dict.fromkeys(server.providers(name)))
        for provider in seen:
            search.found(provider, (self.nodes[provider].place,))

    def author_of(self, adapter: bytes) -> Peer | None:
        """The peer whose key signed it: an announcement tells the key, and a peer's id is its key."""
        work = self.works.get(adapter)
        return self.peers.get(work.manifest.record.author) if work else None

    # ---- wires --------------------------------------------------------------------------------------------------

    def gossip(
        self, source: Node, peer: Peer, name: str, envelope: bytes, digest: bytes, *, lazy: bool = False
    ) -> None:
        other = source.links.get(peer)
        self.messages += 1
        if other is None or self.world.rng.random() < GOSSIP_LOST:
            return
        if not lazy or not other.has_heard(name, digest):
            self.world.soon(other.hear, other.life, source.id, name, envelope, digest)

    # ---- what is counted ----------------------------------------------------------------------------------------

    def blamed(self, node: Node, peer: Peer) -> None:
        other = self.nodes[peer]
        self.blames[other.kind if other.hostile else "honest"] += 1

    def kept(self, node: Node, record: Verified[Record]) -> None:
        found = record.record
        if isinstance(found, Announcement) and found.manifest in self.works:
            self.heard_at.setdefault((found.manifest, node.id), self.world.now)
        self.told(node, record)
        if isinstance(found, Revocation):
            self.heard_at.setdefault((record.digest, node.id), self.world.now)

    def told(self, node: Node, record: Verified[Record]) -> None:
        """A node was given a record: of a private topic only members may hear."""
        for name in getattr(record.record, "topics", ()):
            if not is_open(name) and self.keys[name] not in node.secrets:
                self.leaks.append((name, node.id))

    def admitted(self, node: Node, adapter: bytes) -> None:
        """An honest node has let something in: is it what its author made?"""
        work, chunks = self.works.get(adapter), node.shelf.adapters.get(adapter)
        if chunks is not None and (work is None or work.chunks != chunks):
            self.forged.append((adapter, node.id))
        self.admitted_at.setdefault((adapter, node.id), self.world.now)


def _number(key: bytes) -> int:
    return int.from_bytes(hashlib.sha256(key).digest())
