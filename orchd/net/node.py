"""One life of the host: its connections, topics, news and answers. `network.py` starts it again when it falls."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio
from libp2p.abc import INotifee
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.rcmgr import Direction
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.errors import OrchdError, PeerBlocked, PeerMisbehaved, PeerUnreachable
from orchd.net import exchange, hardening, messages, topics
from orchd.net.host import Host, parse_peer_address
from orchd.net.library import Library
from orchd.net.messages import PROTOCOL, Failed, GetManifest, GetRange, Hello, ManifestIs, Pull, Push, Reply, Request
from orchd.net.news import Events, News, tell
from orchd.records import Manifest, Verified, parse_id, verify
from orchd.records.ids import ADAPTER
from orchd.registry import revocation
from orchd.registry.registry import Registry

log = logging.getLogger(__name__)

#: Pull from every member this often, in seconds; every so many times from the beginning.
REPAIR_EVERY_S, REPAIR_ALL_EVERY = 60.0, 10
#: A bootstrap peer that can't be reached is tried again after so many seconds, doubling up to the second figure.
BOOTSTRAP_PAUSE_S, BOOTSTRAP_PAUSE_MAX_S = 1.0, 60.0
#: A member that can't be reached, and a peer that lied, are left alone for so many seconds.
UNREACHABLE_PAUSE_S, DISTRUST_S = 30.0, 600.0
#: Peers that we seek connections to; others may still come.
PEERS_SOUGHT = 100
#: Lookups and dials at once; files read for peers at once.
PARALLEL, READERS = 4, 4


@dataclass
class Topic:
    """A joined topic. `announced_ms`: when the DHT took it last, None if never."""

    name: str
    announced_ms: int | None = None


@dataclass(frozen=True)
class Context:
    """What outlives the host."""

    registry: Registry
    library: Library
    events: Events
    clock: Callable[[], int]
    rng: random.Random
    bootstrap: Sequence[str]
    announce_every_s: float
    lookup_every_s: float
    topics: dict[bytes, Topic] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    #: Peers (ids as text) that the user has blocked, and those that are asked before others.
    blocked: set[str] = field(default_factory=set)
    followed: set[str] = field(default_factory=set)

    def count(self, what: str, by: int = 1) -> None:
        self.counters[what] = self.counters.get(what, 0) + by


class Node:
    """Runs on one host. `run` returns only by cancellation or failure."""

    def __init__(self, host: Host, context: Context, nursery: trio.Nursery) -> None:
        self.host = host
        self._context = context
        self._nursery = nursery
        self._names: dict[bytes, str] = {key: topic.name for key, topic in context.topics.items()}
        self.news = News(
            ask=self._ask,
            spawn=self.spawn,
            registry=context.registry,
            library=context.library,
            events=context.events,
            topics=self._names,
            prove=self.prove,
        )
        self._server = exchange.Server(self)
        self._rounds = topics.Rounds(context.announce_every_s, context.lookup_every_s, context.rng)
        self._wake = trio.Event()
        self._lost = trio.Event()
        self._unreachable: dict[ID, float] = {}
        self._distrusted: dict[ID, float] = {}
        self._looking: set[str] = set()
        self._dials, self._queries = trio.CapacityLimiter(PARALLEL), trio.CapacityLimiter(PARALLEL)
        self._readers = trio.CapacityLimiter(READERS)

    def start(self) -> None:
        """Take questions, seek peers."""
        basic, swarm = self.host.basic, self.host.swarm
        basic.set_stream_handler(TProtocol(PROTOCOL), self._server.handle)
        swarm.register_notifee(_Connections(self))
        hardening.after_identify(basic, self._identified)
        for name in self._names.values():
            self._rounds.joined(name, trio.current_time())
        for text in self._context.bootstrap:
            self.spawn(self._keep_bootstrap, text)
        self.spawn(self._run_rounds)
        self.spawn(self._run_repair)

    def spawn(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run beside everything else; what it raises is logged."""
        self._nursery.start_soon(_guarded, function, arguments)

    # ---- connections --------------------------------------------------------------------------------------------

    async def connected(self, connection: Any) -> None:
        peer = connection.muxed_conn.peer_id
        if self._until(self._distrusted, peer) or self.is_blocked(peer):
            self.spawn(connection.close)
            return
        if len(self.host.swarm.get_connections(peer)) == 1:
            self._context.events.emit("net.peer.connected", {"peer": str(peer), "address": address_of(connection)})
        if connection.direction == Direction.OUTBOUND:
            self.spawn(self._greet, peer)
        self.wake()

    async def disconnected(self, connection: Any) -> None:
        peer = connection.muxed_conn.peer_id
        if self.host.connected(peer):
            return
        self.news.lost(peer)
        self._server.forget(peer)
        # Its next connection is to be identified again: it may speak other protocols then.
        self.host.basic.get_peerstore().clear_protocol_data(peer)
        self._context.events.emit("net.peer.lost", {"peer": str(peer)})
        self._lost.set()
        self._lost = trio.Event()

    async def _identified(self, peer: ID) -> None:
        self._rounds.new_peer(trio.current_time(), self.host.dht.get_routing_table_size())
        self.wake()

    async def _greet(self, peer: ID) -> None:
        try:
            await self.news.greet(peer)
        except OrchdError as error:
            log.info("%s is not one of us, or busy: %s", peer, error)

    async def connect(self, peer: ID, addresses: Sequence[Multiaddr]) -> None:
        """Reach a peer. Raises `PeerUnreachable` or `PeerBlocked`."""
        if self.is_blocked(peer):
            raise PeerBlocked(f"{peer} is blocked here")
        self._context.count("dials")
        await self.host.connect(peer, addresses)

    def meet(self, peer: ID, addresses: Sequence[Multiaddr]) -> None:
        """Somebody has been found: connect, in the background."""
        if peer != self.host.id and not self.host.connected(peer):
            self.spawn(self._meet, peer, addresses)

    async def _meet(self, peer: ID, addresses: Sequence[Multiaddr]) -> None:
        """Connect to somebody found under a topic, unless there is a reason not to."""
        async with self._dials:
            if self.host.connected(peer) or self.avoids(peer) or len(self.host.peers()) >= PEERS_SOUGHT:
                return
            try:
                await self.connect(peer, addresses)
            except PeerUnreachable as error:
                self._unreachable[peer] = trio.current_time() + UNREACHABLE_PAUSE_S
                log.info("%s", error)

    def avoids(self, peer: ID) -> bool:
        return self.is_blocked(peer) or self._until(self._unreachable, peer) or self._until(self._distrusted, peer)

    def is_blocked(self, peer: ID) -> bool:
        """Whether the user wants nothing to do with a peer."""
        return str(peer) in self._context.blocked

    def drop_blocked(self) -> None:
        """Connections that the user has just forbidden are closed."""
        for peer in self.host.peers():
            if self.is_blocked(peer):
                self.spawn(self.host.disconnect, peer)

    def _until(self, table: dict[ID, float], peer: ID) -> bool:
        """Whether a peer is in a table of deadlines; past ones are dropped."""
        if table.get(peer, float("inf")) <= trio.current_time():
            del table[peer]
        return peer in table

    def distrust(self, peer: ID) -> None:
        """Drop a peer that lied, and have nothing to do with it for a while."""
        self._distrusted[peer] = trio.current_time() + DISTRUST_S
        self.spawn(self.host.disconnect, peer)

    def forgive(self, peer: ID) -> None:
        """The user asks for this very peer."""
        self._distrusted.pop(peer, None)
        self._unreachable.pop(peer, None)

    async def _keep_bootstrap(self, text: str) -> None:
        """Stay connected to a configured peer."""
        peer, address = parse_peer_address(text)
        pause = BOOTSTRAP_PAUSE_S
        while peer != self.host.id:
            try:
                await self.connect(peer, [address])
            except (PeerUnreachable, PeerBlocked) as error:
                log.warning("%s", error)
                await trio.sleep(pause * self._context.rng.uniform(0.8, 1.2))
                pause = min(pause * 2, BOOTSTRAP_PAUSE_MAX_S)
                continue
            pause = BOOTSTRAP_PAUSE_S
            while self.host.connected(peer):
                await self._lost.wait()

    # ---- topics -------------------------------------------------------------------------------------------------

    async def join(self, topic: Topic) -> None:
        """Announce the topic, tell connected peers, take their news of it."""
        self._names[messages.topic_key(topic.name)] = topic.name
        self._rounds.joined(topic.name, trio.current_time())
        self.wake()
        await self._greet_everybody()

    async def leave(self, name: str) -> None:
        self._names.pop(messages.topic_key(name), None)
        self._rounds.left(name)
        await self._greet_everybody()

    async def _greet_everybody(self) -> None:
        async with trio.open_nursery() as nursery:
            for peer in self.host.peers():
                self.news.start_over(peer)
                nursery.start_soon(self._greet, peer)

    def wake(self) -> None:
        """Something may be due earlier than thought."""
        self._wake.set()
        self._wake = trio.Event()

    async def _run_rounds(self) -> None:
        while True:
            wake = self._wake
            if self.host.peers():
                now = trio.current_time()
                for name in self._rounds.to_announce(now):
                    self.spawn(self._announce, name)
                for name in self._rounds.to_look_up(now):
                    self.spawn(self._look_up, name)
                deadline = self._rounds.next_at()
            else:
                deadline = float("inf")
            with trio.CancelScope(deadline=deadline):
                await wake.wait()

    async def _announce(self, name: str) -> None:
        async with self._queries:
            taken = await topics.announce(self.host.dht, name)
        if not taken:
            self._rounds.retry_announce(name, trio.current_time())
        elif topic := self._context.topics.get(messages.topic_key(name)):
            topic.announced_ms = self._context.clock()

    async def _look_up(self, name: str) -> None:
        if name in self._looking:
            return
        self._looking.add(name)
        try:
            async with self._queries:
                found = await topics.lookup(self.host.dht, name)
        finally:
            self._looking.discard(name)
        for peer, addresses in found.items():
            self.meet(peer, addresses)

    # ---- repair -------------------------------------------------------------------------------------------------

    async def _run_repair(self) -> None:
        turn = 0
        while True:
            await trio.sleep(REPAIR_EVERY_S * self._context.rng.uniform(0.8, 1.2))
            turn += 1
            await _all(self._repair, self.host.peers(), turn % REPAIR_ALL_EVERY == 0)

    async def _repair(self, peer: ID, everything: bool) -> None:
        try:
            if self.news.knows(peer):
                await self.news.pull(peer, everything=everything)
                await self.prove(peer)
            elif PROTOCOL in self._protocols(peer):
                await self.news.greet(peer)
        except OrchdError as error:
            log.info("repair with %s: %s", peer, error)

    def _protocols(self, peer: ID) -> Sequence[str]:
        try:
            return list(self.host.basic.get_peerstore().get_protocols(peer))
        except Exception:
            return ()

    async def prove(self, peer: ID) -> None:
        """Ask for the manifests of revoked adapters that are in something here, to learn whose they are."""
        registry = self._context.registry
        for id in await trio.to_thread.run_sync(revocation.unproven, registry.index):
            try:
                manifest = await self.manifest_from(parse_id(id, ADAPTER), peer)
            except OrchdError as error:
                log.info("whose %s is: %s", id, error)
                continue
            for kind, data in (await trio.to_thread.run_sync(registry.news.prove, manifest)).events:
                tell(self._context.events, kind, data)

    async def prove_everywhere(self) -> None:
        """An adapter has come: it may contain one that was revoked before."""
        await _all(self.prove, self.news.members())

    async def manifest_from(self, adapter: bytes, peer: ID) -> Verified[Manifest]:
        """The manifest that a peer gives for an adapter's id. Raises `PeerMisbehaved` when it is another's."""
        answer = await self._ask(peer, GetManifest(adapter=adapter), ManifestIs)
        manifest = verify(answer.envelope, Manifest)
        if manifest.digest != adapter:
            raise PeerMisbehaved(f"{peer} answered with the manifest of another adapter")
        return manifest

    # ---- questions and answers ----------------------------------------------------------------------------------

    async def _ask(self, peer: ID, request: Request, wanted: type[Any]) -> Any:
        self._context.count("questions_asked")
        return await exchange.ask(self.host, peer, request, wanted)

    async def answer(self, peer: ID, request: Request) -> Reply:
        """What the exchange server answers."""
        self._context.count("questions_answered")
        match request:
            case Hello():
                return await self.news.answer_hello(peer, request)
            case Push():
                return await self.news.answer_push(peer, request)
            case Pull():
                return await self.news.answer_pull(request)
            case GetManifest(adapter=adapter):
                envelope = await self._read(self._context.library.manifest, adapter)
                return Failed(reason=messages.UNKNOWN) if envelope is None else ManifestIs(envelope=envelope)
            case GetRange():
                return await self._answer_range(request)

    async def _answer_range(self, request: GetRange) -> Reply:
        read = self._context.library.read
        data = await self._read(read, request.adapter, request.blob, request.offset, request.length)
        if data is None:
            return Failed(reason=messages.UNKNOWN)
        self._context.count("bytes_served", len(data))
        return messages.Range(data=data)

    async def _read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await trio.to_thread.run_sync(function, *arguments, limiter=self._readers)


