"""Which peer fetches which chunks: one plan for one download.

Peers take spans of chunks from one end; each has so much under way as it brings in about two seconds. When nothing is
left to take, an idle peer takes over the last of what the slowest one would bring latest: a chunk is under way at two
peers at most, and whoever brings it first has brought it.

Pure: the time, in seconds of any steady clock, is an argument; `P` is whatever names a peer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

#: What a peer has under way: seconds at its speed, and the bounds in bytes.
AHEAD_S, AHEAD_MIN, AHEAD_MAX = 2.0, 512 << 10, 8 << 20
#: One question asks for this part of what may be under way, and for so many bytes at most (a chunk may be larger).
ASK_PART, ASK_MAX = 2, 4 << 20
#: A speed is measured over about so many seconds. Who has not been heard yet counts as having brought so many bytes in
#: the second before.
SPEED_S, FIRST_SPEED = 4.0, 256 << 10
#: A peer takes over only what it would have brought in this part of the time that the other still needs.
STEAL_PART = 0.5
#: A peer that had so many seconds and is slower than this (bytes a second), or than the fastest one by this factor, is
#: too slow to be kept.
SLOW_AFTER_S, SLOW_SPEED, SLOW_FACTOR = 30.0, 256, 100

P = TypeVar("P", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Span:
    """Chunks of one file (by its number) that follow each other."""

    file: int
    first: int
    count: int

    @property
    def end(self) -> int:
        return self.first + self.count


@dataclass(frozen=True, slots=True)
class Shape:
    """A file's bytes, and how they are cut."""

    size: int
    chunk_size: int

    @property
    def chunks(self) -> int:
        return math.ceil(self.size / self.chunk_size)

    def bytes_of(self, span: Span) -> int:
        return min(span.end * self.chunk_size, self.size) - span.first * self.chunk_size


@dataclass(slots=True)
class _Speed:
    """Bytes a second while there is something to bring, the last seconds counting most."""

    since: float
    at: float
    idle_since: float | None
    amount: float = FIRST_SPEED

    @classmethod
    def unheard(cls, now: float) -> Self:
        return cls(since=now - 1.0, at=now, idle_since=now)

    def heard(self, count: int, now: float) -> None:
        self.amount = self._faded(now) + count
        self.at = now

    def begins(self, now: float) -> None:
        """There is something to bring again."""
        if self.idle_since is not None:
            self.since += now - self.idle_since
            self.at += now - self.idle_since
            self.idle_since = None

    def per_second(self, now: float) -> float:
        now = now if self.idle_since is None else self.idle_since
        return self._faded(now) / (SPEED_S * -math.expm1((self.since - now) / SPEED_S))

    def _faded(self, now: float) -> float:
        return self.amount * math.exp((self.at - now) / SPEED_S)


@dataclass(slots=True)
class _Peer:
    """`spans`: what it has under way, in the order in which it was asked."""

    speed: _Speed
    spans: list[Span] = field(default_factory=list)


