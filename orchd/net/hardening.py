"""Corrections to libp2p 0.8.1, one function each, so that each can be dropped when upstream mends it.

Every function names what was seen without it (the numbers are those of our measurements of 0.8.1) and has a test in
`tests/net/test_hardening.py` that shows the failure without it and its absence with it. A *correction* replaces
attributes of library modules or classes for the whole process: `harden()` applies them all, once, before a host is
made; more of them are in `bounds.py`, `quiet.py`, `retries.py`, `said.py` and `windows.py`. The remaining functions
correct one host, or are arguments for making one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_key_pair
from libp2p.custom_types import TMuxerOptions, TProtocol, TSecurityOptions
from libp2p.host import ping as ping_module
from libp2p.host.basic_host import BasicHost
from libp2p.io import msgio
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from libp2p.io.trio import TrioTCPStream
from libp2p.kad_dht import peer_routing, provider_store
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.network import swarm as swarm_module
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub import pubsub as pubsub_module
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux import yamux as yamux_module
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.utils import varint as varint_module

log = logging.getLogger(__name__)

#: A frame that can't be handed to the socket within this time breaks the connection, in seconds.
WRITE_STALL_S = 10.0
#: Providers that our servers keep for one key, and for how long, in seconds.
PROVIDERS_PER_KEY = 1000
PROVIDER_EXPIRY_S = 3600
#: A DHT server that does not answer within this time is passed over, in seconds.
DHT_QUERY_TIMEOUT_S = 3
#: Inbound DHT streams at once: in all, from one peer, and how long each may stay, in seconds.
DHT_STREAMS, DHT_STREAMS_PER_PEER, DHT_STREAM_S = 256, 16, 30.0
#: Inbound streams of all protocols that one peer may hold open, and how long one may outlast its handler, in seconds.
STREAMS_PER_PEER, LINGER_S = 64, 10.0

#: Bytes that are read of a socket at once, though fewer are asked for.
READ_AHEAD = 64 << 10
#: Gossip messages that may wait for one neighbour.
GOSSIP_QUEUE = 256

#: (module or class, attribute, what it becomes)
Replacement = tuple[Any, str, Any]
Correction = Callable[[], list[Replacement]]
CORRECTIONS: list[Correction] = []
_as_shipped: dict[tuple[int, str], Replacement] = {}
_dropped: set[Correction] = set()


def harden() -> None:
    """Apply every correction to the library in this process. Doing it again changes nothing."""
    from orchd.net import bounds, quiet, retries, said, windows  # noqa: F401 (each adds its own; they import this file)

    for one in CORRECTIONS:
        if one not in _dropped:
            _apply(one)


@contextmanager
def without(*dropped: Correction) -> Iterator[None]:
    """The hardened library less some corrections, inside the block: for the tests that show why each is there."""
    harden()
    _dropped.update(dropped)
    for one in dropped:
        for owner, name, _ in one():
            setattr(owner, name, _as_shipped[id(owner), name][2])
    try:
        yield
    finally:
        _dropped.difference_update(dropped)
        harden()


def _apply(one: Correction) -> None:
    for owner, name, new in one():
        _as_shipped.setdefault((id(owner), name), (owner, name, getattr(owner, name)))
        setattr(owner, name, new)


def correction(function: Correction) -> Correction:
    """One that `harden` applies."""
    CORRECTIONS.append(function)
    return function


# ---- fact 1: one malformed message ends the process ----------------------------------------------------------


_stock_stream_handler = BasicHost._swarm_stream_handler


@correction
def guarded_stream_handlers() -> list[Replacement]:
    """An exception that leaves a stream handler costs its stream, not the host; and a stream ends with its handler.

    Seen: one frame of garbage on /meshsub/1.1.0, or any handler that raises, ended `host.run()` with an
    ExceptionGroup. Pubsub and identify leave streams half open, each one for as long as its connection lasts: 20 of 20
    that a peer opened and ended. A peer also gets at most `STREAMS_PER_PEER` inbound streams at once. Related upstream:
    #417, #1120.
    """
    return [(BasicHost, "_swarm_stream_handler", _guarded_stream_handler)]


async def _guarded_stream_handler(self: BasicHost, stream: Any) -> None:
    peer = stream.muxed_conn.peer_id
    held: dict[ID, int] = self.__dict__.setdefault("orchd_inbound_streams", {})
    if held.get(peer, 0) >= STREAMS_PER_PEER:
        await stream.reset()
        return
    held[peer] = held.get(peer, 0) + 1
    try:
        await _stock_stream_handler(self, stream)
        await _end_with_its_handler(stream)
    except Exception as error:
        log.debug("stream %s of %s: %r", stream.get_protocol(), peer, error)
        await stream.reset()
    finally:
        held[peer] -= 1
        if not held[peer]:
            del held[peer]


async def _end_with_its_handler(stream: Any) -> None:
    """Close it, and throw away what still comes until the peer has closed it, too. A reset could overtake an answer."""
    with trio.move_on_after(LINGER_S):
        try:
            await stream.close()
            while await stream.read(1 << 16):
                pass
        except StreamEOF:
            return
    await stream.reset()


def guard_pubsub(pubsub: Any) -> None:
    """A pubsub message that can't be handled is dropped.

    Seen: a message whose `from_id` holds no key and whose `key` is garbage, and a synchronous topic validator that
    raises, each ended the pubsub service and with it the host. Upstream: #1118 (contained for async ones only). A
    frame of garbage is caught by `guarded_stream_handlers`.
    """
    push_message = pubsub.push_msg

    async def push_msg(msg_forwarder: ID, msg: Any) -> None:
        try:
            await push_message(msg_forwarder, msg)
        except Exception as error:
            log.debug("pubsub message from %s: %r", msg_forwarder, error)

    pubsub.push_msg = push_msg


@correction
def roomy_queues() -> list[Replacement]:
    """`GOSSIP_QUEUE` messages may wait for one neighbour.

    Seen: 32, and of a burst of 40 that was published without a pause 8 reached nobody: to whom is in the mesh a message
    is not offered again.
    """
    return [(pubsub_module, "RpcQueue", partial(RpcQueue, max_size=GOSSIP_QUEUE))]


def no_peer_exchange(router: Any) -> None:
    """Only orchd decides whom to dial.

    Seen: a PRUNE that carries peers (of anybody, asked for or not, `do_px` on or off) made the library dial the
    addresses in it, sixteen at a time.
    """

    async def do_px(px_peers: Any) -> None:
        pass

    router._do_px = do_px


def bounded_topics(pubsub: Any, router: Any, is_ours: Callable[[str], bool]) -> None:
    """Names of topics that a stranger makes up are not remembered.

    Seen: each PRUNE for a topic that nobody is in left an entry in `back_off` for ever, each GRAFT for one was answered
    and left one too, each IHAVE one for as long as its sender stayed, and a subscription's name could be a megabyte
    long. A topic that we are not in now may still be
    one that we join later: who has subscribed to it is remembered if it is one of ours by its name.
    """

    class Allowed:
        def __contains__(self, topic: object) -> bool:
            return isinstance(topic, str) and is_ours(topic)

    pubsub.allowed_topics = Allowed()

    def of_ours(handle: Callable[[Any, ID], Awaitable[None]]) -> Callable[[Any, ID], Awaitable[None]]:
        async def handle_if_ours(message: Any, sender: ID) -> None:
            if message.topicID in router.mesh:
                await handle(message, sender)

        return handle_if_ours

    router.handle_graft = of_ours(router.handle_graft)
    router.handle_prune = of_ours(router.handle_prune)
    router.handle_ihave = of_ours(router.handle_ihave)


# ---- fact 2: plaintext is offered ----------------------------------------------------------------------------


def noise_only(key_pair: KeyPair) -> TSecurityOptions:
    """The only way to secure a connection: Noise.

    Seen: `new_host()` also offers /plaintext/2.0.0, over which an attacker who knows a victim's *public* key connects
    as the victim.
    """
    return {NOISE: NoiseTransport(key_pair, noise_privkey=new_x25519_key_pair().private_key)}


def yamux_only() -> TMuxerOptions:
    """The only multiplexer: Yamux. Seen: mplex hung for 90 s on an echo of 300 KB, and its buffers know no bound."""
    return {TProtocol(YAMUX): Yamux}


# ---- fact 3: the 251st connection is refused -----------------------------------------------------------------


@correction
def inbound_slots_given_back() -> list[Replacement]:
    """The slot of an inbound connection is free again when the connection ends.

    Seen: after 250 inbound connections in the life of the process, all long closed, the listener refused everybody.
    Upstream: #1426 brought the limiter.
    """
    return [(Swarm, "_do_handle_inbound_connection", _handle_inbound_connection)]


async def _handle_inbound_connection(self: Swarm, stream: Any, maddr: Any, failure_event: Any) -> None:
    connection = RawConnection(stream, False)
    guard = self.__dict__.get("orchd_guard", _anybody)
    try:
        remote = self._build_remote_multiaddr(stream)
        if remote is None:
            raise ConnectionClosedError("it was reset before it was taken", transport="tcp")
        with guard(str(remote)) as secured:
            muxed: Any = await self.upgrade_inbound_raw_conn(connection, maddr)
            secured()
            await muxed.event_closed.wait()
    except Exception as error:
        log.debug("inbound connection on %s: %r", maddr, error)
    finally:
        await connection.close()


@contextmanager
def _anybody(address: str) -> Iterator[Callable[[], None]]:
    yield lambda: None


def guard_inbound(swarm: Swarm, guard: Callable[[str], AbstractContextManager[Callable[[], None]]]) -> None:
    """Ask `guard` around the life of every inbound connection, with its address; it may refuse, or end it.

    Seen: 500 half-open connections from one place, and for the ten seconds of their time limit honest peers were
    refused: the library counts connections in all, not by place.
    """
    swarm.__dict__["orchd_guard"] = guard


# ---- fact 4: provider records (the lookup itself is in `topics.py`) --------------------------------------------


@correction
def provider_limits() -> list[Replacement]:
    """Our DHT servers keep 1000 providers of a key, for an hour, and a query waits 3 s for a server.

    Seen: a server kept the first 20 providers of a key and dropped the rest (a fresh node found 31 of 50), kept dead
    ones for 48 h, and each dead server cost a lookup 10 s.
    """
    return [
        (provider_store, "BUCKET_SIZE", PROVIDERS_PER_KEY),
        (provider_store, "PROVIDER_RECORD_EXPIRATION_INTERVAL", PROVIDER_EXPIRY_S),
        (provider_store, "QUERY_TIMEOUT", DHT_QUERY_TIMEOUT_S),
        (peer_routing, "QUERY_TIMEOUT", DHT_QUERY_TIMEOUT_S),
    ]


@correction
def dht_streams_end() -> list[Replacement]:
    """A peer holds few inbound DHT streams, none for ever.

    Seen: 12 idle streams from one peer made the DHT server refuse everybody for as long as they stayed.
    """
    return [(KadDHT, "handle_stream", _handle_dht_stream)]


async def _handle_dht_stream(self: KadDHT, stream: Any) -> None:
    peer = stream.muxed_conn.peer_id
    held: dict[ID, int] = self.__dict__.setdefault("orchd_streams", {})
    if held.get(peer, 0) >= DHT_STREAMS_PER_PEER or sum(held.values()) >= DHT_STREAMS:
        await stream.reset()
        return
    held[peer] = held.get(peer, 0) + 1
    try:
        with trio.move_on_after(DHT_STREAM_S) as scope:
            await self._do_handle_stream(stream)
        if scope.cancelled_caught:
            await stream.reset()
    finally:
        held[peer] -= 1
        if not held[peer]:
            del held[peer]


# ---- fact 6: a cancelled write poisons the connection -----------------------------------------------------------


@correction
def whole_writes() -> list[Replacement]:
    """Once begun, a frame is written to its end; cancellation waits for that.

    Seen: cancelling `stream.write()` left half a Noise frame on the wire, and 16 of 20 following operations on that
    *connection* failed. A peer that takes no bytes for `WRITE_STALL_S` loses the connection, so nothing waits for ever.
    """
    return [(Yamux, "_write_frame", _write_whole_frame)]


async def _write_whole_frame(self: Yamux, data: bytes) -> None:
    async with self._write_lock:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + WRITE_STALL_S) as scope:
            await self.secured_conn.write(data)
        if scope.cancelled_caught:
            with trio.CancelScope(shield=True):
                await self.secured_conn.close()
            raise ConnectionClosedError(f"the peer took no bytes for {WRITE_STALL_S:.0f} s", transport="tcp")
    await trio.lowlevel.checkpoint()


# ---- fact 7: small TCP segments break the connection -----------------------------------------------------------


@correction
def patient_reads() -> list[Replacement]:
    """`read_exactly` reads until it has everything or the peer ends.

    Seen: it gave up after 101 partial reads, so 64 KB frames over segments of 536 bytes broke the connection.
    """
    owners = (msgio, yamux_module, varint_module, ping_module)
    return [(owner, "read_exactly", read_exactly) for owner in owners]


async def read_exactly(reader: Any, n: int, retry_count: int = 0) -> bytes:
    buffer = bytearray()
    while len(buffer) < n:
        piece = await reader.read(n - len(buffer))
        if not piece:
            raise IncompleteReadError(
                f"the stream ended after {len(buffer)} of {n} bytes", expected_bytes=n, received_bytes=len(buffer)
            )
        buffer += piece
    return bytes(buffer)


# ---- fact 8: a link that dies silently stays (see `pulse.py`) ---------------------------------------


@dataclass
class Traffic:
    """Bytes on one socket, and when the last ones came, in seconds of trio's clock."""

    bytes_in: int = 0
    bytes_out: int = 0
    heard_at: float = float("inf")
    #: What came and was not asked for yet, from `begin` on.
    ahead: bytes = b""
    begin: int = 0

    def take(self, n: int | None) -> bytes:
        """Some of what came ahead, nothing when there is none."""
        end = len(self.ahead) if n is None else self.begin + n
        taken, self.begin = self.ahead[self.begin : end], end
        if end >= len(self.ahead):
            self.ahead, self.begin = b"", 0
        return taken


