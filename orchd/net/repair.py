"""Repair: a node that was off, or whose news got lost, learns what others know, and tells what they don't.

With each member in turn the ids of records under shared topics are compared (`policy/repair.py`: a few bytes when both
know the same), and what either lacks is handed over. It is due when we have dialled a member, when topics change, every
one to ten minutes, and at once with a few others when a peer has told something new: so news that gossip lost spreads
from node to node all the same. It serves both sides, whoever begins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import trio
from libp2p.peer.id import ID

from orchd.errors import OrchdError, PeerMisbehaved
from orchd.net import messages
from orchd.net.known import Known
from orchd.net.library import Library
from orchd.net.members import Members
from orchd.net.messages import GetRecords, Reconcile, Reconciled, RecordsAre, Reply, TopicParts, topic_key
from orchd.net.news import Ask, News, check
from orchd.net.policy.gossip import Recent, Shares
from orchd.net.policy.repair import Freshness, Ids, Part, Reconciliation, Schedule, Sum, respond

log = logging.getLogger(__name__)

#: Repairs that this node begins at once.
PARALLEL = 4
#: Comparisons a second that one peer may ask for, and at once.
COMPARE_RATE, COMPARE_BURST = 20.0, 300.0
#: Ids remembered of records that were given and not kept (of a blocked author, say), and of those given to one peer.
REFUSED, GIVEN = 8192, 4096


class Repair:
    """Of one life of the host. `clock` gives milliseconds since 1970; `repaired` is called after each one that came to
    its end with a member."""

    def __init__(
        self,
        *,
        ask: Ask,
        spawn: Callable[..., None],
        known: Known,
        library: Library,
        members: Members[ID],
        news: News,
        schedule: Schedule,
        freshness: Freshness,
        clock: Callable[[], int],
        count: Callable[..., None],
        repaired: Callable[[ID], None],
        lied: Callable[[ID], None],
    ) -> None:
        self._ask, self._spawn = ask, spawn
        self._known, self._library = known, library
        self._members, self._news = members, news
        self._schedule, self._freshness = schedule, freshness
        self._clock, self._count, self._repaired, self._lied = clock, count, repaired, lied
        self._peers: dict[str, ID] = {}
        self._busy: set[ID] = set()
        self._refused: Recent[bytes] = Recent(REFUSED)
        self._given: dict[ID, Recent[bytes]] = {}
        self._shares: Shares[ID] = Shares(COMPARE_RATE, COMPARE_BURST)
        self._limiter = trio.CapacityLimiter(PARALLEL)
        self._wake, self._ended = trio.Event(), trio.Event()

    # ---- when ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            wake = self._wake
            for name in self._schedule.take_due(trio.current_time()):
                self._spawn(self._with_peer_quietly, self._peers[name])
            with trio.CancelScope(deadline=self._schedule.next_at()):
                await wake.wait()

    def met(self, peer: ID, *, ours: bool) -> None:
        """A member is connected, and its topics are known; `ours` when we have dialled, and so begin.

        A node that was away does not wait for others to begin.
        """
        self._peers[str(peer)] = peer
        away = self._freshness.wait_ms(self._clock()) > 0
        self._schedule.met(str(peer), trio.current_time(), ours=ours or away)
        self._wake_up()

    def lost(self, peer: ID) -> None:
        """The last connection has ended."""
        self._schedule.lost(str(peer))
        self._peers.pop(str(peer), None)
        self._given.pop(peer, None)

    def at_once(self) -> None:
        """Our topics have changed."""
        self._schedule.at_once(trio.current_time())
        self._wake_up()

    def learned(self, peer: ID) -> None:
        """A peer has told what gossip has not brought: others may lack it, or know more."""
        self._schedule.spread(str(peer), trio.current_time())
        self._wake_up()

    def _wake_up(self) -> None:
        self._wake.set()
        self._wake = trio.Event()

    async def recent(self) -> None:
        """Return when what is known here is recent, or waiting for that has gone on long enough (see `Freshness`)."""
        while wait_ms := self._freshness.wait_ms(self._clock()):
            ended = self._ended
            with trio.move_on_after(wait_ms / 1000):
                await ended.wait()

    # ---- asking -------------------------------------------------------------------------------------------------

    async def _with_peer_quietly(self, peer: ID) -> None:
        async with self._limiter:
            try:
                await self.with_peer(peer)
            except OrchdError as error:
                log.info("repair with %s: %s", peer, error)
                if isinstance(error, PeerMisbehaved):
                    self._lied(peer)
                self._schedule.done(str(peer), trio.current_time(), found=False)

    async def with_peer(self, peer: ID) -> None:
        """Learn what a peer knows under shared topics, and tell it what it does not. Raises what asking raises."""
        keys = sorted(self._members.of(peer))
        if not keys or peer in self._busy:
            return
        self._busy.add(peer)
        try:
            await self._known.refresh()
            found = 0
            for key, parts in await self._differing(peer, keys[: messages.TOPICS_LIMIT]):
                found += await self._repair_topic(peer, key, parts)
        finally:
            self._busy.discard(peer)
        self._count("repairs")
        self._schedule.done(str(peer), trio.current_time(), found=bool(found))
        self._freshness.repaired(self._clock())
        self._ended.set()
        self._ended = trio.Event()
        self._repaired(peer)

    async def _differing(self, peer: ID, keys: Sequence[bytes]) -> list[tuple[bytes, tuple[Part, ...]]]:
        """Topics under which the two do not know the same, with the first answer; all are asked about at once."""
        sets = tuple(TopicParts(key, Reconciliation(self._ids(peer, key)).first()) for key in keys)
        answer: Reconciled = await self._ask(peer, Reconcile(sets=sets), Reconciled)
        return [(one.topic, one.parts) for one in answer.sets if one.parts and one.topic in keys]

    async def _repair_topic(self, peer: ID, key: bytes, parts: tuple[Part, ...]) -> int:
        """How many records were handed over, and kept if it was to us: who offers what nobody wants is asked seldom."""
        talk = Reconciliation(self._ids(peer, key))
        talk.first()
        question = talk.next(parts)
        while question:
            answer: Reconciled = await self._ask(peer, Reconcile(sets=(TopicParts(key, question),)), Reconciled)
            if [one.topic for one in answer.sets] != [key]:
                raise PeerMisbehaved(f"{peer} was asked about one topic and answered about others")
            question = talk.next(answer.sets[0].parts)
        need = [id for id in talk.need if id not in self._refused]
        given = self._given.setdefault(peer, Recent(GIVEN))
        have = [id for id in talk.have if id not in given]
        taken = await self._get(peer, key, need)
        await self._give(peer, key, have)
        return taken + len(have)

    async def _get(self, peer: ID, key: bytes, ids: Sequence[bytes]) -> int:
        """Ask for records; how many were kept. Those that do not come, or are not kept, are not asked for again."""
        taken = 0
        for batch in _batches(ids):
            left = set(batch)
            while left:
                answer: RecordsAre = await self._ask(peer, GetRecords(topics=(key,), ids=tuple(left)), RecordsAre)
                records = check(peer, answer.records)
                came = {record.digest for record in records}
                if not came:
                    break
                if not came <= left:
                    raise PeerMisbehaved(f"{peer} was asked for some records and gave others")
                taken += await self._news.take(peer, records, repair=True)
                left -= came
            await self._known.refresh()
            here = self._ids(peer, key)
            for id in batch:
                if id not in here:
                    self._refused.add(id, trio.current_time())
        self._count("repair_records_taken", taken)
        return taken

    async def _give(self, peer: ID, key: bytes, ids: Sequence[bytes]) -> None:
        names = self._members.visible(peer, [key])
        for batch in _batches(ids):
            envelopes = await trio.to_thread.run_sync(self._library.records, batch, names)
            await self._news.bring(peer, envelopes, repair=True)
            self._count("repair_records_given", len(envelopes))
            for id in batch:
                self._given[peer].add(id, trio.current_time())

    def _ids(self, peer: ID, key: bytes) -> Ids:
        return self._known.ids(self._name(peer, key))

    def _name(self, peer: ID, key: bytes) -> str:
        return next(iter(self._members.visible(peer, [key])), "")

    # ---- answers ------------------------------------------------------------------------------------------------

    async def answer(self, peer: ID, request: Reconcile) -> Reply:
        """Of topics that are not shared nothing is said. Raises `PeerMisbehaved`."""
        if len(request.sets) > 1 and any(len(one.parts) > 1 or not _is_sum(one.parts) for one in request.sets):
            raise PeerMisbehaved(f"{peer} asks about several topics at once, and for more than their fingerprints")
        if not self._shares.take(peer, trio.current_time()):
            return messages.Failed(reason=messages.BUSY)
        await self._known.refresh()
        names = self._members.visible(peer, [one.topic for one in request.sets])
        shared = {topic_key(name): name for name in names}
        answers = tuple(
            TopicParts(one.topic, respond(self._known.ids(shared[one.topic]), one.parts))
            for one in request.sets
            if one.topic in shared
        )
        self._count("repairs_answered")
        self._schedule.done(str(peer), trio.current_time(), found=any(one.parts for one in answers))
        return Reconciled(sets=answers)


def _is_sum(parts: Sequence[Part]) -> bool:
    return all(isinstance(part, Sum) for part in parts)


def _batches(ids: Sequence[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(ids), messages.RECORDS_LIMIT):
        yield list(ids[start : start + messages.RECORDS_LIMIT])
