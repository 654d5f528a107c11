"""What of the network outlives one life of its host."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchd.net.hardening import Traffic
from orchd.net.library import Library
from orchd.net.news import Events
from orchd.net.policy.book import Book
from orchd.net.policy.repair import Freshness
from orchd.net.policy.scores import Scores
from orchd.net.upload import Transfers
from orchd.registry.registry import Registry


@dataclass
class Topic:
    """A joined topic. `announced_ms`: when the DHT took it last, None if never."""

    name: str
    announced_ms: int | None = None
    #: Of a private one.
    secret: bytes | None = None


@dataclass(frozen=True)
class Context:
    """What outlives the host."""

    registry: Registry
    library: Library
    events: Events
    clock: Callable[[], int]
    rng: random.Random
    bootstrap: Sequence[str]
    announce_every_s: float
    lookup_every_s: float
    transfers: Transfers
    #: Whether what is known of others' records is recent; a fallen host does not make it old.
    freshness: Freshness
    #: Peers that could be reached before, and bans by the user.
    book: Book
    #: Whether this node relays for others, and how many bytes a second, all together.
    relays: bool
    relay_rate: float
    topics: dict[bytes, Topic] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    #: Peers (ids as text) that the user has blocked, and those that are asked before others.
    blocked: set[str] = field(default_factory=set)
    followed: set[str] = field(default_factory=set)
    scores: Scores = field(default_factory=Scores)

    def count(self, what: str, by: int = 1) -> None:
        self.counters[what] = self.counters.get(what, 0) + by

    def count_traffic(self, traffic: Traffic | None) -> None:
        """Of a connection that has ended."""
        if traffic is not None:
            self.count("bytes_in", traffic.bytes_in)
            self.count("bytes_out", traffic.bytes_out)


def address_of(connection: Any) -> str:
    """The other end of a connection, as a multiaddr; empty when it is not known."""
    try:
        return str(connection.get_transport_addresses()[0])
    except Exception:
        return ""
