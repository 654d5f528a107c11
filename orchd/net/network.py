"""The network as the daemon sees it. It survives its host: when that falls, it is started again with a pause."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.config import NetConfig
from orchd.errors import ListenFailed, NetworkDown, OrchdError
from orchd.identity import Identity
from orchd.net import fetch as fetching
from orchd.net import hardening, messages
from orchd.net.capture import Capture
from orchd.net.host import parse_peer_address, parse_peer_id, peer_id_of, run_host
from orchd.net.library import Library
from orchd.net.news import Events
from orchd.net.node import Context, Node, Topic, address_of
from orchd.records import Manifest, Record, Verified, parse_id
from orchd.records.ids import ADAPTER
from orchd.registry.admission import Check
from orchd.registry.news import Taken
from orchd.registry.registry import Admission, Registry
from orchd.registry.trust import BLOCK, FOLLOW

log = logging.getLogger(__name__)

#: The pause before a fallen host is started again, in seconds, doubling from the first to the second figure.
RESTART_PAUSE_S, RESTART_PAUSE_MAX_S = 0.5, 60.0
#: A record of this node that must be told now is given up on after this long, in seconds; peers pull it later.
PUSH_PATIENCE_S = 5.0
#: A host that ran this long was healthy: the pause starts over.
HEALTHY_S = 60.0

Progress = Callable[[int, int], None]
E = TypeVar("E", bound=Exception)


class TopicStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A joined topic. `members`: other nodes, connected now; `announced_at`: when the DHT took it last, in ms."""

    name: str
    members: int
    announced_at: int | None


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A connected peer. `topics` are those that it shares with this node."""

    peer: str
    address: str
    inbound: bool
    topics: tuple[str, ...]


class NetworkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`state` is running, starting, failed (with `error`) or off; `restarts` counts fallen hosts."""

    state: str
    peer_id: str
    addresses: tuple[str, ...]
    peers: int
    members: int
    topics: tuple[TopicStatus, ...]
    dht_peers: int
    restarts: int
    error: str | None


