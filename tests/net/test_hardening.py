"""Each correction to the library: the failure without it, and its absence with it."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import varint
from libp2p import new_host
from libp2p.abc import INotifee
from libp2p.crypto.keys import KeyPair, PrivateKey
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.exceptions import StreamFailure
from libp2p.io import msgio
from libp2p.io.exceptions import IncompleteReadError
from libp2p.kad_dht import kad_dht, provider_store
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub import pubsub as pubsub_module
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.stream_muxer.mplex.mplex import MPLEX_PROTOCOL_ID, Mplex
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from orchd.errors import PeerUnreachable
from orchd.identity import Identity
from orchd.net import hardening
from orchd.net import host as host_module
from orchd.net.hardening import without
from orchd.net.host import Host, run_host
from tests.net.support import LOOPBACK, PATIENCE_S, until

ECHO = TProtocol("/test/echo/1")
KAD, MESHSUB = TProtocol("/ipfs/kad/1.0.0"), TProtocol("/meshsub/1.1.0")


@asynccontextmanager
async def a_host(seed: int) -> AsyncIterator[Host]:
    async with run_host(Identity.from_seed(bytes([seed]) * 32), LOOPBACK) as host:
        yield host


@asynccontextmanager
async def two_hosts() -> AsyncIterator[tuple[Host, Host]]:
    """The second one is connected to the first, which answers `ECHO`."""
    async with a_host(1) as server, a_host(2) as client:
        server.basic.set_stream_handler(ECHO, echo_handler)
        await join(client, server)
        yield server, client


async def echo_handler(stream: Any) -> None:
    while data := await stream.read(1 << 20):
        await stream.write(data)


async def join(client: Host, server: Host) -> None:
    await client.connect(server.id, server.basic.get_transport_addrs())


@asynccontextmanager
async def two_that_gossip(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Pubsub, Pubsub]]:
    """Pubsub of two connected hosts; the first one's is of the one that connected."""
    monkeypatch.setattr(pubsub_module, "_PEER_STREAM_BACKOFF_INITIAL", 0.05)
    async with a_host(1) as server, a_host(2) as client:
        theirs, ours = (Pubsub(host.basic, GossipSub([MESHSUB], 6, 4, 12)) for host in (server, client))
        async with (
            background_trio_service(theirs.router),
            background_trio_service(theirs),
            background_trio_service(ours.router),
            background_trio_service(ours),
        ):
            try:
                await ours.wait_until_ready()
                await theirs.wait_until_ready()
                await join(client, server)
                yield ours, theirs
            finally:
                theirs.seen_messages.stop()
                ours.seen_messages.stop()


async def echo(client: Host, server: Host, data: bytes = b"still here", patience_s: float = PATIENCE_S) -> None:
    """Raises when the connection is of no use any more."""
    with trio.fail_after(patience_s):
        stream = await client.basic.new_stream(server.id, [ECHO])
        await stream.write(data)
        back = b""
        while len(back) < len(data):
            back += await stream.read(len(data))
        assert back == data
        await stream.close()


# ---- fact 1 ----------------------------------------------------------------------------------------------------


async def raise_in_a_handler() -> None:
    async def handler(stream: Any) -> None:
        raise ZeroDivisionError

    async with two_hosts() as (server, client):
        server.basic.set_stream_handler(TProtocol("/test/raises"), handler)
        stream = await client.basic.new_stream(server.id, [TProtocol("/test/raises")])
        with trio.fail_after(PATIENCE_S), pytest.raises(Exception):  # noqa: B017, PT011
            await stream.read(1)
        await echo(client, server)


async def test_a_handler_that_raises_ends_the_host_without_the_guard() -> None:
    with without(hardening.guarded_stream_handlers), pytest.raises(BaseExceptionGroup):
        await raise_in_a_handler()


async def test_a_handler_that_raises_costs_its_stream() -> None:
    await raise_in_a_handler()


async def test_one_peer_holds_a_limited_number_of_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardening, "STREAMS_PER_PEER", 4)
    async with two_hosts() as (server, client), a_host(3) as honest:
        held = [await client.basic.new_stream(server.id, [ECHO]) for _ in range(4)]
        with pytest.raises(Exception):  # noqa: B017, PT011
            await echo(client, server)
        await join(honest, server)
        await echo(honest, server)
        for stream in held:
            await stream.reset()
        await until(lambda: server.id and not server.basic.__dict__["orchd_inbound_streams"], "streams are given back")
        await echo(client, server)


