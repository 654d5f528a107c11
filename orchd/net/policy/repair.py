"""Which records does another node know that we don't, and the other way round? Pure: ids and messages in and out.

Range-based set reconciliation (A. Meyer, 2023, https://arxiv.org/abs/2212.13567) with the fingerprints of Negentropy
(https://github.com/hoytech/negentropy): ids are ordered, and a message speaks of consecutive ranges of them. Ranges
whose fingerprints agree are done with; others are cut into `BRANCHES` and looked at again, down to `LISTED` ids, which
are listed. Two equal sets cost one question and one answer of a few bytes; otherwise bytes grow with the difference and
with the logarithm of the set, and so do the round trips. Whoever is asked keeps no state: `respond` is a function.

The fingerprint is a hash of the sum of the ids. Somebody who signs records until their sums collide can hide those
records from repair between two nodes, and nothing else.

`Schedule` says when to repair with whom, `Freshness` whether what this node knows is recent enough to serve by.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Annotated

import msgspec
from msgspec import Meta

from orchd.errors import PeerMisbehaved
from orchd.records.ids import sha256
from orchd.records.manifest import Digest

#: The pause between two repairs with one peer, in seconds: the first figure, doubling up to the second while nothing is
#: found, and the first one again when something is.
EVERY_S, EVERY_MAX_S = 60.0, 600.0
#: However many peers there are, so many repairs begin at once after a silence, and then one in `EVERY_S`:
#: with hundreds of members in a topic it takes a few to know what all of them know.
AT_ONCE = 8
#: A peer that has connected to us is expected to begin; after so many seconds we do.
EXPECTED_S = 10.0
#: When a repair has brought something new, so many others are asked at once whether they know it too.
SPREAD = 3
#: What was learned from others so long ago is not recent, in milliseconds of the wall clock.
RECENT_MS = 3600 * 1000
#: How long peers may take to make it recent before this node goes on without, in seconds.
CATCH_UP_S = 15.0
#: Parts of a range that differs, and ids that are listed instead of cutting further.
BRANCHES, LISTED = 16, 32
#: Ids of its own in a range that a node tells at once to somebody who has listed theirs.
TOLD = 1024
#: Parts and ids of one message, at most; what does not fit is one part more, its fingerprint.
PARTS_LIMIT, IDS_LIMIT = 2048, 8192
#: Questions of one reconciliation, and ids that it finds in either direction; the next one goes on from there.
ROUNDS_LIMIT, FOUND_LIMIT = 16, 4096
FINGERPRINT_SIZE = 16
END = b""

Bound = Annotated[bytes, Meta(max_length=32)]
Fingerprint = Annotated[bytes, Meta(min_length=FINGERPRINT_SIZE, max_length=FINGERPRINT_SIZE)]
Digests = Annotated[tuple[Digest, ...], Meta(max_length=IDS_LIMIT)]


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A range from where the part before ended up to, and without, the first id that is not less than `end`.

    An empty `end` is the end of all ids. What follows the last part is the same on both sides.
    """

    end: Bound


class Same(_Part, frozen=True, array_like=True, tag=0):
    """Nothing more to say of these."""


class Sum(_Part, frozen=True, array_like=True, tag=1):
    """The fingerprint of all that the sender has here."""

    fingerprint: Fingerprint


class Listed(_Part, frozen=True, array_like=True, tag=2):
    """Every id that the sender has here, ascending."""

    ids: Digests


class Differs(_Part, frozen=True, array_like=True, tag=3):
    """The answer to `Listed`: of these ids the sender lacks `wanted`, and has `offered` besides. Both ascend."""

    wanted: Digests
    offered: Digests


Part = Same | Sum | Listed | Differs
Parts = Annotated[tuple[Part, ...], Meta(max_length=PARTS_LIMIT)]


