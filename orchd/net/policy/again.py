"""When what could not be fetched is tried again. Pure.

An adapter is announced once, and whoever has it may be away just then: what is wanted stays wanted. The first pause is
short, the next ones double; a new member may be the one who has it, so then all that has waited a little is tried.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

#: Pauses in seconds: the first, doubling up to the second figure; and how many things wait, at most.
PAUSE_S, PAUSE_MAX_S, WAITING = 15.0, 1800.0, 4096

K = TypeVar("K", bound=Hashable)


class Again(Generic[K]):
    """Times are seconds of any one clock."""

    def __init__(self) -> None:
        #: When each is due, and the pause before that.
        self._waiting: OrderedDict[K, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def failed(self, key: K, now: float) -> None:
        """It is tried again later. Of too many things the one that has waited longest is given up."""
        _, before = self._waiting.pop(key, (now, 0.0))
        pause = min(before * 2, PAUSE_MAX_S) or PAUSE_S
        self._waiting[key] = (now + pause, pause)
        if len(self._waiting) > WAITING:
            self._waiting.popitem(last=False)

    def forget(self, key: K) -> None:
        """It is here, or not wanted any more."""
        self._waiting.pop(key, None)

    def somebody_came(self, now: float) -> None:
        """What has been tried a while ago is due: the newcomer may have it."""
        for key, (at, pause) in self._waiting.items():
            self._waiting[key] = (min(at, max(now, at - pause + PAUSE_S)), pause)

    def take_due(self, now: float) -> list[K]:
        """What to try now. What is not told of as failed or forgotten after that is due again after its pause."""
        due = [key for key, (at, _) in self._waiting.items() if at <= now]
        for key in due:
            pause = self._waiting[key][1]
            self._waiting[key] = (now + pause, pause)
        return due

    def next_at(self) -> float:
        """When something is due next."""
        return min((at for at, _ in self._waiting.values()), default=float("inf"))
