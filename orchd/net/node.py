"""One life of the host: its connections, topics, news and answers. `network.py` starts it again when it falls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import trio
from libp2p.abc import INotifee
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.rcmgr import Direction
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.errors import OrchdError, PeerMisbehaved
from orchd.net import asking, exchange, hardening, messages, topics
from orchd.net.bulk import host_of
from orchd.net.bulk_server import BulkServer
from orchd.net.company import Company
from orchd.net.context import Context, Topic, address_of
from orchd.net.host import Host, is_through_relay
from orchd.net.members import Members
from orchd.net.messages import (
    PROTOCOL,
    Failed,
    GetManifest,
    GetRange,
    GetRecords,
    Hello,
    ManifestIs,
    OpenBulk,
    Push,
    Reconcile,
    Reply,
    Request,
)
from orchd.net.news import tell
from orchd.net.policy.names import Kind, kind_of
from orchd.net.policy.reach import is_relayed
from orchd.net.policy.rounds import ASIDE, SERVERS, UPKEEP_ASIDE, Rounds, aside
from orchd.net.policy.scores import Offence
from orchd.net.policy.seeking import is_enough
from orchd.net.punch import Punch
from orchd.net.records import Records
from orchd.net.relay import Relay
from orchd.net.relayed import Relayed
from orchd.net.upload import Upload, Uploads
from orchd.records import Manifest, Verified, parse_id, verify
from orchd.records.ids import ADAPTER

log = logging.getLogger(__name__)

#: Connected peers with whom a greeting did not come about are greeted again this often, in seconds.
GREET_AGAIN_S = 20.0
#: Lookups at once; files read for peers at once.
PARALLEL, READERS = 4, 4


class Node:
    """Runs on one host. `run` returns only by cancellation or failure."""

    def __init__(self, host: Host, context: Context, nursery: trio.Nursery) -> None:
        self.host = host
        self.begun = trio.current_time()
        self._context = context
        self._nursery = nursery
        self._names: dict[bytes, str] = {key: topic.name for key, topic in context.topics.items()}
        self.company = Company(host, context, self.spawn)
        self.members = Members(host.id, self._names, self._secret, self.company.is_near, context.clock)
        self.records = Records(
            host,
            context,
            self.members,
            self._names,
            ask=self._ask,
            spawn=self.spawn,
            prove=self.prove,
            lied=self.distrust,
            flooded=self.flooded,
        )
        self.news = self.records.news
        self.relay = Relay(host, context, self._shares, self.company.place_of)
        self.relayed = Relayed(host, context, self.company, self._is_trusted, self._moved)
        self._punch = Punch(host, context)
        self._server = exchange.Server(self, host.idle)
        self._rounds = Rounds(context.announce_every_s, context.lookup_every_s, context.rng)
        self._wake = trio.Event()
        self._looking: set[str] = set()
        #: Connected peers that our last greeting has not reached: what they know of our topics is old.
        self._ungreeted: set[ID] = set()
        #: Why there is no mDNS, if there should be.
        self.mdns_failure: str | None = None
        self._queries = trio.CapacityLimiter(PARALLEL)
        self._readers = trio.CapacityLimiter(READERS)
        self._uploads = Uploads(context.library.read, context.transfers, self._readers, context.count)
        hosts = [host_of(str(address)) for address in host.basic.get_transport_addrs()]
        self._bulk = BulkServer(
            self._uploads, [text for text in hosts if text], context.transfers.bulk_port, self.spawn
        )

    def start(self) -> None:
        """Take questions, seek peers."""
        basic, swarm = self.host.basic, self.host.swarm
        basic.set_stream_handler(TProtocol(PROTOCOL), self._server.handle)
        swarm.register_notifee(_Connections(self))
        hardening.after_identify(basic, self._identified)
        if self._context.transfers.bulk:
            self._bulk.check_port()
        for name in self._names.values():
            self._announce_from_now(name)
        self.company.start()
        self.relay.start()
        self.relayed.start()
        self._punch.start()
        self.spawn(self.relayed.run)
        self.spawn(self._run_rounds)
        self.spawn(self._run_greetings)
        self.records.start()

    def spawn(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run beside everything else; what it raises is logged."""
        self._nursery.start_soon(_guarded, function, arguments)

    # ---- connections --------------------------------------------------------------------------------------------

    async def connected(self, connection: Any) -> None:
        peer = connection.muxed_conn.peer_id
        if self.company.is_unwelcome(peer):
            self.spawn(connection.close)
            return
        if not address_of(connection):  # reset as it was made: there is no saying where, or whether, the peer is
            self.spawn(hardening.drop_connection, connection)
            return
        if len(self.host.swarm.get_connections(peer)) == 1:
            self._context.events.emit("net.peer.connected", {"peer": str(peer), "address": address_of(connection)})
        self.company.came(connection)
        self.company.make_room(self._is_wanted)
        if is_through_relay(connection):
            if connection.direction == Direction.INBOUND:
                self.spawn(self._punch.upgrade, connection)
        elif any(map(is_through_relay, self.host.connections(peer))):
            self.spawn(self._punch.retire, peer)
        if connection.direction == Direction.OUTBOUND:
            self.spawn(self._greet, peer)
        self.wake()

    async def disconnected(self, connection: Any) -> None:
        peer = connection.muxed_conn.peer_id
        self.company.lost(connection)
        if not self.host.is_direct(peer):
            self.relay.lost(peer)
            self.relayed.lost(peer)
        if self.host.connected(peer):
            return
        if self._shares(peer):
            self._meet_again(connection, peer)
        self.records.lost(peer)
        self._ungreeted.discard(peer)
        self._server.forget(peer)
        # Its next connection is to be identified again: it may speak other protocols then.
        self.host.basic.get_peerstore().clear_protocol_data(peer)
        self._context.events.emit("net.peer.lost", {"peer": str(peer)})

    def _meet_again(self, connection: Any, peer: ID) -> None:
        """Connections through relays end with their hour or their share, and holes close: a member is sought again."""
        ways = [one for one in self.host.known_addresses(peer) if is_relayed(str(one))]
        if is_through_relay(connection):
            ways.append(Multiaddr(address_of(connection)))
        if ways:
            self.spawn(self.company.meet_later, peer, [*self.host.known_addresses(peer), *ways])

    async def _identified(self, peer: ID) -> None:
        self._rounds.new_peer(trio.current_time(), self.host.dht.get_routing_table_size())
        self.wake()
        self.relayed.wake()
        self._punch.identified(peer)

    async def _greet(self, peer: ID) -> None:
        told = frozenset(self._names)
        try:
            await self.records.greet(peer)
        except OrchdError as error:
            log.info("%s is not one of us, or busy: %s", peer, error)
            self._ungreeted.add(peer)
        else:
            if told == self._names.keys():  # else a later greeting, which may have failed, says what counts
                self._ungreeted.discard(peer)
            self.company.reached(peer)

    def _shares(self, peer: ID) -> bool:
        return bool(self.members.of(peer))

    def _is_trusted(self, peer: ID) -> bool:
        return self._shares(peer) or any(text.endswith(f"/p2p/{peer}") for text in self._context.bootstrap)

    def _is_wanted(self, peer: ID) -> bool:
        """Whether a connection is kept when there are many."""
        return self._is_trusted(peer) or self.relay.slots.has(peer) or self.relayed.has(peer)

    def _moved(self) -> None:
        """This node has other addresses: who looks it up has to find those."""
        self._rounds.moved(trio.current_time())
        self.wake()

    def _secret(self, key: bytes) -> bytes | None:
        topic = self._context.topics.get(key)
        return topic.secret if topic else None

    def distrust(self, peer: ID) -> None:
        """A peer gave other bytes than those that were signed."""
        self.company.blame(peer, Offence.LIED, "it gave what its author did not sign")

    # ---- topics -------------------------------------------------------------------------------------------------

    async def join(self, topic: Topic) -> None:
        """Announce the topic, tell connected peers, take their news of it."""
        self._names[messages.topic_key(topic.name)] = topic.name
        self.spawn(self.records.gossip.join, topic.name)
        self._announce_from_now(topic.name)
        self.wake()
        await self._greet_everybody()

    def _announce_from_now(self, name: str) -> None:
        if kind_of(name) is not Kind.LAN:  # that one never goes on the DHT
            self._rounds.joined(name, trio.current_time())

    async def leave(self, name: str) -> None:
        self._names.pop(messages.topic_key(name), None)
        self._rounds.left(name)
        self.spawn(self.records.gossip.leave, name)
        await self._greet_everybody()

    async def _greet_everybody(self) -> None:
        async with trio.open_nursery() as nursery:
            for peer in self.host.peers():
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
                    self.spawn(self._look_up, name, self._rounds.servers(name))
                deadline = self._rounds.next_at()
            else:
                deadline = float("inf")
            with trio.CancelScope(deadline=deadline):
                await wake.wait()

    async def _announce(self, name: str) -> None:
        topic = self._context.topics.get(messages.topic_key(name))
        again = topic is not None and topic.announced_ms is not None
        async with self._queries:
            aside = self._aside(UPKEEP_ASIDE if again else ASIDE)
            taken = await topics.announce(self.host.dht, name, aside, again=again)
        self._context.count("announcements" if taken else "announcements_failed")
        if not taken:
            self._rounds.retry_announce(name, trio.current_time())
        elif topic is not None:
            topic.announced_ms = self._context.clock()

    async def _look_up(self, name: str, servers: int) -> None:
        if name in self._looking:
            return
        self._looking.add(name)
        try:
            async with self._queries:
                few = servers < SERVERS
                found = await topics.lookup(self.host.dht, name, servers, self._aside(UPKEEP_ASIDE if few else ASIDE))
        finally:
            self._looking.discard(name)
        self._context.count("lookups")
        self._context.count("lookups_found", len(found))
        members = self.news.members([messages.topic_key(name)])
        self.company.meet_some(found, members)
        if is_enough(len(members)):
            self._rounds.enough(name, trio.current_time())

    def _aside(self, most: int) -> list[ID]:
        return aside(self.host.peers(), self.host.dht.get_routing_table_size(), self._context.rng, most)

    # ---- greetings, proofs --------------------------------------------------------------------------------------

    async def _run_greetings(self) -> None:
        """Peers that were busy when we met, or when our topics changed, are greeted again.

        Also those of whom no protocol is known: of two nodes that dial each other at once, each may lose identify.
        """
        while True:
            await trio.sleep(GREET_AGAIN_S * self._context.rng.uniform(0.8, 1.2))
            protocols = {peer: self.host.protocols(peer) for peer in self.host.peers()}
            speakers = [peer for peer, known in protocols.items() if not known or PROTOCOL in known]
            await _all(self._greet, [peer for peer in speakers if peer in self._ungreeted or not self.news.knows(peer)])

    async def prove(self, peer: ID) -> None:
        """Ask for the manifests of revoked adapters that are in something here, to learn whose they are."""
        registry = self._context.registry
        for id in await trio.to_thread.run_sync(registry.people.unproven):
            try:
                manifest = await self.manifest_from(parse_id(id, ADAPTER), peer)
            except OrchdError as error:
                log.info("whose %s is: %s", id, error)
                continue
            for kind, data in (await trio.to_thread.run_sync(registry.news.prove, manifest)).events:
                tell(self._context.events, kind, data)

    async def prove_everywhere(self) -> None:
        """Of all members."""
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
        return await asking.ask(self.host, peer, request, wanted)

    async def answer(self, peer: ID, request: Request) -> Reply | Upload:
        """What the exchange server answers."""
        self._context.count("questions_answered")
        match request:
            case Hello() | Push() | Reconcile() | GetRecords():
                return await self.records.answer(peer, request)
            case GetManifest() | GetRange() | OpenBulk() if not await self.may_have(peer, request.adapter):
                return Failed(reason=messages.UNKNOWN)
            case GetManifest(adapter=adapter):
                await self.records.repair.recent()  # nothing is served that may have been revoked while we were away
                envelope = await self._read(self._context.library.manifest, adapter)
                return Failed(reason=messages.UNKNOWN) if envelope is None else ManifestIs(envelope=envelope)
            case GetRange():
                await self.records.repair.recent()
                return self._uploads.answer(peer, request)
            case OpenBulk():
                await self.records.repair.recent()
                bulk = self.bulk_host(peer)
                return Failed(reason=messages.UNKNOWN) if bulk is None else await self._bulk.answer(peer, bulk, request)

    def bulk_host(self, peer: ID) -> str | None:
        """The address of a peer that is connected directly, None when bytes are to stay in libp2p."""
        connection = next(iter(self.host.connections(peer)), None)
        return host_of(address_of(connection)) if self._context.transfers.bulk else None

    def misbehaved(self, peer: ID, error: PeerMisbehaved) -> None:
        self.company.blame(peer, Offence.MALFORMED, error.message)

    def flooded(self, peer: ID) -> None:
        self.company.blame(peer, Offence.FLOODED, "it goes on asking after it was told to wait")

    async def may_have(self, peer: ID, adapter: bytes) -> bool:
        """Whether an adapter was announced under a topic that `peer` may see."""
        library = self._context.library
        names = library.open_topics(adapter)
        if names is None:
            names = await self._read(library.announced_under, adapter)
        return self.members.may_see(peer, names)

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
