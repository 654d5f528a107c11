"""Signed records between this node and others: what is told, taken, kept and passed on.

Three ways carry records. `gossip.py` spreads news under open topics through a mesh, quickly and not always to all.
Members of closed topics, and those of open ones whom gossip does not reach yet, are told straight. `repair.py` finds
what any of this has lost. Whichever way a record comes, it is taken here.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import trio
from libp2p.peer.id import ID

from orchd.errors import OrchdError, PeerMisbehaved
from orchd.net import messages
from orchd.net.known import Known
from orchd.net.library import Library
from orchd.net.members import Members
from orchd.net.messages import Done, GetRecords, Hello, Push, RecordsAre, Reply, Request
from orchd.net.policy.gossip import Shares, is_foreign, may_keep, to_forget, to_gossip, to_push
from orchd.records import Announcement, Federation, Record, Verified, verify_any
from orchd.registry import loud, told
from orchd.registry.news import Heard, Item, Taken
from orchd.registry.registry import Registry

log = logging.getLogger(__name__)

#: Records a second that one peer may bring, and how many at once after a silence.
NEWS_RATE, NEWS_BURST = 16.0, 4096.0
#: Authors whose announcements are kept however many there are.
TRUSTED = ("self", "followed", "allowed")
#: A push that fails is tried once more; after that repair is left to find it.
PUSH_ATTEMPTS = 2

Ask = Callable[[ID, Request, type[Any]], Awaitable[Any]]


class Passed(NamedTuple):
    """A record that a neighbour passed on by gossip, under one topic."""

    record: Verified[Record]
    neighbour: ID
    topic: str


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
        rng: random.Random,
    ) -> None:
        self._ask, self._spawn = ask, spawn
        self._registry, self._library = registry, library
        self._events, self._prove, self._learned = events, prove, learned
        self._topics = topics
        self._members, self._known, self._mesh = members, known, mesh
        self._shares: Shares[ID] = Shares(NEWS_RATE, NEWS_BURST)
        self._rng = rng

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
            for name in to_gossip(item.named or item.topics, self._ours, came_under):
                await self._mesh.publish(name, item.envelope)

    async def _push(self, items: Sequence[Item], source: ID | None, *, straight: bool = False) -> None:
        members = {peer: frozenset(self.topics_of(peer)) for peer in self.members()}
        theirs: dict[ID, list[bytes]] = {}
        for item in items:
            carried = frozenset(item.named or item.topics)  # gossip drops a record under a topic that it does not name
            reached = {
                peer for peer, names in members.items() if names & carried and self._mesh.reaches(peer, names & carried)
            }
            for peer in to_push(item.topics, members, self._rng, () if straight else reached, source):
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

    async def hear(self, passed: Sequence[Passed]) -> None:
        """Take what came by gossip, which has checked it and passes it on under its topic."""
        found = await self._keep_all([(one.record, one.neighbour) for one in passed])
        for one, taken in zip(passed, found, strict=True):
            if taken.items:
                self._spawn(self._pass_on, taken.items, one.neighbour, one.topic)
        for neighbour in {one.neighbour for one, taken in zip(passed, found, strict=True) if _is_unproven(taken)}:
            self._spawn(self._prove, neighbour)

    async def take(self, peer: ID, records: Iterable[Verified[Record]], *, repair: bool) -> int:
        """Take what a peer gave; how many were new.

        `repair`: they are no news, and are not pushed on; others are asked whether they know them instead.
        """
        found = await self._keep_all([(record, peer) for record in records])
        items = [item for taken in found for item in taken.items]
        if items:
            self._learned(peer)
            if not repair:
                self._spawn(self._push, items, peer)
        if any(map(_is_unproven, found)):
            self._spawn(self._prove, peer)
        return len(items)

    async def _pass_on(self, items: Sequence[Item], source: ID, came_under: str) -> None:
        await self._publish(items, came_under)
        await self._push(items, source)

    async def _keep_all(self, given: Sequence[tuple[Verified[Record], ID]]) -> list[Taken]:
        """Keep records that peers gave; what came of each."""
        shared = {peer: tuple(self.topics_of(peer)) for peer in {peer for _, peer in given}}
        heard = [Heard(record, str(peer), shared[peer]) for record, peer in given]
        if count := to_forget(len(self._known), len(heard)):
            await self._make_room(count)
        found = await trio.to_thread.run_sync(self._keep, heard, self._ours)
        for (record, _), taken in zip(given, found, strict=True):
            if taken.new:
                self._mesh.met(record.digest)
            for item in taken.items:
                if item.envelope == record.envelope:
                    self._known.came(record.digest, record.author, item.topics)
            for kind, data in taken.events:
                tell(self._events, kind, data)
        return found

    async def _make_room(self, count: int) -> None:
        registry = self._registry
        spared = {str(registry.author), *registry.people.view().opinions}
        forgotten = await trio.to_thread.run_sync(told.forget, registry.index, count, spared)
        log.warning("too many announcements are here: %d of strangers are forgotten", forgotten)
        await self._known.refresh()

    def _keep(self, heard: Sequence[Heard], joined: frozenset[str]) -> list[Taken]:
        """In a thread.

        A proof of equivocation is two announcements, maybe one of a topic that is not ours: what names none of ours
        comes last, when the other one is known.
        """
        news, more = self._registry.news, Counter[str]()
        ours = [one for one in heard if not is_foreign(one.record.record, joined)]
        wanted = [one for one in ours if self._has_room_for(one.record, more)]
        found = dict(zip(map(id, wanted), news.take_all(wanted), strict=True))
        for one in heard:
            foreign = one.record.of(Announcement) if is_foreign(one.record.record, joined) else None
            if foreign and news.rival(foreign) is not None and self._has_room_for(foreign, more):
                found[id(one)] = news.take(*one)
        for one in wanted:
            if not found[id(one)].new and one.topics and not isinstance(one.record.record, Announcement | Federation):
                told.widen(self._registry.index, one.record.id, one.topics, self._registry.clock())
        return [found.get(id(one), Taken()) for one in heard]

    def _has_room_for(self, record: Verified[Record], more: Counter[str]) -> bool:
        """Besides what is known, and `more` by author."""
        author, trusted = record.author, self._registry.trust(record.author) in TRUSTED
        of_author, in_all = self._known.of_author(author) + more[author], len(self._known) + more.total()
        more[author] += 1
        return may_keep(record.record, of_author, in_all, trusted=trusted)

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


def _is_unproven(taken: Taken) -> bool:
    """Whether something was revoked, and it has to be shown yet whose it was."""
    return any(kind == "adapter.revoked" and not data["known"] for kind, data in taken.events)


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