class Ids:
    """A set of ids of 32 bytes, in order, with the fingerprint of any range of it."""

    def __init__(self, ids: Iterable[bytes] = ()) -> None:
        self._ids = sorted(set(ids))
        self._total = sum(map(_number, self._ids))
        self._sums: list[int] | None = None  # of the first n ids
        self._whole: bytes | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._ids)

    def __contains__(self, id: bytes) -> bool:
        at = bisect_left(self._ids, id)
        return at < len(self._ids) and self._ids[at] == id

    def add(self, id: bytes) -> bool:
        """Whether it was new."""
        if id in self:
            return False
        insort(self._ids, id)
        self._total += _number(id)
        self._sums = self._whole = None
        return True

    def discard(self, id: bytes) -> None:
        if id in self:
            del self._ids[bisect_left(self._ids, id)]
            self._total -= _number(id)
            self._sums = self._whole = None

    def cut(self, start: bytes, end: bytes) -> tuple[int, int]:
        """Positions of the first id of a range and of the first behind it."""
        return bisect_left(self._ids, start), len(self._ids) if end == END else bisect_left(self._ids, end)

    def at(self, low: int, high: int) -> tuple[bytes, ...]:
        """The ids at these positions."""
        return tuple(self._ids[low:high])

    def fingerprint(self, low: int = 0, high: int | None = None) -> bytes:
        """That of the ids at these positions, of all by default."""
        if low == 0 and high in (None, len(self._ids)):
            if self._whole is None:
                self._whole = _fingerprint(self._total, len(self._ids))
            return self._whole
        if self._sums is None:
            self._sums = list(accumulate(map(_number, self._ids), initial=0))
        high = len(self._ids) if high is None else high
        return _fingerprint(self._sums[high] - self._sums[low], high - low)

    def between(self, position: int) -> bytes:
        """The shortest bound between an id and the one before it."""
        before, after = self._ids[position - 1], self._ids[position]
        length = next(number for number, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1])
        return after[: length + 1]


def _number(id: bytes) -> int:
    return int.from_bytes(id)


def _fingerprint(total: int, count: int) -> bytes:
    return sha256((total % (1 << 256)).to_bytes(32) + count.to_bytes(8))[:FINGERPRINT_SIZE]


# ---- whoever is asked ------------------------------------------------------------------------------------------


def respond(ids: Ids, question: Sequence[Part]) -> tuple[Part, ...]:
    """The answer to a question about `ids`. Raises `PeerMisbehaved` for one that makes no sense."""
    answer = _Message(ids)
    for start, part in _walk(question):
        low, high = ids.cut(start, part.end)
        if isinstance(part, Same):
            answer.add(part)
        elif isinstance(part, Sum):
            answer.extend(_compared(ids, low, high, part))
        elif isinstance(part, Listed):
            theirs = _checked(part.ids, start, part.end)
            many = high - low > TOLD
            answer.extend(_split(ids, low, high, part.end) if many else [_listed(ids, low, high, theirs, part.end)])
        else:
            raise PeerMisbehaved("a question tells what only an answer can")
        if answer.is_full:
            break
    return answer.parts()


def _listed(ids: Ids, low: int, high: int, theirs: Sequence[bytes], end: bytes) -> Part:
    mine = ids.at(low, high)
    both = set(mine) & set(theirs)
    wanted, offered = (tuple(id for id in some if id not in both) for some in (theirs, mine))
    return Differs(end, wanted, offered) if wanted or offered else Same(end)


def _compared(ids: Ids, low: int, high: int, part: Sum) -> Sequence[Part]:
    return [Same(part.end)] if ids.fingerprint(low, high) == part.fingerprint else _split(ids, low, high, part.end)


