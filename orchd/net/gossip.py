"""News under open topics over GossipSub, one pubsub topic `/orchd/1/NAME` for each: a message is one signed record.

The library's own limits are off, because they drop without a word (10 messages a second from one neighbour: 25 of 60
were lost at 20 a second); ours are in `policy/gossip.py`. Its validator decides whether a message goes on to others, so
ours takes the record there and then, and whatever reads the library's own queue throws it away. Version 1.1 of the
protocol alone: what 1.2 adds saves bytes of large messages and doubles the number of small ones.

Closed topics never come here: pubsub tells every connected peer what it is subscribed to, and meshes with anybody.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from contextlib import suppress
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service

from orchd.errors import OrchdError, SignatureInvalid
from orchd.net import hardening
from orchd.net.host import Host
from orchd.net.known import Known
from orchd.net.messages import TOPIC_NAME_LIMIT, TOPICS_LIMIT
from orchd.net.news import Passed
from orchd.net.policy.gossip import Gate, Message, Verdict
from orchd.net.policy.names import is_open
from orchd.records import verify_any
from orchd.records.ids import sha256

log = logging.getLogger(__name__)

PREFIX = "/orchd/1/"
PROTOCOL = TProtocol("/meshsub/1.1.0")
#: Neighbours in the mesh of one topic: wanted, at least, at most.
DEGREE, DEGREE_LOW, DEGREE_HIGH = 6, 4, 12
#: Between two looks at the mesh, in seconds; whoever is not in it hears of a message no later than that.
HEARTBEAT_S = 1
#: Records that wait to be kept, and that are kept at once. More than wait go no further here; repair brings them.
INBOX, AT_ONCE = 512, 64

Deliver = Callable[[Sequence[Passed]], Awaitable[None]]


class Gossip:
    """Of one life of the host. `deliver` keeps records; `lied` is called for neighbours who pass on what is forged,
    `flooded` for those who send far too much."""

    def __init__(
        self,
        host: Host,
        *,
        gate: Gate,
        known: Known,
        is_blocked: Callable[[str], bool],
        clock: Callable[[], int],
        count: Callable[[str], None],
        deliver: Deliver,
        lied: Callable[[ID], None],
        flooded: Callable[[ID], None],
    ) -> None:
        self._this_node = host.id
        self._gate, self._known, self._is_blocked = gate, known, is_blocked
        self._clock, self._count, self._deliver = clock, count, deliver
        self._lied, self._flooded = lied, flooded
        self._router = _router()
        self._pubsub = Pubsub(host.basic, self._router, max_subscriptions_per_peer=TOPICS_LIMIT)
        hardening.guard_pubsub(self._pubsub)
        hardening.bounded_topics(self._pubsub, self._router, _is_ours)
        self._limit_neighbours()
        self._into, self._inbox = trio.open_memory_channel[Passed](INBOX)
        self._ready = trio.Event()
        self._drains: trio.Nursery | None = None

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with (
                trio.open_nursery() as self._drains,
                background_trio_service(self._router),
                background_trio_service(self._pubsub),
            ):
                await self._pubsub.wait_until_ready()
                self._ready.set()
                await self._deliver_all()
        finally:
            self._pubsub.seen_messages.stop()

    async def join(self, name: str) -> None:
        """Hear and pass on what is told under a topic, if it is an open one."""
        if not is_open(name):
            return
        await self._ready.wait()
        self._pubsub.set_topic_validator(PREFIX + name, self._validate, False)
        subscription = await self._pubsub.subscribe(PREFIX + name)
        if self._drains is not None:
            self._drains.start_soon(_drain, subscription)

    async def leave(self, name: str) -> None:
        await self._ready.wait()
        await self._pubsub.unsubscribe(PREFIX + name)
        self._pubsub.remove_topic_validator(PREFIX + name)

    async def publish(self, topic: str, envelope: bytes) -> None:
        """Spread a record under an open topic."""
        self._gate.sent(topic, sha256(envelope), trio.current_time())
        self._count("gossip_published")
        await self._pubsub.publish(PREFIX + topic, envelope)

    def met(self, id: bytes) -> None:
        """A record has come, by gossip or otherwise."""
        self._gate.met(id, trio.current_time())

    def reaches(self, peer: ID, topics: Collection[str]) -> bool:
        """Whether what is published now gets to a peer under these topics, as far as they are open.

        It has subscribed, and somebody is in our mesh: what is published into an empty one is lost, because who joins
        it a moment later is not offered what was there before.
        """
        subscribed, mesh = self._pubsub.peer_topics, self._router.mesh
        names = [PREFIX + name for name in topics if is_open(name)]
        return peer in self._pubsub.peers and all(
            peer in subscribed.get(name, ()) and bool(mesh.get(name)) for name in names
        )

    # ---- taking -------------------------------------------------------------------------------------------------

    def _limit_neighbours(self) -> None:
        """Each message costs its neighbour before the library checks a signature."""
        push = self._pubsub.push_msg

        async def push_msg(msg_forwarder: ID, msg: Any) -> None:
            if msg_forwarder == self._this_node or self._may_come(msg_forwarder, msg):
                await push(msg_forwarder, msg)

        self._pubsub.push_msg = push_msg  # type: ignore[method-assign]

    def _may_come(self, neighbour: ID, message: Any) -> bool:
        if len(message.topicIDs) != 1:
            return False
        verdict = self._gate.message(_message(neighbour, message), len(message.data), trio.current_time())
        if verdict is not Verdict.PASS:
            self._count(f"gossip_{verdict}")
        if verdict is Verdict.NEIGHBOUR_LIMIT and self._gate.is_flood(neighbour, trio.current_time()):
            self._flooded(neighbour)
        return verdict is Verdict.PASS

    def _validate(self, neighbour: ID, message: Any) -> bool:
        """The library's validator: whether a message goes on. What it raises would end the service."""
        if neighbour == self._this_node:
            return True
        try:
            verdict = self._judge(neighbour, message)
        except Exception:
            log.exception("a message of %s", neighbour)
            return False
        self._count(f"gossip_{verdict}")
        return verdict in (Verdict.PASS, Verdict.AGAIN)

    def _judge(self, neighbour: ID, message: Any) -> Verdict:
        try:
            record = verify_any(message.data)
        except SignatureInvalid:
            self._lied(neighbour)
            return Verdict.MALFORMED
        except OrchdError as error:  # maybe of a kind that newer nodes know
            log.info("%s passes on what is no record: %s", neighbour, error)
            return Verdict.MALFORMED
        if self._is_blocked(record.author):
            return Verdict.BLOCKED
        told = _message(neighbour, message)
        verdict = self._gate.record(
            told,
            record.record,
            record.digest,
            known=record.digest in self._known,
            heard_of=self._known.heard_of(record.author),
            now=trio.current_time(),
            now_ms=self._clock(),
        )
        if verdict is Verdict.PASS:
            try:
                self._into.send_nowait(Passed(record, neighbour, told.topic))
            except trio.WouldBlock:
                self._count("gossip_overflow")
        return verdict

    async def _deliver_all(self) -> None:
        """What waits is kept together: that costs little more than one alone."""
        async for first in self._inbox:
            batch = [first]
            with suppress(trio.WouldBlock):
                while len(batch) < AT_ONCE:
                    batch.append(self._inbox.receive_nowait())
            try:
                await self._deliver(batch)
            except OrchdError as error:
                log.warning("%d records are not kept: %s", len(batch), error)


def _router() -> GossipSub:
    router = GossipSub(
        [PROTOCOL],
        DEGREE,
        DEGREE_LOW,
        DEGREE_HIGH,
        heartbeat_interval=HEARTBEAT_S,
        spam_protection_enabled=False,
        adaptive_gossip_enabled=False,
        eclipse_protection_enabled=False,  # wants three networks in each mesh, and never has them on a LAN
    )
    # All its weights are zero; who misbehaves is scored by us.
    router.scorer = None
    hardening.no_peer_exchange(router)
    return router


def _is_ours(topic: str) -> bool:
    return topic.startswith(PREFIX) and len(topic) <= len(PREFIX) + TOPIC_NAME_LIMIT


def _message(neighbour: ID, message: Any) -> Message:
    key: Hashable = neighbour
    return Message(message.topicIDs[0].removeprefix(PREFIX), key, sha256(message.data))


async def _drain(subscription: Any) -> None:
    """The library's queue of 32 keeps the first and drops the rest; ours has them all already."""
    async for _ in subscription:
        pass
