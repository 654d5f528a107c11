"""The signed records of one life of the host, put together: what is known, news by gossip and straight, and repair."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import trio
from libp2p.peer.id import ID

from orchd.net.context import Context
from orchd.net.gossip import Gossip
from orchd.net.host import Host
from orchd.net.known import Known
from orchd.net.members import Members
from orchd.net.messages import GetRecords, Hello, Push, Reconcile, Reply
from orchd.net.news import Ask, News
from orchd.net.policy.gossip import Gate
from orchd.net.policy.repair import Freshness, Schedule
from orchd.net.repair import Repair
from orchd.registry import told
from orchd.registry.registry import Registry

log = logging.getLogger(__name__)

#: The file in the data folder that tells when the last repair ended, and how often it is written, in milliseconds.
REPAIRED, REPAIRED_EVERY_MS = "repaired", 60_000


class Records:
    """`names` are the joined topics, by key. `prove` is called for peers that may show whose an adapter was, `lied` for
    those that passed on what is forged."""

    def __init__(
        self,
        host: Host,
        context: Context,
        members: Members[ID],
        names: Mapping[bytes, str],
        *,
        ask: Ask,
        spawn: Callable[..., None],
        prove: Callable[[ID], Awaitable[None]],
        lied: Callable[[ID], None],
        flooded: Callable[[ID], None],
    ) -> None:
        self._context, self._names, self._spawn, self._prove = context, names, spawn, prove
        self._saved_ms = 0
        known = Known(context.registry)
        self.gossip = Gossip(
            host,
            gate=Gate(),
            known=known,
            is_blocked=context.blocked.__contains__,
            clock=context.clock,
            count=context.count,
            deliver=lambda passed: self.news.hear(passed),
            lied=lied,
            flooded=flooded,
        )
        self.news = News(
            ask=ask,
            spawn=spawn,
            registry=context.registry,
            library=context.library,
            events=context.events,
            topics=names,
            members=members,
            known=known,
            mesh=self.gossip,
            prove=prove,
            learned=lambda peer: self.repair.learned(peer),
            rng=context.rng,
        )
        self.repair = Repair(
            ask=ask,
            spawn=spawn,
            known=known,
            library=context.library,
            members=members,
            news=self.news,
            schedule=Schedule(context.rng),
            freshness=context.freshness,
            clock=context.clock,
            count=context.count,
            repaired=self._repaired,
            lied=lied,
        )

    def start(self) -> None:
        self._spawn(self.gossip.run)
        self._spawn(self.repair.run)
        for name in self._names.values():
            self._spawn(self.gossip.join, name)

    async def greet(self, peer: ID) -> None:
        """Exchange topics with a peer, and be the one who begins to compare records. Raises what asking raises."""
        await self.news.greet(peer)
        self.repair.met(peer, ours=True)

    def lost(self, peer: ID) -> None:
        """The last connection to `peer` has ended."""
        self.news.lost(peer)
        self.repair.lost(peer)

    async def answer(self, peer: ID, request: Hello | Push | Reconcile | GetRecords) -> Reply:
        match request:
            case Hello():
                reply = await self.news.answer_hello(peer, request)
                self.repair.met(peer, ours=False)
                return reply
            case Push():
                return await self.news.answer_push(peer, request)
            case Reconcile():
                return await self.repair.answer(peer, request)
            case GetRecords():
                return await self.news.answer_records(peer, request)

    def _repaired(self, peer: ID) -> None:
        self._spawn(self._prove, peer)
        now = self._context.clock()
        if not 0 <= now - self._saved_ms < REPAIRED_EVERY_MS:
            self._saved_ms = now
            self._spawn(trio.to_thread.run_sync, _save, self._context.registry.data / REPAIRED, now)


def freshness(registry: Registry, now_ms: int) -> Freshness:
    """That of a node which starts. One that has no adapter has nothing that could have been revoked."""
    if not told.has_adapters(registry.index):
        return Freshness(now_ms)
    try:
        return Freshness(int((registry.data / REPAIRED).read_text(encoding="ascii")))
    except (OSError, ValueError):
        return Freshness(0)


def _save(path: Path, now_ms: int) -> None:
    """In a thread. If it is lost, the next start waits for a repair."""
    try:
        path.write_text(f"{now_ms}\n", encoding="ascii")
    except OSError as error:
        log.warning("%s: %s", path, error)
