"""Signed records between this node and others: what is told, taken, kept and passed on.

Three ways carry records. `gossip.py` spreads news under open topics through a mesh, quickly and not always to all.
Members of closed topics, and those of open ones whom gossip does not reach yet, are told straight. `repair.py` finds
what any of this has lost. Whichever way a record comes, it is taken here.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import trio
from libp2p.peer.id import ID

from orchd.errors import OrchdError, PeerMisbehaved
from orchd.net import messages
from orchd.net.known import Known
from orchd.net.library import Library
from orchd.net.members import Members
from orchd.net.messages import Done, GetRecords, Hello, Push, RecordsAre, Reply, Request
from orchd.net.policy.gossip import Shares, may_keep, to_gossip, to_push
from orchd.records import Announcement, Federation, Record, Verified, verify_any
from orchd.registry import loud, told
from orchd.registry.news import Item, Taken
from orchd.registry.registry import Registry

log = logging.getLogger(__name__)

#: Records a second that one peer may bring, and how many at once after a silence.
NEWS_RATE, NEWS_BURST = 16.0, 4096.0
#: Authors whose announcements are kept however many there are.
TRUSTED = ("self", "followed", "allowed")
#: A push that fails is tried once more; after that repair is left to find it.
PUSH_ATTEMPTS = 2

Ask = Callable[[ID, Request, type[Any]], Awaitable[Any]]


class Events(Protocol):
    """Where the network tells what happened."""

    def emit(self, kind: str, data: dict[str, Any], /) -> object: ...


class Mesh(Protocol):
    """What spreads news under open topics."""

    async def publish(self, topic: str, envelope: bytes, /) -> None: ...

    def met(self, id: bytes, /) -> None: ...

    def reaches(self, peer: ID, topics: Collection[str], /) -> bool: ...


class News:
    """Records of one life of the host, and greeting. `topics` are the joined ones, by key; `prove` is called when a
    revocation came from a peer that may show whose the adapter was, `learned` when a peer told what gossip has not."""

    def __init__(
        self,
        *,
        ask: Ask,
        spawn: Callable[..., None],
        registry: Registry,
        library: Library,
        events: Events,
        topics: Mapping[bytes, str],
        members: Members[ID],
        known: Known,
        mesh: Mesh,
        prove: Callable[[ID], Awaitable[None]],
        learned: Callable[[ID], None],
    ) -> None:
        self._ask, self._spawn = ask, spawn
        self._registry, self._library = registry, library
        self._events, self._prove, self._learned = events, prove, learned
        self._topics = topics
        self._members, self._known, self._mesh = members, known, mesh
        self._shares: Shares[ID] = Shares(NEWS_RATE, NEWS_BURST)

    # ---- membership ---------------------------------------------------------------------------------------------

    def members(self, topics: Collection[bytes] | None = None) -> list[ID]:
        """Connected peers that share one of `topics`, or any topic, with us."""
        return self._members.members(topics)

    def topics_of(self, peer: ID) -> list[str]:
        """Names of the topics that `peer` shares with us."""
        return self._members.topics_of(peer)

    def knows(self, peer: ID) -> bool:
        """Whether `peer` speaks our protocol."""
        return self._members.knows(peer)

    async def greet(self, peer: ID) -> None:
        """Exchange topics with `peer`."""
        reply: Hello = await self._ask(peer, self._members.hello(peer), Hello)
        self._members.heard(peer, reply)

    async def answer_hello(self, peer: ID, request: Hello) -> Reply:
        self._members.heard(peer, request)
        return self._members.hello(peer)

    def lost(self, peer: ID) -> None:
        """The last connection to `peer` has ended."""
        self._members.lost(peer)

    # ---- telling ------------------------------------------------------------------------------------------------

    async def tell(self, items: Sequence[Item], *, straight: bool = False) -> None:
        """News of this node. `straight`: every member is told by ourselves, too, before this returns."""
        await self._publish(items, None)
        await self._push(items, None, straight=straight)

    async def _publish(self, items: Sequence[Item], came_under: str | None) -> None:
        for item in items:
            for name in to_gossip(item.topics, self._ours, came_under):
                await self._mesh.publish(name, item.envelope)

    async def _push(self, items: Sequence[Item], source: ID | None, *, straight: bool = False) -> None:
        members = {peer: frozenset(self.topics_of(peer)) for peer in self.members()}
        theirs: dict[ID, list[bytes]] = {}
        for item in items:
            reached = {
                peer for peer, names in members.items() if self._mesh.reaches(peer, names.intersection(item.topics))
            }
            for peer in to_push(item.topics, members, () if straight else reached, source):
                theirs.setdefault(peer, []).append(item.envelope)
        async with trio.open_nursery() as nursery:
            for peer, envelopes in theirs.items():
                nursery.start_soon(self._push_to, peer, envelopes)

    async def _push_to(self, peer: ID, envelopes: Sequence[bytes]) -> None:
        for _ in range(PUSH_ATTEMPTS):
            try:
                await self.bring(peer, envelopes, repair=False)
                return
            except OrchdError as error:
                log.info("news for %s: %s", peer, error)

    async def bring(self, peer: ID, envelopes: Sequence[bytes], *, repair: bool) -> None:
        """Give records to one peer. Raises what asking raises."""
        for batch in messages.batches(envelopes):
            await self._ask(peer, Push(records=batch, repair=repair), Done)

    # ---- taking -------------------------------------------------------------------------------------------------

    async def hear(self, record: Verified[Record], peer: ID, topic: str) -> None:
        """Take one from gossip, which has checked it and passes it on under its topic."""
        items, unproven = await self._keep_all([record], peer)
        if items:
            self._spawn(self._pass_on, items, peer, topic)
        if unproven:
            self._spawn(self._prove, peer)

    async def take(self, peer: ID, records: Iterable[Verified[Record]], *, repair: bool) -> int:
        """Take what a peer gave; how many were new.

        `repair`: they are no news, and are not pushed on; others are asked whether they know them instead.
        """
        # A proof of equivocation is two announcements, maybe one of a topic that is not ours: it comes last, when the
        # other one is known.
        items, unproven = await self._keep_all(sorted(records, key=self._is_foreign), peer)
        if items:
            self._learned(peer)
            if not repair:
                self._spawn(self._push, items, peer)
        if unproven:
            self._spawn(self._prove, peer)
        return len(items)

    async def _pass_on(self, items: Sequence[Item], source: ID, came_under: str) -> None:
        await self._publish(items, came_under)
        await self._push(items, source)

    async def _keep_all(self, records: Sequence[Verified[Record]], peer: ID) -> tuple[list[Item], bool]:
        """What is to be passed on, and whether it has to be proven whose a revoked adapter was."""
        items: list[Item] = []
        unproven = False
        shared = tuple(self.topics_of(peer))
        for record in records:
            taken = await trio.to_thread.run_sync(self._keep, record, str(peer), shared)
            items += taken.items
            if taken.new:
                self._mesh.met(record.digest)
            for item in taken.items:
                if item.envelope == record.envelope:
                    self._known.came(record.digest, record.author, item.topics)
            for kind, data in taken.events:
                tell(self._events, kind, data)
                unproven |= kind == "adapter.revoked" and not data["known"]
        return items, unproven

    def _keep(self, record: Verified[Record], peer: str, shared: tuple[str, ...]) -> Taken:
        """In a thread."""
        if self._is_foreign(record):
            announcement = record.of(Announcement)
            if announcement is None or self._registry.news.rival(announcement) is None:
                return Taken()
        if not self._has_room_for(record):
            return Taken()
        taken = self._registry.news.take(record, peer, shared)
        if not taken.new and shared and not isinstance(record.record, Announcement | Federation):
            told.widen(self._registry.index, record.id, shared, self._registry.clock())
        return taken

    def _has_room_for(self, record: Verified[Record]) -> bool:
        trusted = self._registry.trust(record.author) in TRUSTED
        return may_keep(record.record, self._known.of_author(record.author), len(self._known), trusted=trusted)

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

    async def answer_push(self, peer: ID, request: Push) -> Reply:
        if not self._shares.take(peer, trio.current_time(), len(request.records)):
            return messages.Failed(reason=messages.BUSY)
        await self.take(peer, check(peer, request.records), repair=request.repair)
        return Done()

    async def answer_records(self, peer: ID, request: GetRecords) -> Reply:
        names = self._members.visible(peer, request.topics)
        found = await trio.to_thread.run_sync(self._library.records, request.ids, names)
        return RecordsAre(records=next(iter(messages.batches(found)), ()))


def tell(events: Events, kind: str, data: dict[str, Any]) -> None:
    """An event, and a line in the log for what the user should hear of without asking."""
    events.emit(kind, data)
    if text := loud.warning(kind, data):
        log.warning("%s", text)


def check(peer: ID, envelopes: Iterable[bytes]) -> list[Verified[Record]]:
    """Records whose signatures hold. Raises `PeerMisbehaved` when one does not."""
    try:
        return [verify_any(envelope) for envelope in envelopes]
    except OrchdError as error:
        raise PeerMisbehaved(f"{peer} sent a record that does not hold: {error}") from None