async def streams_left_half_open() -> int:
    """Of twenty that a client ended, on a protocol whose handler ends without a word."""

    async def handler(stream: Any) -> None:
        await stream.read(1)

    async with two_hosts() as (server, client):
        await until(lambda: server.basic._identified_peers and client.basic._identified_peers)
        server.basic.set_stream_handler(TProtocol("/test/leaves"), handler)
        (connection,) = server.swarm.get_connections(client.id)
        before = len(connection.muxed_conn.streams)
        for _ in range(20):
            stream = await client.basic.new_stream(server.id, [TProtocol("/test/leaves")])
            await stream.write(b"more than is read")
            await stream.close_write()
        server.basic.set_stream_handler(ECHO, echo_handler)
        await echo(client, server)
        if hardening.guarded_stream_handlers not in hardening._dropped:
            await until(lambda: len(connection.muxed_conn.streams) <= before, "they have ended")
        return len(connection.muxed_conn.streams) - before


async def test_a_stream_ends_with_its_handler() -> None:
    with without(hardening.guarded_stream_handlers):
        assert await streams_left_half_open() > 10
    assert await streams_left_half_open() <= 0


async def write_without_end(stream: Any) -> None:
    while True:
        await stream.write(b"x")
        await trio.lowlevel.checkpoint()


async def test_a_stream_that_its_peer_does_not_end_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardening, "LINGER_S", 0.05)

    async def handler(stream: Any) -> None:
        pass

    async with two_hosts() as (server, client):
        server.basic.set_stream_handler(TProtocol("/test/leaves"), handler)
        stream = await client.basic.new_stream(server.id, [TProtocol("/test/leaves")])
        with trio.fail_after(PATIENCE_S), pytest.raises(Exception):  # noqa: B017, PT011
            await write_without_end(stream)


def a_pubsub(host: Host) -> Pubsub:
    return Pubsub(host.basic, GossipSub([TProtocol("/meshsub/1.1.0")], 3, 2, 4, heartbeat_interval=1))


def message_with_garbage_key() -> rpc_pb2.Message:
    sender = ID(b"\x12\x20" + bytes(32))  # a hash: the key is not in it
    return rpc_pb2.Message(
        from_id=sender.to_bytes(), key=b"\xff" * 40, signature=b"x", data=b"", seqno=b"1", topicIDs=["t"]
    )


async def test_a_message_with_a_garbage_key_raises_without_the_guard() -> None:
    async with a_host(1) as host:
        pubsub = a_pubsub(host)
        with pytest.raises(Exception):  # noqa: B017, PT011
            await pubsub.push_msg(host.id, message_with_garbage_key())
        hardening.guard_pubsub(pubsub)
        await pubsub.push_msg(host.id, message_with_garbage_key())


