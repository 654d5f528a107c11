"""The network as the daemon sees it. It survives its host: when that falls, it is started again with a pause."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.config import NetConfig
from orchd.errors import AddressInvalid, ListenFailed, NetworkDown, NotBanned, OrchdError, PeerIsSelf
from orchd.identity import Identity
from orchd.net import doctor, hardening, messages, remembering
from orchd.net import fetch as fetching
from orchd.net.capture import Capture
from orchd.net.context import Context, Topic, address_of
from orchd.net.doctor import Check
from orchd.net.download import Progress, Transferred
from orchd.net.figures import BanStatus, NetworkStats, PeerStatus, bans_of, gauges, live_counters, peer_status
from orchd.net.host import ban_subject, parse_peer_address, parse_peer_id, peer_id_of, run_host
from orchd.net.library import Library
from orchd.net.news import Events
from orchd.net.node import Node
from orchd.net.partial import tidy
from orchd.net.policy.book import Banned, Book
from orchd.net.policy.names import INVITE_ADDRESSES, Kind, check_secret, kind_of
from orchd.net.policy.reach import is_relayed, why_not_a_place
from orchd.net.records import freshness
from orchd.net.upload import Transfers
from orchd.records import Manifest, Record, Verified, parse_id
from orchd.records.ids import ADAPTER
from orchd.registry import admission
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

E = TypeVar("E", bound=Exception)


class TopicStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A joined topic. `members`: other nodes, connected now; `announced_at`: when the DHT took it last, in ms."""

    name: str
    kind: Kind
    members: int
    announced_at: int | None


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
    bans: tuple[BanStatus, ...]


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
            freshness=freshness(registry, clock()),
            transfers=Transfers(config),
            book=remembering.load(registry.data),
            relays=config.relay,
            relay_rate=config.relay_limit * 1000,
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
        staging = fetching.staging(self._context.registry.data)
        await trio.to_thread.run_sync(tidy, staging, self._context.clock() / 1000)
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
                    node.company.meet(peer, addresses)
                self._sought = []
                nursery.start_soon(remembering.keep, self._context.registry.data, self._context.book)
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

    async def join(self, name: str, secret: bytes | None = None) -> None:
        """Take part in a topic; `secret` is a private one's. Raises `TopicInvalid`. Joining twice changes nothing."""
        key = messages.topic_key(name)
        if key in self._context.topics:
            return
        check_secret(name, secret)
        topic = self._context.topics[key] = Topic(name, secret=secret)
        self._context.events.emit("topic.joined", {"topic": name})
        if self._node is not None:
            self._node.spawn(self._node.join, topic)

    async def leave(self, name: str) -> None:
        """Take part no more. Peers that looked it up before may still come by until our record expires."""
        if self._context.topics.pop(messages.topic_key(name), None) is None:
            return
        self._context.events.emit("topic.left", {"topic": name})
        if self._node is not None:
            self._node.spawn(self._node.leave, name)

    def topics(self) -> list[TopicStatus]:
        """The joined topics by name."""
        return [
            TopicStatus(
                name=topic.name,
                kind=kind_of(topic.name),
                members=self.members([topic.name]),
                announced_at=topic.announced_ms,
            )
            for topic in sorted(self._context.topics.values(), key=lambda topic: topic.name)
        ]

    def members(self, names: Sequence[str]) -> int:
        """Other nodes that are connected under any of these topics, each counted once."""
        keys = list(map(messages.topic_key, names))
        return len(self._node.news.members(keys)) if self._node is not None else 0

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
                    await self._node.news.tell(items, straight=True)
            else:
                self._node.spawn(self._node.news.tell, items)
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
            self._node.company.drop_unwelcome()

    async def rekey(self, identity: Identity) -> None:
        """Go on under another key: the host is started again with it, and seeks the peers that it had, for whom it is
        a new peer."""
        self._identity = identity
        self.peer_id = str(peer_id_of(identity.public_key))
        if self._node is not None:
            host = self._node.host
            self._sought = [(peer, host.known_addresses(peer)) for peer in host.peers()]
            self._life.cancel()

    async def caught_up(self) -> None:
        """Before adapters are averaged or served here: return when what their authors have taken back is known.

        At once, unless this node takes part in topics and was away; then after the first repair with a member, or when
        waiting for one has gone on long enough (`policy/repair.py`, `Freshness`).
        """
        if self._node is not None and self._context.topics:
            await self._node.records.repair.recent()

    async def peek(self, adapter_id: str) -> Verified[Manifest]:
        """The signed manifest of an adapter, without its files. Raises `NetworkDown` or `NoProvider`."""
        return await fetching.peek(self._running(), self._context, parse_id(adapter_id, ADAPTER))

    async def fetch(
        self,
        adapter_id: str,
        *,
        peers: Sequence[str] = (),
        progress: Progress | None = None,
        checks: Sequence[admission.Check] = (),
    ) -> Admission:
        """Bring an adapter here and through the door; `progress` is told how far it is.

        With `peers` (peer ids) only those are asked; `checks` come after the door's own. Raises `NetworkDown`,
        `NoProvider`, `DigestMismatch` and the other refusals. An adapter that is here already is not fetched; of one
        with a damaged file, that file is.
        """
        adapter = parse_id(adapter_id, ADAPTER)
        registry = self._context.registry
        here, likely = await trio.to_thread.run_sync(fetching.look, registry, adapter_id, self._context.followed)
        if here is not None:
            return here
        asked = [parse_peer_id(text) for text in peers]
        node = self._running()
        for peer in asked:
            node.company.forgive(peer)
        return await fetching.fetch(node, self._context, adapter, asked, progress or _no_progress, checks, likely)

    # ---- peers --------------------------------------------------------------------------------------------------

    async def connect(self, address: str) -> str:
        """Connect to `/ip4/…/tcp/…/p2p/…`; the peer's id.

        Raises `AddressInvalid`, `PeerUnreachable`, `PeerBlocked`, `PeerIsSelf`, `NetworkDown`.
        """
        peer, way = parse_peer_address(address)
        node = self._running()
        node.company.forgive(peer)
        await node.company.connect_for_good(peer, [way])
        return str(peer)

    def way_to(self, address: str) -> str:
        """By which address the peer of this one is connected directly already, so that this one is not tried."""
        peer, _ = parse_peer_address(address)
        node = self._running()
        return address_of(node.host.connections(peer)[0]) if node.host.is_direct(peer) else ""

    def bannable(self, given: str) -> str:
        """What a ban is on, as it is kept. Raises `AddressInvalid` or `PeerIsSelf`."""
        subject = ban_subject(given)
        if subject == self.peer_id:
            raise PeerIsSelf(f"{subject} is this node", field="subject")
        if why := why_not_a_place(given):
            hint = "`orchctl net peers` shows the ids of peers, which can be banned wherever they are."
            raise AddressInvalid(f"{given} {why}", hint=hint, field="subject")
        return subject

    async def ban(self, subject: str, seconds: float | None = None, reason: str = "") -> BanStatus:
        """Have nothing to do with a peer (its id) or a place (an IP address) for so long, or until it is lifted.

        Raises `AddressInvalid` or `PeerIsSelf`.
        """
        subject, until = self.bannable(subject), None
        if seconds is not None:
            until = self._context.clock() + round(seconds * 1000)
        await self._change_book(lambda book: book.ban(Banned(subject=subject, until_ms=until, reason=reason)))
        self._context.events.emit("net.peer.banned", {"subject": subject, "reason": reason, "seconds": seconds})
        if self._node is not None:
            self._node.company.drop_unwelcome()
        return BanStatus(subject=subject, until_ms=until, reason=reason, by_user=True)

    async def unban(self, subject: str) -> str:
        """Lift a ban, whoever made it; what it was on. Raises `NotBanned` or `AddressInvalid`."""
        subject = ban_subject(subject)
        if subject not in {ban.subject for ban in self.bans()}:
            raise NotBanned(f"{subject} is not banned", field="subject")
        self._context.scores.forgive(subject)
        await self._change_book(lambda book: book.lift(subject))
        return subject

    def bans(self) -> list[BanStatus]:
        """Those in force, the user's first."""
        return bans_of(self._context)

    async def remember(self, addresses: Sequence[str]) -> None:
        """Addresses that the user was given, as with an invitation: tried now, and at each start until one works.

        Raises `AddressInvalid`.
        """
        ways: dict[ID, list[Multiaddr]] = {}
        for peer, way in map(parse_peer_address, addresses):
            ways.setdefault(peer, []).append(way)
        others = {peer: found for peer, found in ways.items() if str(peer) != self.peer_id}

        def note(book: Book) -> None:
            for peer, found in others.items():
                book.told(str(peer), tuple(map(str, found)))

        await self._change_book(note)
        for peer, found in others.items():
            if self._node is not None:
                self._node.company.meet(peer, found)

    async def _change_book(self, change: Callable[[Book], object]) -> None:
        """What the user does is on disk when it is done."""
        book = self._context.book
        change(book)
        await trio.to_thread.run_sync(remembering.save, self._context.registry.data, book)

    async def examine(self) -> list[Check]:
        """Each way in and out tried now, and what to do where one is shut. Takes as long as the slowest dial."""
        return await doctor.examine(self._node, self._context, self._config, self._error)

    def invite_addresses(self) -> tuple[str, ...]:
        """For an invitation: of this node, and of the peers in the settings."""
        mine = self.addresses()
        direct, relayed = [one for one in mine if not is_relayed(one)], [one for one in mine if is_relayed(one)]
        chosen = (*direct[: INVITE_ADDRESSES - 2 - len(relayed[:2])], *relayed[:2], *self._config.bootstrap)
        return tuple(dict.fromkeys(chosen))[:INVITE_ADDRESSES]

    def addresses(self) -> list[str]:
        """Where this node can be reached, with its peer id; empty while it is down."""
        return self._node.host.addresses() if self._node is not None else []

    def peers(self) -> list[PeerStatus]:
        """Connected peers."""
        node = self._node
        return [] if node is None else [peer_status(self._context, node, peer) for peer in node.host.peers()]

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
            bans=tuple(self.bans()),
        )

    def stats(self) -> NetworkStats:
        """What was counted since the start, and how much there is of what now."""
        counters = {**live_counters(self._context, self._node), "restarts": self._restarts}
        return NetworkStats(counters=dict(sorted(counters.items())), gauges=gauges(self._context, self._node))

    def _running(self) -> Node:
        if not self._config.enabled:
            hint = "Set net.enabled to true in the settings (docs/settings.md) and start the daemon again."
            raise NetworkDown("the network is off: net.enabled is false", hint=hint)
        if self._node is None:
            why = f": {self._error}" if self._error else ""
            raise NetworkDown(f"the network is not running{why}")
        return self._node


async def _run_mdns(node: Node, capture: Capture | None) -> None:
    """Imported here: zeroconf is a thread and sockets that a node without mDNS does not need."""
    from orchd.net import mdns

    await mdns.run(node, capture)


def _no_progress(far: Transferred) -> None:
    pass


def _within(error: BaseException, wanted: type[E]) -> E | None:
    """The first error of a kind in a tree of exception groups."""
    if isinstance(error, wanted):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := _within(inner, wanted))), None)
    return None
