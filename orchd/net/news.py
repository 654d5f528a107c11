"""Who shares which topics with us, and what they tell: announcements, revocations, attestations, key rotations.

Records are pushed straight to every connected member of their topics, who pass new ones on, and are pulled on
connect, on join and periodically. That is flooding with repair: one message a member and record, no state in
the middle, nothing lost for long. GossipSub does the same with fewer messages for topics of hundreds of members and
drops bursts silently (measured: 25 of 60 lost at 20 a second); it can take the place of `push` without touching the
rest, because pulling repairs what any of them loses.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import trio
from libp2p.peer.id import ID

from orchd.errors import OrchdError, PeerMisbehaved
from orchd.net import messages
from orchd.net.exchange import Bucket
from orchd.net.library import Library
from orchd.net.messages import Done, Hello, Pull, Pulled, Push, Reply, Request, topic_key
from orchd.records import Announcement, Federation, Record, Verified, verify_any
from orchd.registry import loud
from orchd.registry.news import Item, Taken
from orchd.registry.registry import Registry

log = logging.getLogger(__name__)

#: Records a second that one peer may bring, and how many at once after a silence.
NEWS_RATE, NEWS_BURST = 16.0, 4096.0
#: Records that one pull takes at most; the next one goes on from there.
PULL_LIMIT = 4096
#: A push that fails is tried once more; after that the peer will pull.
PUSH_ATTEMPTS = 2

Ask = Callable[[ID, Request, type[Any]], Awaitable[Any]]


class Events(Protocol):
    """Where the network tells what happened."""

    def emit(self, kind: str, data: dict[str, Any], /) -> object: ...


class News:
    """Membership and records of one life of the host. `topics` are the joined ones, by key; `prove` is called when a
    revocation came from a peer that may show whose the adapter was."""

    def __init__(
        self,
        *,
        ask: Ask,
        spawn: Callable[..., None],
        registry: Registry,
        library: Library,
        events: Events,
        topics: Mapping[bytes, str],
        prove: Callable[[ID], Awaitable[None]],
    ) -> None:
        self._ask, self._spawn = ask, spawn
        self._registry, self._library = registry, library
        self._events, self._prove = events, prove
        self._topics = topics
        self._members: dict[ID, frozenset[bytes]] = {}
        self._points: dict[ID, tuple[int, str]] = {}
        self._pulling: set[ID] = set()
        self._buckets: dict[ID, Bucket] = {}

    # ---- membership ---------------------------------------------------------------------------------------------

    def members(self, topics: Collection[bytes] | None = None) -> list[ID]:
        """Connected peers that share one of `topics`, or any topic, with us."""
        wanted = self._topics.keys() if topics is None else topics
        return [peer for peer, theirs in self._members.items() if not theirs.isdisjoint(wanted)]

    def topics_of(self, peer: ID) -> list[str]:
        """Names of the topics that `peer` shares with us."""
        return sorted(self._topics[key] for key in self._members.get(peer, ()) if key in self._topics)

    def knows(self, peer: ID) -> bool:
        """Whether `peer` speaks our protocol."""
        return peer in self._members

    async def greet(self, peer: ID) -> None:
        """Exchange topics with `peer`, then take what it knows under those that we share."""
        reply: Hello = await self._ask(peer, self._hello(), Hello)
        self._heard(peer, reply.topics)
        await self.pull(peer)

    def _hello(self) -> Hello:
        return Hello(topics=tuple(self._topics)[: messages.TOPICS_LIMIT])

    def _heard(self, peer: ID, topics: Iterable[bytes]) -> None:
        self._members[peer] = frozenset(topics)

    def lost(self, peer: ID) -> None:
        """The last connection to `peer` has ended."""
        self._members.pop(peer, None)
        self._points.pop(peer, None)
        self._buckets.pop(peer, None)

    # ---- records ------------------------------------------------------------------------------------------------

    async def push(self, items: Sequence[Item], besides: ID | None = None) -> None:
        """Tell members of their topics, all at once. Who can't be reached will pull."""
        async with trio.open_nursery() as nursery:
            for peer in self.members():
                theirs = [item.envelope for item in items if self._concerns(peer, item)]
                if theirs and peer != besides:
                    nursery.start_soon(self._push_to, peer, theirs)

    async def _push_to(self, peer: ID, envelopes: Sequence[bytes]) -> None:
        for _ in range(PUSH_ATTEMPTS):
            try:
                for batch in messages.batches(envelopes):
                    await self._ask(peer, Push(records=batch), Done)
                return
            except OrchdError as error:
                log.info("news for %s: %s", peer, error)

    def _concerns(self, peer: ID, item: Item) -> bool:
        return not self._members[peer].isdisjoint(map(topic_key, item.topics))

    async def pull(self, peer: ID, *, everything: bool = False) -> None:
        """Take what `peer` knows under shared topics, since last time or from the beginning."""
        shared = tuple(key for key in self._members.get(peer, ()) if key in self._topics)
        if not shared or peer in self._pulling:
            return
        self._pulling.add(peer)
        try:
            since, after = (0, "") if everything else self._points.get(peer, (0, ""))
            for _ in range(0, PULL_LIMIT, messages.RECORDS_LIMIT):
                answer: Pulled = await self._ask(peer, Pull(topics=shared, since=since, after=after), Pulled)
                await self._take(peer, answer.records)
                since, after = answer.since, answer.after
                if peer in self._members:
                    self._points[peer] = since, after
                if not answer.more:
                    return
        finally:
            self._pulling.discard(peer)

    def start_over(self, peer: ID) -> None:
        """Our topics have changed: what was skipped so far may concern us now."""
        self._points.pop(peer, None)

    async def _take(self, peer: ID, envelopes: Sequence[bytes]) -> None:
        """Check records, keep the new ones, tell of them and pass them on. Raises `PeerMisbehaved`."""
        records = [_checked(peer, envelope) for envelope in envelopes]
        # A proof of equivocation is two announcements, maybe one of a topic that is not ours: it comes last, when the
        # other one is known.
        records.sort(key=self._is_foreign)
        items: list[Item] = []
        unproven = False
        for record in records:
            taken = await self._keep(record, peer)
            items += taken.items
            for kind, data in taken.events:
                tell(self._events, kind, data)
                unproven |= kind == "adapter.revoked" and not data["known"]
        if items:
            self._spawn(self.push, items, peer)
        if unproven:
            self._spawn(self._prove, peer)

    async def _keep(self, record: Verified[Record], peer: ID) -> Taken:
        return await trio.to_thread.run_sync(self._keep_now, record, str(peer), tuple(self.topics_of(peer)))

    def _keep_now(self, record: Verified[Record], peer: str, shared: tuple[str, ...]) -> Taken:
        """In a thread."""
        if self._is_foreign(record):
            announcement = record.of(Announcement)
            if announcement is None or self._registry.news.rival(announcement) is None:
                return Taken()
        return self._registry.news.take(record, peer, shared)

    def _is_foreign(self, record: Verified[Record]) -> bool:
        """Whether it names topics, and none of ours."""
        found = record.record
        if isinstance(found, Announcement):
            return self._ours.isdisjoint(found.topics)
        return isinstance(found, Federation) and found.topic not in self._ours

    @property
    def _ours(self) -> frozenset[str]:
        return frozenset(self._topics.values())

    # ---- answers ------------------------------------------------------------------------------------------------

    async def answer_hello(self, peer: ID, request: Hello) -> Reply:
        self._heard(peer, request.topics)
        self._spawn(self._pull_quietly, peer)
        return self._hello()

    async def _pull_quietly(self, peer: ID) -> None:
        try:
            await self.pull(peer)
        except OrchdError as error:
            log.info("news of %s: %s", peer, error)

    async def answer_push(self, peer: ID, request: Push) -> Reply:
        now = trio.current_time()
        bucket = self._buckets.setdefault(peer, Bucket(NEWS_RATE, NEWS_BURST, now))
        if not bucket.take(now, len(request.records)):
            return messages.Failed(reason=messages.BUSY)
        await self._take(peer, request.records)
        return Done()

    async def answer_pull(self, request: Pull) -> Reply:
        names = [self._topics[key] for key in request.topics if key in self._topics]
        known = await trio.to_thread.run_sync(
            self._library.news, names, request.since, request.after, messages.RECORDS_LIMIT
        )
        records = next(iter(messages.batches(item.envelope for item in known)), ())
        told = known[: len(records)]
        since, after = (told[-1].received_ms, told[-1].id) if told else (request.since, request.after)
        more = len(told) < len(known) or len(known) == messages.RECORDS_LIMIT
        return Pulled(records=records, since=since, after=after, more=more)


def tell(events: Events, kind: str, data: dict[str, Any]) -> None:
    """An event, and a line in the log for what the user should hear of without asking."""
    events.emit(kind, data)
    if text := loud.warning(kind, data):
        log.warning("%s", text)


def _checked(peer: ID, envelope: bytes) -> Verified[Record]:
    try:
        return verify_any(envelope)
    except OrchdError as error:
        raise PeerMisbehaved(f"{peer} sent a record that does not hold: {error}") from None