async def test_a_validator_that_raises_raises_without_the_guard() -> None:
    async with a_host(1) as host:
        pubsub = a_pubsub(host)
        pubsub.strict_signing = False
        pubsub.set_topic_validator("t", lambda peer, message: bool(1 // 0), False)
        message = rpc_pb2.Message(from_id=bytes(34), data=b"", seqno=b"1", topicIDs=["t"])
        with pytest.raises(ZeroDivisionError):
            await pubsub.push_msg(host.id, message)
        hardening.guard_pubsub(pubsub)
        await pubsub.push_msg(host.id, message)


def burst_that_fits(count: int) -> int:
    queue = pubsub_module.RpcQueue()
    return sum(queue.push(rpc_pb2.RPC()) for _ in range(count))


def test_a_burst_waits_for_a_neighbour_and_is_not_dropped() -> None:
    with without(hardening.roomy_queues):
        assert burst_that_fits(60) == 32
    hardening.harden()
    assert burst_that_fits(60) == 60
    assert burst_that_fits(1000) == hardening.GOSSIP_QUEUE


async def peers_exchanged(corrected: bool) -> list[PeerInfo]:
    """Whom a host would dial after a PRUNE that names somebody."""
    dialled: list[PeerInfo] = []

    async def connect(info: PeerInfo) -> None:
        dialled.append(info)

    async with a_host(1) as host, a_host(2) as known:
        pubsub = a_pubsub(host)
        router = cast(GossipSub, pubsub.router)
        if corrected:
            hardening.no_peer_exchange(router)
        host.basic.connect = connect  # type: ignore[method-assign]
        host.basic.get_peerstore().add_addrs(known.id, known.basic.get_transport_addrs(), 100)
        named = [rpc_pb2.PeerInfo(peerID=known.id.to_bytes())]
        await router.handle_prune(rpc_pb2.ControlPrune(topicID="t", peers=named), known.id)
        pubsub.seen_messages.stop()
    return dialled


async def test_a_neighbour_does_not_decide_whom_we_dial() -> None:
    assert await peers_exchanged(corrected=False)
    assert not await peers_exchanged(corrected=True)


async def names_remembered(corrected: bool) -> tuple[int, int, int]:
    """Entries that made-up topics leave: of prunes and grafts, of subscriptions, and of what a neighbour has."""
    async with a_host(1) as host:
        pubsub = a_pubsub(host)
        router = cast(GossipSub, pubsub.router)
        if corrected:
            hardening.bounded_topics(pubsub, router, lambda topic: topic == "ours")
        pubsub._manager = cast(Any, SimpleNamespace(is_running=False))
        stranger = ID(b"\x12\x20" + bytes(32))
        for number in range(20):
            await router.handle_prune(rpc_pb2.ControlPrune(topicID=f"t{number}"), stranger)
            await router.handle_graft(rpc_pb2.ControlGraft(topicID=f"g{number}"), stranger)
            await router.handle_ihave(rpc_pb2.ControlIHave(topicID=f"h{number}"), stranger)
            pubsub.handle_subscription(stranger, rpc_pb2.RPC.SubOpts(subscribe=True, topicid="x" * number))
        pubsub.handle_subscription(stranger, rpc_pb2.RPC.SubOpts(subscribe=True, topicid="ours"))
        assert "ours" in pubsub.peer_topics
        pubsub.seen_messages.stop()
        return len(router.back_off), len(pubsub.peer_topics), len(router.ihave_message_limits[stranger])


async def test_topics_that_a_stranger_makes_up_are_not_remembered() -> None:
    back_off, subscriptions, had = await names_remembered(corrected=False)
    assert back_off >= 20
    assert subscriptions > 20
    assert had == 20
    assert await names_remembered(corrected=True) == (0, 1, 0)


# ---- fact 2 ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def impostor(victim: Host) -> AsyncIterator[Any]:
    """A host that knows only the victim's public key and speaks plaintext."""
    own = create_new_key_pair()
    key = victim.basic.get_public_key()
    claimed = KeyPair(cast(PrivateKey, SimpleNamespace(get_public_key=lambda: key)), key)
    attacker = new_host(key_pair=own, sec_opt={TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(claimed)})
    async with attacker.run([Multiaddr(LOOPBACK[0])]):
        try:
            yield attacker
        finally:
            await attacker.close()


async def test_stock_hosts_believe_an_impostor_over_plaintext() -> None:
    async with a_host(1) as victim, impostor(victim) as attacker:
        stock = new_host(key_pair=create_new_key_pair())
        async with stock.run([Multiaddr(LOOPBACK[0])]):
            await attacker.connect(PeerInfo(stock.get_id(), stock.get_transport_addrs()))
            await until(lambda: victim.id in stock.get_network().connections, "the server takes it for the victim")
            await stock.close()


async def test_our_hosts_speak_noise_only() -> None:
    async with a_host(1) as victim, a_host(2) as server, impostor(victim) as attacker:
        with pytest.raises(SwarmException):
            await attacker.connect(PeerInfo(server.id, server.basic.get_transport_addrs()))
        assert server.peers() == []
        assert list(hardening.yamux_only()) == ["/yamux/1.0.0"]


@asynccontextmanager
async def speaks_mplex_alone() -> AsyncIterator[Any]:
    attacker = new_host(key_pair=create_new_key_pair(), muxer_opt={TProtocol(MPLEX_PROTOCOL_ID): Mplex})
    async with attacker.run([Multiaddr(LOOPBACK[0])]):
        try:
            yield attacker
        finally:
            await attacker.close()


async def test_stock_hosts_offer_mplex_and_ours_do_not() -> None:
    async with a_host(1) as server, speaks_mplex_alone() as attacker:
        stock = new_host(key_pair=create_new_key_pair())
        async with stock.run([Multiaddr(LOOPBACK[0])]):
            await attacker.connect(PeerInfo(stock.get_id(), stock.get_transport_addrs()))
            await until(lambda: attacker.get_id() in stock.get_network().connections, "they agree on mplex")
            await stock.close()
        with pytest.raises(SwarmException):
            await attacker.connect(PeerInfo(server.id, server.basic.get_transport_addrs()))


# ---- fact 3 ----------------------------------------------------------------------------------------------------


async def come_and_go(times: int) -> None:
    async with a_host(1) as server, a_host(2) as client:
        server.swarm._inbound_limiter = trio.CapacityLimiter(3)
        for _ in range(times):
            await join(client, server)
            await until(lambda: client.id in server.peers())
            await client.disconnect(server.id)
            await until(lambda: not server.peers())
            # Without the correction the slot is gone for good; with it, it comes back in a moment.
            if hardening.inbound_slots_given_back not in hardening._dropped:
                await until(lambda: server.swarm._inbound_limiter.borrowed_tokens == 0, "the slot is free again")


async def test_slots_of_closed_connections_run_out_without_the_correction() -> None:
    with without(hardening.inbound_slots_given_back):
        with pytest.raises(BaseExceptionGroup) as caught:
            await come_and_go(4)
        assert caught.group_contains(PeerUnreachable)


async def test_slots_of_closed_connections_come_back() -> None:
    await come_and_go(7)


# ---- fact 4 and the DHT's limits ---------------------------------------------------------------------------------


async def providers_kept() -> int:
    async with a_host(1) as host:
        for number in range(50):
            peer = ID(b"\x12\x20" + bytes([number]) * 32)
            host.dht.provider_store.add_provider(b"key", PeerInfo(peer, [Multiaddr(LOOPBACK[0])]))
        return len(host.dht.provider_store.get_providers(b"key"))


async def test_a_server_keeps_more_than_twenty_providers() -> None:
    with without(hardening.provider_limits):
        assert await providers_kept() == 20
        assert provider_store.PROVIDER_RECORD_EXPIRATION_INTERVAL == 48 * 3600
        assert provider_store.QUERY_TIMEOUT == 10
    assert await providers_kept() == 50
    assert provider_store.PROVIDER_RECORD_EXPIRATION_INTERVAL == 3600
    assert provider_store.QUERY_TIMEOUT == 3


async def dht_ping(client: Host, server: Host) -> bytes:
    """The answer's bytes, none when the server resets the stream."""
    request = Message(type=Message.MessageType.PING).SerializeToString()
    with trio.fail_after(PATIENCE_S):
        try:
            stream = await client.basic.new_stream(server.id, [KAD])
            await stream.write(varint.encode(len(request)) + request)
            return bytes(await stream.read(64))
        except Exception:
            return b""


async def ask_while_another_peer_idles(idle_streams: int) -> bytes:
    async with two_hosts() as (server, idler), a_host(3) as honest:
        await join(honest, server)
        for _ in range(idle_streams):
            with suppress(StreamFailure):  # one more than a peer may hold
                await idler.basic.new_stream(server.id, [KAD])
        await until(lambda: streams_of(server, idler, KAD) >= min(idle_streams, 12), "the streams are there")
        return await dht_ping(honest, server)


def streams_of(server: Host, client: Host, protocol: str) -> int:
    connections = server.swarm.get_connections(client.id)
    return sum(stream.get_protocol() == protocol for connection in connections for stream in connection.get_streams())


async def test_idle_streams_of_one_peer_close_the_dht_without_the_correction() -> None:
    with without(hardening.dht_streams_end):
        assert await ask_while_another_peer_idles(0) != b""
        assert await ask_while_another_peer_idles(12) == b""


async def test_idle_streams_of_one_peer_do_not_close_the_dht() -> None:
    assert await ask_while_another_peer_idles(hardening.DHT_STREAMS_PER_PEER + 4) != b""


async def test_an_idle_dht_stream_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardening, "DHT_STREAM_S", 0.05)
    async with two_hosts() as (server, client):
        stream = await client.basic.new_stream(server.id, [KAD])
        with trio.fail_after(PATIENCE_S), pytest.raises(Exception):  # noqa: B017, PT011
            await stream.read(1)
        await until(lambda: not server.dht.__dict__["orchd_streams"])


# ---- fact 6 ----------------------------------------------------------------------------------------------------


class HalfWriter:
    """A socket that takes half of the next write, and the rest when the gate opens."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.half_written, self.gate = trio.Event(), trio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def write(self, data: bytes) -> None:
        half = len(data) // 2
        await self._stream.write(data[:half])
        self.half_written.set()
        await self.gate.wait()
        await self._stream.write(data[half:])


async def cancel_a_write_half_way(patience_s: float) -> None:
    async with two_hosts() as (server, client):
        await until(
            lambda: server.basic._identified_peers and client.basic._identified_peers, "nothing else is written"
        )
        stream = await client.basic.new_stream(server.id, [ECHO])
        (connection,) = client.swarm.get_connections(server.id)
        raw = connection.muxed_conn.secured_conn.conn.read_writer.read_write_closer
        raw.stream = slow = HalfWriter(raw.stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, b"x" * 1000)
            await slow.half_written.wait()
            nursery.cancel_scope.cancel()
            slow.gate.set()
        raw.stream = slow._stream
        await echo(client, server, patience_s=patience_s)


async def test_a_cancelled_write_poisons_the_connection_without_the_correction() -> None:
    with without(hardening.whole_writes), pytest.raises(BaseExceptionGroup):
        await cancel_a_write_half_way(1)


async def test_a_cancelled_write_leaves_the_connection_whole() -> None:
    await cancel_a_write_half_way(30)


async def test_a_peer_that_takes_no_bytes_loses_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardening, "WRITE_STALL_S", 0.05)
    async with two_hosts() as (server, client):
        stream = await client.basic.new_stream(server.id, [ECHO])
        (connection,) = client.swarm.get_connections(server.id)
        raw = connection.muxed_conn.secured_conn.conn.read_writer.read_write_closer
        raw.stream = HalfWriter(raw.stream)
        with trio.fail_after(PATIENCE_S), pytest.raises(Exception, match="took no bytes"):
            await stream.write(b"x" * 1000)
        await until(lambda: not client.connected(server.id))


# ---- fact 7 ----------------------------------------------------------------------------------------------------


class Dripping:
    """A reader that gives a byte at a time, then ends."""

    def __init__(self, count: int) -> None:
        self._left = count

    async def read(self, n: int | None = None) -> bytes:
        self._left -= 1
        return b"x" if self._left >= 0 else b""


async def test_reads_in_many_pieces() -> None:
    with without(hardening.patient_reads), pytest.raises(IncompleteReadError):
        await msgio.read_exactly(Dripping(300), 300)
    hardening.harden()
    assert await msgio.read_exactly(Dripping(300), 300) == b"x" * 300
    with pytest.raises(IncompleteReadError) as caught:
        await msgio.read_exactly(Dripping(10), 300)
    assert caught.value.received_bytes == 10


# ---- smaller observations --------------------------------------------------------------------------------------


async def time_of_a_dial(monkeypatch: pytest.MonkeyPatch) -> float:
    basic = host_module._make_host(Identity.from_seed(b"1" * 32))
    swarm: Any = basic.get_network()
    peer = ID(b"\x12\x20" + bytes(32))
    basic.get_peerstore().add_addrs(peer, [Multiaddr("/ip4/127.0.0.1/tcp/1")], 100)

    async def at_once(*arguments: Any) -> Any:
        return SimpleNamespace(is_closed=False)

    monkeypatch.setattr(swarm, "_dial_with_retry", at_once)
    begun = trio.current_time()
    await swarm.dial_peer(peer)
    return trio.current_time() - begun


async def test_a_dial_takes_no_longer_than_it_must(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    with without(hardening.no_dial_delay):
        assert await time_of_a_dial(monkeypatch) == pytest.approx(0.25)
    assert await time_of_a_dial(monkeypatch) == 0


async def test_a_peer_can_be_dialled_again_at_its_new_address() -> None:
    async with a_host(1) as server, a_host(2) as client:
        peerstore = client.basic.get_peerstore()
        peerstore.add_addrs(server.id, [Multiaddr("/ip4/127.0.0.1/tcp/1")], 100)
        with pytest.raises(SwarmException):
            await client.swarm.dial_peer(server.id)
        peerstore.clear_addrs(server.id)
        peerstore.add_addrs(server.id, server.basic.get_transport_addrs(), 100)
        with pytest.raises(SwarmException, match="recently failed"):
            await client.swarm.dial_peer(server.id)
        hardening.forget_failed_dial(client.swarm, server.id)
        await client.swarm.dial_peer(server.id)


async def test_a_connect_tries_every_address() -> None:
    async with a_host(1) as server, a_host(2) as client:
        await client.connect(server.id, [Multiaddr("/ip4/127.0.0.1/tcp/1"), *server.basic.get_transport_addrs()])
        assert client.connected(server.id)
        with pytest.raises(PeerUnreachable, match="can't be reached"):
            await client.connect(ID(b"\x12\x20" + bytes(32)), [Multiaddr("/ip4/127.0.0.1/tcp/1")])


async def test_identified_peers_enter_the_routing_table(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_hosts() as (server, client):
        await until(lambda: server.dht.get_routing_table_size() == client.dht.get_routing_table_size() == 1)
    monkeypatch.setattr(hardening, "fill_routing_table", lambda host, dht: None)
    async with two_hosts() as (server, client):
        await until(lambda: client.basic._identified_peers and server.basic._identified_peers)
        assert server.dht.get_routing_table_size() == client.dht.get_routing_table_size() == 0


async def test_what_is_raised_after_identify_is_contained() -> None:
    called = trio.Event()

    async def raises(peer: ID) -> None:
        called.set()
        raise ZeroDivisionError

    async with a_host(1) as server, a_host(2) as client:
        server.basic.set_stream_handler(ECHO, echo_handler)
        hardening.after_identify(client.basic, raises)
        await join(client, server)
        with trio.fail_after(PATIENCE_S):
            await called.wait()
        await echo(client, server)


def test_what_is_raised_after_identify_ends_the_process_without_the_guard() -> None:
    async def raises(peer: ID, *, reason: str) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        async with a_host(1) as server, a_host(2) as client:
            client.basic._identify_peer = raises  # type: ignore[method-assign]
            await join(client, server)
            with trio.fail_after(PATIENCE_S):
                await trio.sleep_forever()

    with pytest.raises(trio.TrioInternalError):
        trio.run(main)


async def test_only_we_decide_whom_to_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_host(1) as server, a_host(2) as client:
        client.basic.get_peerstore().add_addrs(server.id, server.basic.get_transport_addrs(), 100)
        await client.swarm.auto_connector.maybe_connect()
        assert client.peers() == []
    monkeypatch.setattr(hardening, "no_auto_connect", lambda swarm: None)
    async with a_host(1) as server, a_host(2) as client:
        client.basic.get_peerstore().add_addrs(server.id, server.basic.get_transport_addrs(), 100)
        await client.swarm.auto_connector.maybe_connect()
        await until(lambda: client.connected(server.id), "the library dials on its own")


async def connect_while_disconnecting(disconnect: Callable[[Host, ID], Awaitable[None]]) -> bool:
    """Whether the client still knows of the connection that the server sees."""
    async with two_hosts() as (server, client):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disconnect, client, server.id)
            await until(lambda: not client.connected(server.id))
            await join(client, server)
        await until(lambda: client.id in server.peers())
        return client.connected(server.id)


async def test_a_connection_made_while_another_is_closed_is_not_forgotten() -> None:
    assert not await connect_while_disconnecting(lambda host, peer: host.basic.disconnect(peer))
    assert await connect_while_disconnecting(lambda host, peer: host.disconnect(peer))


class Ended(INotifee):
    """Notes the ends of connections."""

    def __init__(self) -> None:
        self.seen = trio.Event()

    async def disconnected(self, network: Any, conn: Any) -> None:
        self.seen.set()

    async def nothing(self, network: Any, what: Any) -> None:
        pass

    connected = opened_stream = closed_stream = listen = listen_close = nothing


async def test_a_dropped_connection_tells_everybody_who_waits_on_it() -> None:
    async with two_hosts() as (server, client):
        ended, told = Ended(), trio.Event()
        client.swarm.register_notifee(ended)
        stream = await client.basic.new_stream(server.id, [ECHO])

        async def wait() -> None:
            with pytest.raises(Exception):  # noqa: B017, PT011
                await stream.read(1)
            told.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            (connection,) = client.swarm.get_connections(server.id)
            await hardening.drop_connection(connection)
            with trio.fail_after(PATIENCE_S):
                await told.wait()
                await ended.seen.wait()


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def come_up_and_leave() -> int:
    """Descriptors that are left over."""
    before = descriptors()
    async with two_hosts() as (server, client):
        await echo(client, server)
    return descriptors() - before


async def test_leaving_closes_every_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    await come_up_and_leave()  # whatever is opened once a process
    assert await come_up_and_leave() == 0

    async def nothing(host: Any) -> None:
        pass

    monkeypatch.setattr(hardening, "close_everything", nothing)
    assert await come_up_and_leave() > 0


def test_the_corrections_name_what_exists() -> None:
    """An upgrade of the library that moves something is noticed here first."""
    for correction in hardening.CORRECTIONS:
        assert correction.__doc__
        assert "Seen:" in correction.__doc__
        for owner, name, _ in correction():
            assert hasattr(owner, name), f"{owner} has no {name}"
    assert kad_dht.PROTOCOL_ID == KAD