_stock_read, _stock_write = RawConnection.read, RawConnection.write


@correction
def traffic_is_seen() -> list[Replacement]:
    """A connection knows how many bytes went over its socket, and when the last ones came; and it reads what is there.

    Seen: the library has no such figures, so that a transfer whose link has died silently looked like a slow peer. And
    each Noise message was two reads of the socket, of two bytes and of the rest, and each of them often a wait.
    """
    return [(RawConnection, "read", _read_and_count), (RawConnection, "write", _write_and_count)]


async def _read_and_count(self: RawConnection, n: int | None = None) -> bytes:
    traffic: Traffic = self.__dict__.setdefault("orchd_traffic", Traffic())
    if traffic.ahead:
        return traffic.take(n)
    if n == 0:
        return b""
    data = await _stock_read(self, None if n is None else max(n, READ_AHEAD))
    traffic.bytes_in += len(data)
    traffic.heard_at = trio.current_time()
    if n is None or len(data) <= n:
        return data
    traffic.ahead = data
    return traffic.take(n)


async def _write_and_count(self: RawConnection, data: bytes) -> None:
    await _stock_write(self, data)
    self.__dict__.setdefault("orchd_traffic", Traffic()).bytes_out += len(data)


def traffic_of(connection: Any) -> Traffic | None:
    """Of a swarm's connection; None for one that is not a socket's."""
    try:
        raw = connection.muxed_conn.secured_conn.conn.read_writer.read_write_closer
        return raw.__dict__.get("orchd_traffic")  # type: ignore[no-any-return]
    except AttributeError:
        return None


