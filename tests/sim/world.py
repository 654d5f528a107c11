"""Time and wires of the simulation: one heap of events, one source of chance. Seconds; nothing here sleeps."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

#: Milliseconds since 1970 at which the simulation begins.
EPOCH_MS = 1_700_000_000_000
#: Seconds that a message travels, from and to; and the share of messages of gossip that get lost on the way.
LATENCY_S, GOSSIP_LOST = (0.02, 0.2), 0.03


class Peer(str):
    """A peer's id."""

    __slots__ = ()

    def to_bytes(self) -> bytes:
        return self.encode()


class World:
    """`now` is in seconds from the beginning."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._random = self.rng.random
        self.now = 0.0
        self.events = 0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    @property
    def now_ms(self) -> int:
        return EPOCH_MS + int(self.now * 1000)

    def at(self, when: float, function: Callable[..., None], *arguments: Any) -> None:
        self.events += 1
        heapq.heappush(self._queue, (when, self.events, function, arguments))

    def after(self, seconds: float, function: Callable[..., None], *arguments: Any) -> None:
        self.at(self.now + seconds, function, *arguments)

    def soon(self, function: Callable[..., None], *arguments: Any) -> None:
        """After one message's way."""
        self.events += 1
        when = self.now + LATENCY_S[0] + self._random() * (LATENCY_S[1] - LATENCY_S[0])
        heapq.heappush(self._queue, (when, self.events, function, arguments))

    def run(self, until: float) -> None:
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, function, arguments = heapq.heappop(queue)
            function(*arguments)
        self.now = until
