"""How many bytes of questions that have not come whole may wait here. Pure.

A question has half a megabyte at most, and its sender a minute for it. An honest peer has one or two on their way; who
begins hundreds and ends none would fill the memory of a node that allows each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

#: Bytes that wait from one peer, and from all of them before those who have more than their share must go, at most.
OF_ONE, IN_ALL = 2 << 20, 32 << 20

K = TypeVar("K", bound=Hashable)


class Unfinished(Generic[K]):
    """By peer. What a peer adds is to be taken away again."""

    def __init__(self) -> None:
        self._waiting: Counter[K] = Counter()

    @property
    def total(self) -> int:
        return self._waiting.total()

    def change(self, peer: K, count: int) -> bool:
        """So many bytes more wait from a peer, or fewer; whether it is within its share."""
        self._waiting[peer] += count
        mine = self._waiting[peer]
        if not mine:
            del self._waiting[peer]
        return mine <= OF_ONE and (self.total <= IN_ALL or mine <= IN_ALL // len(self._waiting))