class Plan(Generic[P]):
    """`here`: spans that need not be fetched."""

    def __init__(self, files: Sequence[Shape], here: Iterable[Span] = ()) -> None:
        self._files = tuple(files)
        self._missing = [bytearray(b"\1" * file.chunks) for file in self._files]
        self._holders = [bytearray(file.chunks) for file in self._files]
        self._peers: dict[P, _Peer] = {}
        #: Bytes that have not come.
        self.left = sum(file.size for file in self._files)
        #: Bytes that came although another peer had brought them.
        self.twice = 0
        for span in here:
            for chunk in range(span.first, span.end):
                self._has_come(span.file, chunk)
        #: Chunks that have not come and are under way nowhere.
        self._free = deque(
            span
            for number, file in enumerate(self._files)
            for span in self._pieces(Span(number, 0, file.chunks), holders=0)
        )

    # ---- peers --------------------------------------------------------------------------------------------------

    def take(self, peer: P, now: float, most: int = ASK_MAX) -> Span | None:
        """What `peer` shall ask for now, at most `most` bytes or one chunk.

        None when it has enough under way, or there is nothing for it.
        """
        state = self._state(peer, now)
        under_way = sum(self.bytes_of(span) for span in state.spans)
        window = self._window(state, now)
        if under_way >= window:
            return None
        room = min(most, ASK_MAX, window // ASK_PART)
        span = self._take_free(room) or self._take_over(peer, room, now)
        if span is not None:
            state.speed.begins(now)
            state.spans.append(span)
            self._count(span, 1)
        return span

    def heard(self, peer: P, count: int, now: float) -> None:
        """Bytes have come from `peer`, of whatever chunk."""
        self._state(peer, now).speed.heard(count, now)

    def came(self, peer: P, file: int, chunk: int) -> bool:
        """A chunk has come from `peer`; whether it is the first one to bring it."""
        if not self._has_come(file, chunk):
            self.twice += self.bytes_of(Span(file, chunk, 1))
            return False
        return True

    def finished(self, peer: P, span: Span, now: float) -> None:
        """The answer has come to its end. Chunks of it that have not come are free again."""
        state = self._peers[peer]
        state.spans.remove(span)
        if not state.spans:
            state.speed.idle_since = now
        self._let_go(span)

    def lost(self, peer: P) -> None:
        """`peer` brings nothing more; what it had under way is free again."""
        state = self._peers.pop(peer, None)
        for span in state.spans if state else ():
            self._let_go(span)

    def speed(self, peer: P, now: float) -> float:
        """Bytes a second that `peer` brings while it has something to bring."""
        state = self._peers.get(peer)
        return state.speed.per_second(now) if state else 0.0

    def is_too_slow(self, peer: P, now: float) -> bool:
        """Whether others would do better without it."""
        state = self._peers.get(peer)
        if state is None or not state.spans or now - state.speed.since < SLOW_AFTER_S:
            return False
        best = max(self.speed(other, now) for other in self._peers)
        return self.speed(peer, now) < max(SLOW_SPEED, best / SLOW_FACTOR)

    # ---- chunks -------------------------------------------------------------------------------------------------

    def is_missing(self, file: int, chunk: int) -> bool:
        return bool(self._missing[file][chunk])

    def bytes_of(self, span: Span) -> int:
        return self._files[span.file].bytes_of(span)

    def offset(self, span: Span) -> int:
        return span.first * self._files[span.file].chunk_size

    def _has_come(self, file: int, chunk: int) -> bool:
        new = self.is_missing(file, chunk)
        if new:
            self._missing[file][chunk] = 0
            self.left -= self.bytes_of(Span(file, chunk, 1))
        return new

    def _state(self, peer: P, now: float) -> _Peer:
        if peer not in self._peers:
            self._peers[peer] = _Peer(_Speed.unheard(now))
        return self._peers[peer]

    def _window(self, state: _Peer, now: float) -> int:
        return int(min(max(AHEAD_S * state.speed.per_second(now), AHEAD_MIN), AHEAD_MAX))

    def _take_free(self, room: int) -> Span | None:
        if not self._free:
            return None
        first, rest = self._cut(self._free.popleft(), room)
        self._free.extendleft(rest)
        return first

    def _cut(self, span: Span, room: int) -> tuple[Span, list[Span]]:
        """As many chunks as fit, one at least, and the rest."""
        count = min(span.count, max(1, room // self._files[span.file].chunk_size))
        rest = [Span(span.file, span.first + count, span.count - count)] if count < span.count else []
        return Span(span.file, span.first, count), rest

    def _take_over(self, peer: P, room: int, now: float) -> Span | None:
        """The last half of what takes longest at another peer, where this one would be quicker."""
        own = max(self.speed(peer, now), 1.0)
        latest: tuple[float, Span] | None = None
        for other, state in self._peers.items():
            if other != peer:
                found = self._last_of(other, state, now)
                latest = max(latest, found, key=lambda item: item[0]) if latest and found else latest or found
        if latest is None:
            return None
        needs, span = latest
        chunk_size = self._files[span.file].chunk_size
        count = max(1, min(math.ceil(span.count / 2), room // chunk_size))
        last = Span(span.file, span.end - count, count)
        return last if self.bytes_of(last) / own < STEAL_PART * needs else None

    def _last_of(self, other: P, state: _Peer, now: float) -> tuple[float, Span] | None:
        """Seconds that a peer needs for all it has under way, and the last of it that nobody else brings."""
        own = [piece for span in state.spans for piece in self._pieces(span, holders=1)]
        if not own:
            return None
        waiting = sum(self.bytes_of(piece) for span in state.spans for piece in self._pieces(span))
        return waiting / max(self.speed(other, now), 1.0), own[-1]

    def _let_go(self, span: Span) -> None:
        self._count(span, -1)
        self._free.extendleft(reversed(list(self._pieces(span, holders=0))))

    def _count(self, span: Span, by: int) -> None:
        holders = self._holders[span.file]
        for chunk in range(span.first, span.end):
            holders[chunk] += by

    def _pieces(self, span: Span, holders: int | None = None) -> Iterable[Span]:
        """The parts of a span that have not come and are under way at so many peers (None: at any number)."""
        missing, held = self._missing[span.file], self._holders[span.file]
        begin = None
        for chunk in range(span.first, span.end + 1):
            if chunk < span.end and missing[chunk] and holders in (None, held[chunk]):
                begin = chunk if begin is None else begin
            elif begin is not None:
                yield Span(span.file, begin, chunk - begin)
                begin = None