def _split(ids: Ids, low: int, high: int, end: bytes) -> list[Part]:
    """What to say of a range that is not the same: its ids, or the fingerprints of its parts."""
    if high - low <= LISTED:
        return [Listed(end, ids.at(low, high))]
    cuts = [low + (high - low) * number // BRANCHES for number in range(BRANCHES + 1)]
    ends = [*(ids.between(position) for position in cuts[1:-1]), end]
    return [Sum(ends[number], ids.fingerprint(cuts[number], cuts[number + 1])) for number in range(BRANCHES)]


# ---- whoever asks ----------------------------------------------------------------------------------------------


class Reconciliation:
    """One conversation, as the side that asks. `need` and `have` are what it finds: ids that only the other side has,
    and that only this one has."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._rounds = 0
        self.need: list[bytes] = []
        self.have: list[bytes] = []

    def first(self) -> tuple[Part, ...]:
        """The first question."""
        self._rounds = 1
        return (Sum(END, self._ids.fingerprint()),)

    def next(self, answer: Sequence[Part]) -> tuple[Part, ...]:
        """The next question, empty at the end. Raises `PeerMisbehaved` for an answer that makes no sense."""
        question = _Message(self._ids)
        for start, part in _walk(answer):
            low, high = self._ids.cut(start, part.end)
            if isinstance(part, Sum):
                question.extend(_compared(self._ids, low, high, part))
            else:
                question.add(Same(part.end))
            if question.is_full:  # the rest is asked for again
                break
            self._find(start, part, low, high)
        self._rounds += 1
        over = self._rounds > ROUNDS_LIMIT or max(len(self.need), len(self.have)) >= FOUND_LIMIT
        return () if over else question.parts()

    def _find(self, start: bytes, part: Part, low: int, high: int) -> None:
        if isinstance(part, Listed):
            theirs, mine = set(_checked(part.ids, start, part.end)), self._ids.at(low, high)
            self.have += [id for id in mine if id not in theirs]
            self.need += sorted(theirs.difference(mine))
        elif isinstance(part, Differs):
            wanted, offered = (_checked(some, start, part.end) for some in (part.wanted, part.offered))
            self.have += [id for id in wanted if id in self._ids]
            self.need += [id for id in offered if id not in self._ids]
        del self.need[FOUND_LIMIT:], self.have[FOUND_LIMIT:]


# ---- messages --------------------------------------------------------------------------------------------------


class _Message:
    """Parts that are collected within the limits of one message."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._parts: list[Part] = []
        self._size = 0
        self.is_full = False

    def extend(self, parts: Iterable[Part]) -> None:
        for part in parts:
            self.add(part)

    def add(self, part: Part) -> None:
        """Once it is full, the fingerprint of all the rest stands for it."""
        if self.is_full:
            return
        size = _ids_in(part)
        if len(self._parts) + 1 >= PARTS_LIMIT or self._size + size > IDS_LIMIT:
            self.is_full = True
            low, high = self._ids.cut(self._parts[-1].end if self._parts else b"", END)
            self._parts.append(Sum(END, self._ids.fingerprint(low, high)))
        elif isinstance(part, Same) and self._parts and isinstance(self._parts[-1], Same):
            self._parts[-1] = part
        else:
            self._parts.append(part)
            self._size += size

    def parts(self) -> tuple[Part, ...]:
        """Without what needs not be said at the end."""
        if self._parts and isinstance(self._parts[-1], Same):
            self._parts.pop()
        return tuple(self._parts)


def _ids_in(part: Part) -> int:
    if isinstance(part, Listed):
        return len(part.ids)
    return len(part.wanted) + len(part.offered) if isinstance(part, Differs) else 0


def _walk(parts: Sequence[Part]) -> Iterator[tuple[bytes, Part]]:
    """Each part with where it starts."""
    start, ended = b"", False
    for part in parts:
        if ended or (part.end != END and part.end <= start):
            raise PeerMisbehaved("ranges of ids that do not follow each other")
        yield start, part
        start, ended = part.end, part.end == END


def _checked(ids: Sequence[bytes], start: bytes, end: bytes) -> Sequence[bytes]:
    """Ids that ascend within their range."""
    for before, after in zip(chain((None,), ids), ids, strict=False):
        if after < start or (end != END and after >= end) or (before is not None and after <= before):
            raise PeerMisbehaved("ids that are not of the range or do not ascend")
    return ids


# ---- when and with whom ----------------------------------------------------------------------------------------


class Schedule:
    """When to repair with which peer. Times in seconds of any one clock; `rng` keeps nodes out of step.

    A repair serves both sides, so it counts for both, whoever has begun it. When more peers are due than may begin,
    those come first who share the topic that was repaired the longest ago.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._due: dict[str, float] = {}
        self._pause: dict[str, float] = {}
        self._topics: dict[str, frozenset[bytes]] = {}
        #: When topics were repaired last, and when all that has begun is made up for.
        self._covered: dict[bytes, float] = {}
        self._free_at = float("-inf")

    def met(self, peer: str, now: float, *, ours: bool, topics: Iterable[bytes] = ()) -> None:
        """Connected; `ours` when we have dialled, and so begin; `topics` that are shared with it."""
        self._pause[peer] = EVERY_S
        self._due[peer] = now if ours else now + EXPECTED_S
        self._topics[peer] = frozenset(topics)
        for topic in self._topics[peer]:
            self._covered.setdefault(topic, float("-inf"))

    def lost(self, peer: str) -> None:
        self._due.pop(peer, None)
        self._pause.pop(peer, None)
        self._topics.pop(peer, None)

    def done(self, peer: str, now: float, *, found: bool) -> None:
        """A repair with it is over, or has failed; `found` when the two did not know the same."""
        if peer in self._due:
            self._pause[peer] = EVERY_S if found else min(self._pause[peer] * 2, EVERY_MAX_S)
            self._due[peer] = now + self._pause[peer] * self._rng.uniform(0.8, 1.2)

    def spread(self, besides: str, now: float) -> None:
        """`besides` has brought something new: `SPREAD` others are due."""
        others = sorted(peer for peer in self._due if peer != besides)
        for peer in self._rng.sample(others, min(SPREAD, len(others))):
            self._due[peer] = min(self._due[peer], now)

    def take_due(self, now: float) -> list[str]:
        """Peers to repair with now; each is due again after its pause, also if nobody tells how it went."""
        due = [peer for peer, at in self._due.items() if at <= now] if self._may_begin_at() <= now else []
        peers: list[str] = []
        while due and self._may_begin_at() <= now:
            peer = self._most_urgent(due)
            due.remove(peer)
            peers.append(peer)
            self._due[peer] = now + self._pause[peer]
            self._covered.update(dict.fromkeys(self._topics[peer], now))
            self._free_at = max(self._free_at, now) + EVERY_S
        return peers

    def next_at(self) -> float:
        """When somebody is due next, and may be asked."""
        return max(min(self._due.values(), default=float("inf")), self._may_begin_at())

    def _most_urgent(self, due: Collection[str]) -> str:
        """Of the topic that has waited longest the peer that has."""
        for topic in sorted(self._covered, key=self._covered.__getitem__):
            if sharing := [peer for peer in due if topic in self._topics[peer]]:
                return min(sharing, key=self._due.__getitem__)
        return min(due, key=self._due.__getitem__)

    def _may_begin_at(self) -> float:
        return self._free_at - (AT_ONCE - 1) * EVERY_S


class Freshness:
    """Whether what this node knows of others' records is recent, or was it away?

    What holds: a node whose last repair is more than an hour old (it was off, asleep or alone) neither serves nor
    averages before it has repaired with a member of one of its topics, so that every revocation which that member
    knows has arrived first. It goes on without when it has met members and none of them has come to an end with it
    within `CATCH_UP_S`, or has met nobody for so long: a user who is offline keeps working, and a stranger who says
    nothing can't stop a node. What does not hold: a node that meets only members who don't know of a revocation, or
    hide it, does not know of it either.

    `now` is in milliseconds of the wall clock, which goes on while the machine sleeps.
    """

    def __init__(self, repaired_ms: int) -> None:
        """`repaired_ms`: when the last repair ended, in the life before too; 0 for never."""
        self.repaired_ms = repaired_ms
        self._waiting_since_ms: int | None = None

    def repaired(self, now: int) -> None:
        self.repaired_ms = now
        self._waiting_since_ms = None

    def wait_ms(self, now: int) -> int:
        """How much longer to wait for a repair before serving; 0 when there is no reason to."""
        if 0 <= now - self.repaired_ms <= RECENT_MS:
            return 0
        waiting = self._waiting_since_ms
        if waiting is None or now < waiting or now - waiting > RECENT_MS:  # not since we were away again
            waiting = self._waiting_since_ms = now
        return max(0, waiting + round(CATCH_UP_S * 1000) - now)
