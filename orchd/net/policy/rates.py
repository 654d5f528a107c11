"""How much and how fast: buckets of questions, paces and quotas of bytes, turns between peers.

Pure: the time, in seconds of any steady clock, is an argument.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

#: A pace lets this many seconds' worth of bytes pass at once after a silence.
BURST_S = 0.25
#: Whom `Quotas` remembers, at most.
REMEMBERED = 4096

K = TypeVar("K", bound=Hashable)
W = TypeVar("W")


class Bucket:
    """Tokens that come back at `rate` a second, up to `burst`."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, now

    def take(self, now: float, count: float = 1.0) -> bool:
        """Take `count` tokens if there are as many."""
        self._fill(now)
        if self._tokens < count:
            return False
        self._tokens -= count
        return True

    def wait(self, now: float, count: float = 1.0) -> float:
        """Seconds until there are `count` tokens; infinite where there never are so many."""
        self._fill(now)
        if count > self._burst or not self._rate:
            return math.inf
        return max(0.0, (count - self._tokens) / self._rate)

    def is_full(self, now: float) -> bool:
        self._fill(now)
        return self._tokens >= self._burst

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = max(self._at, now)


class Pace:
    """Bytes at `rate` a second, 0 for any number. Everybody who reserves waits behind whoever reserved before."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._free_at = float("-inf")

    def reserve(self, now: float, count: int) -> float:
        """Seconds to wait before these bytes may pass. They count from now on."""
        if not self.rate:
            return 0.0
        begin = max(self._free_at, now - BURST_S)
        self._free_at = begin + count / self.rate
        return max(0.0, begin - now)

    def is_free(self, now: float) -> bool:
        """Whether nobody who reserves now would wait."""
        return not self.rate or self._free_at <= now

    def portion(self, wanted: int, seconds: float) -> int:
        """At most `wanted` bytes, and no more than pass in so many seconds; at least one."""
        return wanted if not self.rate else max(1, min(wanted, int(self.rate * seconds)))


class Quotas(Generic[K]):
    """So many bytes for each key in `period_s`, 0 for any number.

    What was not used comes back evenly. Of more than `REMEMBERED` keys those that were heard of last are remembered.
    """

    def __init__(self, limit: int, period_s: float) -> None:
        self._limit, self._period_s = limit, period_s
        self._buckets: OrderedDict[K, Bucket] = OrderedDict()

    def take(self, key: K, now: float, count: int) -> bool:
        """Whether `key` may have `count` bytes more; they are counted then."""
        if not self._limit:
            return True
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self._limit / self._period_s, self._limit, now)
            if len(self._buckets) > REMEMBERED:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        return bucket.take(now, count)

    def wait(self, key: K, now: float, count: int) -> float:
        """Seconds until `key` may have `count` bytes more; infinite where that is more than its whole share."""
        bucket = self._buckets.get(key)
        return bucket.wait(now, count) if bucket else 0.0

    def __len__(self) -> int:
        return len(self._buckets)


class Turns(Generic[K, W]):
    """Some slots, and queues of those who want one. A free slot goes to the key that holds the fewest, of these to the
    one that was served the longest ago: whoever asks a lot waits behind its own questions, not before others' ones.

    `each` waits at most for one key, `slots` are for all. `W` is whatever stands for a waiter.
    """

    def __init__(self, slots: int, each: int) -> None:
        self._slots, self._each = slots, each
        self._waiting: dict[K, deque[W]] = {}
        self._held: dict[K, int] = {}
        #: When keys that wait or hold were served last, by the count of what was served.
        self._served: dict[K, int] = {}
        self._count = 0

    @property
    def free(self) -> int:
        return self._slots - sum(self._held.values())

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def enter(self, key: K, waiter: W) -> bool:
        """Queue a waiter; False when the key has too many in the queue already."""
        queue = self._waiting.setdefault(key, deque())
        if len(queue) >= self._each:
            return False
        queue.append(waiter)
        return True

    def next(self) -> W | None:
        """Give a free slot to whose turn it is, None when there is no slot or nobody waits."""
        if self.free <= 0 or not self._waiting:
            return None
        key = min(self._waiting, key=lambda key: (self._held.get(key, 0), self._served.get(key, 0)))
        waiter = self._waiting[key].popleft()
        if not self._waiting[key]:
            del self._waiting[key]
        self._held[key] = self._held.get(key, 0) + 1
        self._count += 1
        self._served[key] = self._count
        return waiter

    def give_up(self, key: K, waiter: W) -> bool:
        """Leave the queue; whether the waiter was still in it."""
        queue = self._waiting.get(key, deque())
        if waiter not in queue:
            return False
        queue.remove(waiter)
        if not queue:
            del self._waiting[key]
        self._forget(key)
        return True

    def give_back(self, key: K) -> None:
        """A slot is free again."""
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        self._forget(key)

    def _forget(self, key: K) -> None:
        if key not in self._held and key not in self._waiting:
            self._served.pop(key, None)