async def drop_connection(connection: Any, patience_s: float = 5.0) -> None:
    """Close a connection that nobody answers on: its socket first, so that no goodbye is tried.

    Seen: the library closes a connection in more than 0.2 s, of which the last is to reset its streams and to tell that
    it has ended. Cut short before that, whoever waited on a stream waited on, and the node kept the peer for one that
    is there.
    """
    with trio.CancelScope(shield=True):
        await _close_socket(connection)
        with trio.move_on_after(patience_s):
            await connection.close()


# ---- smaller observations --------------------------------------------------------------------------------------


@correction
def no_dial_delay() -> list[Replacement]:
    """Seen: every successful dial waited 250 ms more, for a second address that had no reason to win."""
    return [(swarm_module, "_HAPPY_EYEBALLS_DELAY", 0.0)]


@correction
def ipv6_addresses_are_known() -> list[Replacement]:
    """A connection over IPv6 has an address like any other.

    Seen: the library takes an address of four parts, as an IPv6 socket has it, for none. So all peers over IPv6 were
    one place without a name (64 connections for all of them, no ban of a place held, no bulk channel, on no LAN topic),
    `net peers` showed no address, and a relay reached that way was asked for a slot every ten seconds, in vain.
    """
    return [(TrioTCPStream, "get_remote_address", _remote_address)]


