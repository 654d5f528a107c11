"""Repair: a node that was off, or whose news got lost, learns what others know, and tells what they don't.

With each member in turn the ids of records under shared topics are compared (`policy/repair.py`: a few bytes when both
know the same), and what either lacks is handed over. It is due when we have dialled a member, when topics change, every
one to ten minutes, and at once with a few others when a peer has told something new: so news that gossip lost spreads
from node to node all the same. It serves both sides, whoever begins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio
from libp2p.peer.id import ID

from orchd.errors import OrchdError, PeerMisbehaved
from orchd.net.known import Known
from orchd.net.library import Library
from orchd.net.members import Members
from orchd.net.messages import Failed, Reconcile, Reconciled, RecordsAre, Reply, topic_key
from orchd.net.news import Ask as AskPeer
from orchd.net.news import News, check
from orchd.net.policy.dealing import Ask, Dealings, Give, Outcome, Step, Take, Talk, check_question
from orchd.net.policy.repair import Freshness, Ids, Schedule

log = logging.getLogger(__name__)

#: Repairs that this node begins at once.
PARALLEL = 4


class Repair:
    """Of one life of the host. `clock` gives milliseconds since 1970; `repaired` is called after each one that came to
    its end with a member."""

    def __init__(
        self,
        *,
        ask: AskPeer,
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
        self._dealings: Dealings[ID] = Dealings(self._ids, check)
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
        """A peer is connected, and its topics are known; `ours` when we have dialled, and so begin.

        A node that was away does not wait for others to begin. With a peer that shares no topic there is nothing to do.
        """
        topics = self._members.of(peer)
        if not topics:
            self._schedule.lost(str(peer))
            return
        self._peers[str(peer)] = peer
        away = self._freshness.wait_ms(self._clock()) > 0
        self._schedule.met(str(peer), trio.current_time(), ours=ours or away, topics=topics)
        self._wake_up()

    def lost(self, peer: ID) -> None:
        """The last connection has ended."""
        self._schedule.lost(str(peer))
        self._peers.pop(str(peer), None)
        self._dealings.lost(peer)

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
            outcome = await self._drive(peer, self._dealings.talk(peer, keys, trio.current_time()))
        finally:
            self._busy.discard(peer)
        self._count("repairs")
        self._count("repair_records_taken", outcome.taken)
        self._schedule.done(str(peer), trio.current_time(), found=bool(outcome.taken + outcome.given))
        self._freshness.repaired(self._clock())
        self._ended.set()
        self._ended = trio.Event()
        self._repaired(peer)

    async def _drive(self, peer: ID, talk: Talk) -> Outcome:
        """To its end. Raises what asking raises."""
        step = next(talk)
        try:
            while True:
                step = talk.send(await self._do(peer, step))
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome

    async def _do(self, peer: ID, step: Step) -> Any:
        match step:
            case Ask(request):
                return await self._ask(peer, request, Reconciled if isinstance(request, Reconcile) else RecordsAre)
            case Take(found):
                taken = await self._news.take(peer, found, repair=True)
                await self._known.refresh()
                return taken
            case Give(topic, ids):
                names = self._members.visible(peer, [topic])
                envelopes = await trio.to_thread.run_sync(self._library.records, ids, names)
                await self._news.bring(peer, envelopes, repair=True)
                self._count("repair_records_given", len(envelopes))
                return len(envelopes)

    def _ids(self, peer: ID, key: bytes) -> Ids:
        return self._known.ids(self._name(peer, key))

    def _name(self, peer: ID, key: bytes) -> str:
        return next(iter(self._members.visible(peer, [key])), "")

    # ---- answers ------------------------------------------------------------------------------------------------

    async def answer(self, peer: ID, request: Reconcile) -> Reply:
        """Of topics that are not shared nothing is said. Raises `PeerMisbehaved`."""
        check_question(peer, request)
        await self._known.refresh()
        names = self._members.visible(peer, [one.topic for one in request.sets])
        shared = {topic_key(name): self._known.ids(name) for name in names}
        answer = self._dealings.answer(peer, request, shared, trio.current_time())
        if isinstance(answer, Failed):
            return answer
        self._count("repairs_answered")
        self._schedule.done(str(peer), trio.current_time(), found=any(one.parts for one in answer.sets))
        return answer
