"""Streams that have answered and may be asked on again, for a short while. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

#: A stream rests for so many seconds, less than `pulse.QUIET_S`: nobody is pinged because of one. So many for a peer.
REST_S, EACH = 3.0, 2

P = TypeVar("P", bound=Hashable)
S = TypeVar("S")


class Resting(Generic[P, S]):
    """What rests, by peer. Times are seconds of any one clock; they do not go back."""

    def __init__(self) -> None:
        self._since: dict[P, deque[tuple[float, S]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._since.values()))

    def rest(self, peer: P, stream: S, now: float) -> bool:
        """Whether there is room for it."""
        waiting = self._since.setdefault(peer, deque())
        if len(waiting) >= EACH:
            return False
        waiting.append((now, stream))
        return True

    def take(self, peer: P) -> S | None:
        """The one that was used last."""
        waiting = self._since.get(peer)
        if waiting is None:
            return None
        _, stream = waiting.pop()
        if not waiting:
            del self._since[peer]
        return stream

    def take_rested(self, now: float) -> list[S]:
        """Those that have rested for long enough: they are not wanted any more."""
        found = []
        for peer, waiting in list(self._since.items()):
            while waiting and now - waiting[0][0] >= REST_S:
                found.append(waiting.popleft()[1])
            if not waiting:
                del self._since[peer]
        return found