def _remote_address(self: TrioTCPStream) -> tuple[str, int] | None:
    if self._cached_remote_address is None:
        with suppress(OSError):  # it has been reset
            host, port = self.stream.socket.getpeername()[:2]
            self._cached_remote_address = str(host), int(port)
    return self._cached_remote_address


def forget_failed_dial(swarm: Swarm, peer: ID) -> None:
    """Let `peer` be dialled again at once.

    Seen: a dial that failed blocks the peer for 60 s, even when a new and right address has been learned since.
    """
    swarm._negative_peer_cache.evict(str(peer))


def fill_routing_table(host: BasicHost, dht: KadDHT) -> None:
    """A peer enters the routing table as soon as it is identified.

    Seen: connected peers are not put in it, so a node with one bootstrap peer answered lookups from an empty table
    until its next refresh, ten minutes later.
    """

    async def add(peer: ID) -> None:
        await dht.routing_table.add_peer(PeerInfo(peer, host.get_peerstore().addrs(peer)))

    after_identify(host, add)


def after_identify(host: BasicHost, then: Callable[[ID], Awaitable[None]]) -> None:
    """Call `then` whenever a peer has told its protocols and addresses. What it raises is logged.

    The library identifies in a system task of trio, where an exception would end the process.
    """
    identify = host._identify_peer

    async def identify_then(peer_id: ID, *, reason: str) -> None:
        try:
            await identify(peer_id, reason=reason)
            if peer_id in host._identified_peers:
                await then(peer_id)
        except Exception as error:
            log.debug("identify %s: %r", peer_id, error)

    host._identify_peer = identify_then  # type: ignore[method-assign]


