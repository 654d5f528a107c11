"""Which signed records are taken from gossip and passed on, and to whom what is new is told. Pure.

Every message costs the neighbour who forwards it, before anything of it is looked at. A record that is old news
goes no further and costs its author nothing, so that nobody can use up an author's share by sending old records again.
One that is new costs its author, and one of an author who was never heard of costs the neighbour a second time: keys
are free, so a flood under a thousand new keys is the flood of whoever forwards it. What is refused here is not lost:
repair brings it, at its own pace.

`now` is in seconds of any steady clock, `now_ms` in milliseconds since 1970.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable, Mapping
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

from orchd.net.policy.names import is_open
from orchd.net.policy.rates import Bucket
from orchd.net.policy.scores import Floods
from orchd.records import Announcement, Federation, Manifest, Record, Revocation

#: Bytes of a record that is gossiped, at most: the largest revocation.
MESSAGE_LIMIT = 32 << 10
#: Messages a second from one neighbour, and how many at once after a silence.
NEIGHBOUR_RATE, NEIGHBOUR_BURST = 50.0, 500.0
#: Messages beyond that which are only dropped, a second and at once. Who sends more than these, too, floods.
DROPPED_RATE, DROPPED_BURST = 100.0, 1000.0
#: New records a second of one author, and at once.
AUTHOR_RATE, AUTHOR_BURST = 0.5, 128.0
#: Authors never heard of, that one neighbour may bring a second, and at once.
NEWCOMER_RATE, NEWCOMER_BURST = 0.5, 64.0
#: A record that came so lately, in seconds, is passed on under each of its topics; an older one is a replay.
NEWS_S = 120.0
#: Ids and messages that were met lately, and authors and neighbours whose share is remembered.
REMEMBERED, SHARES = 8192, 4096
#: Announcements that are kept of one author, and records in all beyond which no announcement is kept.
KEPT_OF_ONE, KEPT_IN_ALL = 2_000, 100_000
#: The part of them that is forgotten at once, to make room.
FORGOTTEN_PART = 0.1
#: Members whom one who was told tells straight: with everybody doing so, of a hundred members a quarter of one per cent
#: is missed (e⁻⁶), and repair finds them. Whose news it is tells all.
PASSED_TO = 6
#: A record may be dated this far in the future, in milliseconds. Revocations are taken however they are dated.
CLOCK_WINDOW_MS = 10 * 60 * 1000

K = TypeVar("K", bound=Hashable)


class Verdict(StrEnum):
    """What to do with a message. `PASS`: take the record and pass it on. `AGAIN`: it has just come another way, and is
    passed on under this topic too. All others: neither."""

    PASS = "passed"
    AGAIN = "passed_again"
    KNOWN = "known"
    MALFORMED = "malformed"
    MISPLACED = "misplaced"
    BLOCKED = "blocked"
    NEIGHBOUR_LIMIT = "neighbour_limit"
    AUTHOR_LIMIT = "author_limit"
    NEWCOMER_LIMIT = "newcomer_limit"


class Message(NamedTuple):
    """One that came by gossip. `digest` is the hash of all its bytes."""

    topic: str
    neighbour: Hashable
    digest: bytes


class Gate:
    """The limits of one node."""

    def __init__(self) -> None:
        self._neighbours: Shares[Hashable] = Shares(NEIGHBOUR_RATE, NEIGHBOUR_BURST)
        self._floods: Floods[Hashable] = Floods(DROPPED_RATE, DROPPED_BURST)
        self._newcomers: Shares[Hashable] = Shares(NEWCOMER_RATE, NEWCOMER_BURST)
        self._authors: Shares[bytes] = Shares(AUTHOR_RATE, AUTHOR_BURST)
        #: Messages, and records under topics, that need not be looked at again.
        self._messages: Recent[tuple[str, bytes]] = Recent(REMEMBERED)
        self._under: Recent[tuple[str, bytes]] = Recent(REMEMBERED)
        #: When a record came first, whichever way.
        self._met: Recent[bytes] = Recent(REMEMBERED)

    def message(self, message: Message, size: int, now: float) -> Verdict:
        """Before anything but its length in bytes and its hash is looked at."""
        if not self._neighbours.take(message.neighbour, now):
            return Verdict.NEIGHBOUR_LIMIT
        if size > MESSAGE_LIMIT:
            return Verdict.MALFORMED
        return Verdict.KNOWN if (message.topic, message.digest) in self._messages else Verdict.PASS

    def is_flood(self, neighbour: Hashable, now: float) -> bool:
        """After `NEIGHBOUR_LIMIT`: whether it is far too much."""
        return self._floods.refused(neighbour, now)

    def record(
        self, message: Message, record: Record, id: bytes, *, known: bool, heard_of: bool, now: float, now_ms: int
    ) -> Verdict:
        """When its signatures hold. `known`: it is here already; `heard_of`: other records of its author are here."""
        if not belongs(record, message.topic) or is_early(record, now_ms):
            return Verdict.MISPLACED
        verdict = self._judge(message, record.author, id, known, heard_of, now)
        if verdict in (Verdict.PASS, Verdict.AGAIN, Verdict.KNOWN):
            self._messages.add((message.topic, message.digest), now)
            self._under.add((message.topic, id), now)
        if verdict is Verdict.PASS:
            self.met(id, now)
        return verdict

    def _judge(self, message: Message, author: bytes, id: bytes, known: bool, heard_of: bool, now: float) -> Verdict:
        if (message.topic, id) in self._under:
            return Verdict.KNOWN
        if now - self._met.since(id, float("-inf")) <= NEWS_S:
            return Verdict.AGAIN
        if known:
            return Verdict.KNOWN
        if not heard_of and not self._newcomers.take(message.neighbour, now):
            return Verdict.NEWCOMER_LIMIT
        return Verdict.PASS if self._authors.take(author, now) else Verdict.AUTHOR_LIMIT

    def sent(self, topic: str, digest: bytes, now: float) -> None:
        """A message of our own."""
        self._messages.add((topic, digest), now)

    def met(self, id: bytes, now: float) -> None:
        """A record that was not here has come, whichever way."""
        self._met.add(id, now)


def belongs(record: Record, topic: str) -> bool:
    """Whether a record may travel under a topic. A manifest is fetched, never told."""
    if isinstance(record, Announcement):
        return topic in record.topics
    if isinstance(record, Federation):
        return topic == record.topic
    return not isinstance(record, Manifest)


def is_foreign(record: Record, joined: Collection[str]) -> bool:
    """Whether it names topics, and none that we have joined."""
    if isinstance(record, Announcement):
        return not any(name in joined for name in record.topics)
    return isinstance(record, Federation) and record.topic not in joined


def is_early(record: Record, now_ms: int) -> bool:
    """Whether it is dated in the future, further than clocks differ."""
    return not isinstance(record, Revocation) and record.created_ms > now_ms + CLOCK_WINDOW_MS


def may_keep(record: Record, of_author: int, in_all: int, *, trusted: bool) -> bool:
    """Whether there is room for another announcement of an author of whom so many records are here, and so many in all.

    Records of other kinds have limits of their own where they are kept: what is announced must never leave no room for
    what is taken back. `trusted`: the user's own, or of somebody whom the user has named.
    """
    if trusted or not isinstance(record, Announcement | Federation):
        return True
    return of_author < KEPT_OF_ONE and in_all < KEPT_IN_ALL


def to_forget(in_all: int, coming: int) -> int:
    """How many announcements of strangers are forgotten before so many records come: none while there is room.

    Without that, whoever once made up a hundred thousand would have shut the door on all newcomers for ever.
    """
    return 0 if in_all + coming <= KEPT_IN_ALL else max(coming, round(KEPT_IN_ALL * FORGOTTEN_PART))


# ---- whom to tell ----------------------------------------------------------------------------------------------


def to_gossip(topics: Iterable[str], joined: Collection[str], came_under: str | None = None) -> list[str]:
    """Topics under which a record is published: the open ones that we are in, but for the one that it came under,
    where those who forward it are at work already."""
    return [name for name in topics if name != came_under and name in joined and is_open(name)]


def to_push(
    topics: Iterable[str],
    members: Mapping[K, Collection[str]],
    rng: random.Random,
    reached: Collection[K] = (),
    source: K | None = None,
) -> list[K]:
    """Members who are told straight: of closed topics all, of open ones those whom gossip does not reach yet.

    `members` are connected peers with the topics that they share with us, `reached` those who take gossip, `source`
    is who has told us. Who was told tells some, by chance, and not all: everybody would hear it from everybody.
    """
    names = list(topics)

    def concerns(peer: K, theirs: Collection[str]) -> bool:
        return any(name in theirs and (peer not in reached or not is_open(name)) for name in names)

    found = [peer for peer, theirs in members.items() if peer != source and concerns(peer, theirs)]
    return found if source is None else rng.sample(found, min(PASSED_TO, len(found)))


# ---- bounded memory --------------------------------------------------------------------------------------------


class Recent(Generic[K]):
    """The last `limit` keys that were added, each with when it was added first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._keys: OrderedDict[K, float] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def since(self, key: K, never: float) -> float:
        return self._keys.get(key, never)

    def renew(self, key: K, now: float) -> None:
        """Add it as if for the first time."""
        self._keys.pop(key, None)
        self.add(key, now)

    def add(self, key: K, now: float) -> bool:
        """Whether it was new."""
        if key in self._keys:
            self._keys.move_to_end(key)
            return False
        self._keys[key] = now
        if len(self._keys) > self._limit:
            self._keys.popitem(last=False)
        return True


class Shares(Generic[K]):
    """A bucket for each key. Of more than `SHARES` the one that was used the longest ago is forgotten: it is full again
    by then, unless so many are in use at once that the neighbours' limits decide."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: OrderedDict[K, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: K, now: float, count: float = 1.0) -> bool:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self._rate, self._burst, now)
            if len(self._buckets) > SHARES:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        return bucket.take(now, count)