class _Connections(INotifee):
    """Tells the node of connections; the library waits for what is done here."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def connected(self, network: Any, conn: Any) -> None:
        await self._node.connected(conn)

    async def disconnected(self, network: Any, conn: Any) -> None:
        await self._node.disconnected(conn)

    async def opened_stream(self, network: Any, stream: Any) -> None:
        pass

    async def closed_stream(self, network: Any, stream: Any) -> None:
        pass

    async def listen(self, network: Any, multiaddr: Any) -> None:
        pass

    async def listen_close(self, network: Any, multiaddr: Any) -> None:
        pass


def address_of(connection: Any) -> str:
    """The other end of a connection, as a multiaddr; empty when it is not known."""
    try:
        return str(connection.get_transport_addresses()[0])
    except Exception:
        return ""


async def _guarded(function: Callable[..., Any], arguments: Iterable[Any]) -> None:
    try:
        await function(*arguments)
    except Exception:
        log.exception("in the background: %s", getattr(function, "__name__", function))


async def _all(function: Callable[..., Any], items: Iterable[Any], *arguments: Any) -> None:
    """Call for every item, `PARALLEL` at once."""
    limiter = trio.CapacityLimiter(PARALLEL)

    async def one(item: Any) -> None:
        async with limiter:
            await function(item, *arguments)

    async with trio.open_nursery() as nursery:
        for item in list(items):
            nursery.start_soon(one, item)