def connection_config() -> ConnectionConfig:
    """Limits of connections. That a link has died silently, `pulse.py` finds out.

    Seen: without that the connection was still listed 100 s later: yamux pings, but a missing answer means nothing to
    it. The library's health monitor pings one connection after the other, and all of them whether they are silent or
    not: with twenty peers most of what an idle node sent.
    """
    return ConnectionConfig(min_connections=0, low_watermark=0, enable_health_monitoring=False)


def no_auto_connect(swarm: Swarm) -> None:
    """Only orchd decides whom to dial.

    Seen: while below its watermark the library dials every peer that anybody ever mentioned to it, every 10 s.
    """

    async def start() -> None:
        pass

    swarm.auto_connector.start = start  # type: ignore[method-assign]


async def close_peer(swarm: Any, peer: ID) -> None:
    """Close the connections to `peer`, all at once.

    Seen: the library's `close_peer` takes half a second and then forgets all connections to the peer, also one that was
    made meanwhile: that one stays open on both sides and is listed on one.
    """
    async with trio.open_nursery() as nursery:
        for connection in swarm.get_connections(peer):
            nursery.start_soon(connection.close)


async def close_everything(host: BasicHost, patience_s: float = 1.0) -> None:
    """Close connections (all at once), listeners and sockets of a host that is being left.

    Seen: leaving `host.run()` leaked three descriptors a listening host, and closing connections one after the other
    costs 0.2 s each. Upstream: #1485. After `patience_s` seconds sockets are closed without a goodbye.
    """
    swarm: Any = host.get_network()
    connections = swarm.get_connections()
    with trio.CancelScope(shield=True):
        with trio.move_on_after(patience_s):
            async with trio.open_nursery() as nursery:
                for connection in connections:
                    nursery.start_soon(connection.close)
        for connection in connections:
            await _close_socket(connection)
        with trio.move_on_after(patience_s):
            await host.close()


async def _close_socket(connection: Any) -> None:
    """Close what is under a connection, whatever state the layers above are in."""
    try:
        await connection.muxed_conn.secured_conn.close()
    except Exception as error:
        log.debug("closing a connection: %r", error)