class Network:
    """`events` is told `net.peer.connected`, `net.peer.lost`, `topic.joined`, `adapter.announced`,
    `adapter.fetching`, `adapter.refused`, `adapter.revoked`, `adapter.attested`, `author.key_changed` and
    `author.equivocated`; `clock` gives milliseconds since 1970. `library` is what peers may see.

    Raises `AddressInvalid` for a bootstrap address that is none.
    """

    def __init__(
        self,
        identity: Identity,
        config: NetConfig,
        registry: Registry,
        events: Events,
        clock: Callable[[], int],
        rng: random.Random | None = None,
        *,
        library: Library | None = None,
    ) -> None:
        self._identity, self._config = identity, config
        for address in config.bootstrap:
            parse_peer_address(address)
        self._context = Context(
            registry=registry,
            library=library or Library(registry),
            events=events,
            clock=clock,
            rng=rng or random.Random(),
            bootstrap=config.bootstrap,
            announce_every_s=config.announce_interval_s,
            lookup_every_s=config.lookup_interval_s,
        )
        self._capture = Capture(Path(config.capture)) if config.capture else None
        self._node: Node | None = None
        self._error: str | None = None
        self._restarts = 0
        self._listen: tuple[str, ...] = config.listen
        #: Peers of the life before, under another key.
        self._sought: list[tuple[ID, Sequence[Multiaddr]]] = []
        #: One life of the host; cancelled to begin another.
        self._life = trio.CancelScope()
        self.peer_id = str(peer_id_of(identity.public_key))

    # ---- life ---------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Started when it listens; raises `ListenFailed` when it can't the first time."""
        shutil.rmtree(fetching.staging(self._context.registry.data), ignore_errors=True)
        if not self._config.enabled:
            task_status.started()
            await trio.sleep_forever()
        await self.trust_changed()
        pause = RESTART_PAUSE_S
        started = False

        def is_up() -> None:
            nonlocal started
            if not started:
                started = True
                task_status.started()

        while True:
            begun = trio.current_time()
            try:
                with trio.CancelScope() as self._life:
                    await self._live(is_up)
                if self._life.cancelled_caught:
                    continue
            except Exception as error:
                refusal = _within(error, OrchdError)
                if not started:
                    raise (refusal or error) from None
                self._fallen(refusal or error)
            if trio.current_time() - begun > HEALTHY_S:
                pause = RESTART_PAUSE_S
            await trio.sleep(pause * self._context.rng.uniform(0.8, 1.2))
            pause = min(pause * 2, RESTART_PAUSE_MAX_S)

    async def _live(self, is_up: Callable[[], None]) -> None:
        """One life of the host."""
        try:
            async with run_host(self._identity, self._listen, self._capture) as host, trio.open_nursery() as nursery:
                # A restart keeps the ports, so that peers find us where we were.
                self._listen = tuple(str(address) for address in host.basic.get_transport_addrs())
                node = Node(host, self._context, nursery)
                node.start()
                for peer, addresses in self._sought:
                    node.meet(peer, addresses)
                self._sought = []
                if self._config.mdns:
                    nursery.start_soon(_run_mdns, node, self._capture)
                self._node, self._error = node, None
                is_up()
                try:
                    await trio.sleep_forever()
                finally:  # first of all: whoever waits for a peer, shielded, stops waiting
                    await hardening.close_everything(host.basic)
        finally:
            self._node = None

    def _fallen(self, error: Exception) -> None:
        self._restarts += 1
        self._error = f"{type(error).__name__}: {error}"
        if isinstance(error, ListenFailed):
            self._listen = self._config.listen
        log.error("the network fell and is started again: %s", self._error, exc_info=error)

    # ---- topics and news ----------------------------------------------------------------------------------------

    async def join(self, name: str) -> None:
        """Take part in a topic. Raises `TopicInvalid`. Joining twice changes nothing."""
        key = messages.topic_key(name)
        if key in self._context.topics:
            return
        topic = self._context.topics[key] = Topic(name)
        self._context.events.emit("topic.joined", {"topic": name})
        if self._node is not None:
            self._node.spawn(self._node.join, topic)

    async def leave(self, name: str) -> None:
        """Take part no more. Peers that looked it up before may still come by until our record expires."""
        if self._context.topics.pop(messages.topic_key(name), None) and self._node is not None:
            self._node.spawn(self._node.leave, name)

    def topics(self) -> list[TopicStatus]:
        """The joined topics by name."""
        return [
            TopicStatus(name=topic.name, members=self._members(key), announced_at=topic.announced_ms)
            for key, topic in sorted(self._context.topics.items(), key=lambda item: item[1].name)
        ]

    def _members(self, key: bytes) -> int:
        return len(self._node.news.members([key])) if self._node is not None else 0

    async def tell(self, record: Verified[Record], *, wait: bool = False) -> Taken:
        """Keep a record of this node, as if a peer had told it, and pass it on; who comes later pulls it.

        One that was kept before is passed on again. `wait`: return when who is connected has it, or after a while.
        """
        registry = self._context.registry
        taken = await trio.to_thread.run_sync(registry.news.take, record, self.peer_id)
        items = taken.items or await trio.to_thread.run_sync(registry.news.item, record.id)
        if self._node is not None and items:
            if wait:
                with trio.move_on_after(PUSH_PATIENCE_S):
                    await self._node.news.push(items)
            else:
                self._node.spawn(self._node.news.push, items)
        for kind, data in taken.events:
            if kind != "adapter.announced":  # by others, that is
                self._context.events.emit(kind, data)
        return taken

    async def trust_changed(self) -> None:
        """Whom the user blocks or follows among the peers is read again; blocked ones are disconnected."""
        view = await trio.to_thread.run_sync(self._context.registry.people.view)
        for wanted, peers in ((BLOCK, self._context.blocked), (FOLLOW, self._context.followed)):
            peers.clear()
            peers.update(subject for subject, opinion in view.opinions.items() if opinion.verdict == wanted)
        if self._node is not None:
            self._node.drop_blocked()

    async def rekey(self, identity: Identity) -> None:
        """Go on under another key: the host is started again with it, and seeks the peers that it had, for whom it is
        a new peer."""
        self._identity = identity
        self.peer_id = str(peer_id_of(identity.public_key))
        if self._node is not None:
            host = self._node.host
            self._sought = [(peer, host.known_addresses(peer)) for peer in host.peers()]
            self._life.cancel()

    async def peek(self, adapter_id: str) -> Verified[Manifest]:
        """The signed manifest of an adapter, without its files. Raises `NetworkDown` or `NoProvider`."""
        return await fetching.peek(self._running(), self._context, parse_id(adapter_id, ADAPTER))

    async def fetch(
        self,
        adapter_id: str,
        *,
        peers: Sequence[str] = (),
        progress: Progress | None = None,
        checks: Sequence[Check] = (),
    ) -> Admission:
        """Bring an adapter here and through the door; `progress` is told bytes done and in all.

        With `peers` (peer ids) only those are asked; `checks` come after the door's own. Raises `NetworkDown`,
        `NoProvider`, `DigestMismatch` and the other refusals. An adapter that is here already is not fetched; of one
        with a damaged file, that file is.
        """
        adapter = parse_id(adapter_id, ADAPTER)
        registry = self._context.registry
        if await trio.to_thread.run_sync(registry.is_whole, adapter_id):
            return await trio.to_thread.run_sync(_already_here, registry, adapter_id)
        asked = [parse_peer_id(text) for text in peers]
        node = self._running()
        for peer in asked:
            node.forgive(peer)
        return await fetching.fetch(node, self._context, adapter, asked, progress or _no_progress, checks)

    # ---- peers --------------------------------------------------------------------------------------------------

    async def connect(self, address: str) -> str:
        """Connect to `/ip4/…/tcp/…/p2p/…`; the peer's id. Raises `AddressInvalid`, `PeerUnreachable`, `NetworkDown`."""
        peer, way = parse_peer_address(address)
        node = self._running()
        node.forgive(peer)
        await node.connect(peer, [way])
        return str(peer)

    def addresses(self) -> list[str]:
        """Where this node can be reached, with its peer id; empty while it is down."""
        return self._node.host.addresses() if self._node is not None else []

    def peers(self) -> list[PeerStatus]:
        """Connected peers."""
        node = self._node
        return [] if node is None else [_peer_status(node, peer) for peer in node.host.peers()]

    def status(self) -> NetworkStatus:
        node = self._node
        state = "off" if not self._config.enabled else "running" if node else "failed" if self._error else "starting"
        return NetworkStatus(
            state=state,
            peer_id=self.peer_id,
            addresses=tuple(self.addresses()),
            peers=len(node.host.peers()) if node else 0,
            members=len(node.news.members()) if node else 0,
            topics=tuple(self.topics()),
            dht_peers=node.host.dht.get_routing_table_size() if node else 0,
            restarts=self._restarts,
            error=self._error,
        )

    def stats(self) -> dict[str, int]:
        """Counters since the start: questions, bytes served and fetched, dials, restarts."""
        return {**self._context.counters, "restarts": self._restarts}

    def _running(self) -> Node:
        if self._node is None:
            why = f": {self._error}" if self._error else ""
            raise NetworkDown(f"the network is not running{why}")
        return self._node


async def _run_mdns(node: Node, capture: Capture | None) -> None:
    """Imported here: zeroconf is a thread and sockets that a node without mDNS does not need."""
    from orchd.net import mdns

    await mdns.run(node, capture)


def _peer_status(node: Node, peer: ID) -> PeerStatus:
    connection = next(iter(node.host.swarm.get_connections(peer)), None)
    return PeerStatus(
        peer=str(peer),
        address=address_of(connection),
        inbound=bool(connection and "inbound" in str(connection.direction).lower()),
        topics=tuple(node.news.topics_of(peer)),
    )


def _already_here(registry: Registry, id: str) -> Admission:
    return registry.admit(registry.manifest(id).envelope, {}, origin="fetched")


def _no_progress(done: int, total: int) -> None:
    pass


def _within(error: BaseException, wanted: type[E]) -> E | None:
    """The first error of a kind in a tree of exception groups."""
    if isinstance(error, wanted):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := _within(inner, wanted))), None)
    return None
