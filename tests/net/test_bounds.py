"""Each bound on what a stranger can make the library do or remember: what happens without it, and with it."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import varint
from libp2p.custom_types import TProtocol
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht import kad_dht, provider_store
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.peer.peerdata import PeerData
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStore, PeerStoreError, env_to_send_in_RPC
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from multiaddr import Multiaddr

from orchd.net import bounds, hardening, retries
from orchd.net.hardening import without
from orchd.net.host import Host
from tests.net.support import PATIENCE_S, until
from tests.net.test_hardening import KAD, a_host, a_pubsub, dht_ping, join, two_hosts

ADDRESS = Multiaddr("/ip4/192.0.2.1/tcp/1")


def made_up_peer() -> ID:
    return ID(b"\x12\x20" + os.urandom(32))


def address(number: int) -> Multiaddr:
    return Multiaddr(f"/ip4/192.0.2.1/tcp/{number + 1}")


# ---- what is known of peers ------------------------------------------------------------------------------------


async def test_a_node_that_hears_of_a_thousand_peers_forgets_itself_without_the_bound() -> None:
    with without(bounds.own_key_stays):
        async with a_host(1) as host:
            hear_of(cast(PeerStore, host.basic.get_peerstore()), 1001)
            with pytest.raises(PeerStoreError):
                host.basic.get_private_key()
            with pytest.raises(PeerStoreError):
                env_to_send_in_RPC(host.basic)


async def test_a_node_that_hears_of_many_peers_keeps_itself_and_who_is_connected() -> None:
    async with two_hosts() as (server, client):
        await until(lambda: client.id in server.basic._identified_peers, "the server has identified the client")
        peerstore = cast(PeerStore, server.basic.get_peerstore())
        hear_of(peerstore, 5000)
        assert len(peerstore.peer_data_map) <= peerstore.max_peers
        assert server.basic.get_private_key()
        assert KAD in peerstore.get_protocols(client.id)
        assert await dht_ping(client, server) != b""


def hear_of(peerstore: PeerStore, count: int) -> None:
    for _ in range(count):
        peerstore.add_addrs(made_up_peer(), [ADDRESS], 3600)


def addresses_kept() -> list[Multiaddr]:
    data = PeerData()
    for number in range(0, 400, 8):
        data.add_addrs([address(number + n) for n in range(8)])
    data.add_addrs([Multiaddr("/unix/" + "x" * 300)])
    return data.get_addrs()


def test_of_one_peer_few_addresses_are_kept() -> None:
    hardening.harden()
    assert addresses_kept() == [address(number) for number in range(400 - bounds.ADDRESSES, 400)]
    with without(bounds.few_addresses):
        assert len(addresses_kept()) == 401


async def protocols_believed() -> int:
    """Of a peer that says it speaks 50,000, in an answer to identify of 200 kB."""
    ended = trio.Event()

    async def boast(stream: Any) -> None:
        data = Identify(protocols=[f"/{number}" for number in range(50_000)]).SerializeToString()
        try:
            await stream.write(varint.encode(len(data)) + data)
            await stream.close()
        finally:
            ended.set()

    async with a_host(1) as host, a_host(2) as attacker:
        attacker.basic.set_stream_handler(TProtocol("/ipfs/id/1.0.0"), boast)
        await join(attacker, host)
        with trio.fail_after(PATIENCE_S):
            await ended.wait()
        await until(lambda: attacker.id not in host.basic._identify_inflight, "identify has ended")
        return protocols_of(host, attacker.id)


def protocols_of(host: Host, peer: ID) -> int:
    try:
        return len(host.basic.get_peerstore().get_protocols(peer))
    except PeerStoreError:
        return 0


async def test_a_long_identify_answer_is_not_believed() -> None:
    with without(retries.identified_in_the_end):
        assert await protocols_believed() < 100
    with without(bounds.short_identify):
        assert await protocols_believed() == 50_000


# ---- the DHT -----------------------------------------------------------------------------------------------------


async def long_question_is_answered() -> bool:
    question = Message(type=Message.MessageType.PING, key=bytes(bounds.DHT_QUESTION_SIZE)).SerializeToString()
    async with two_hosts() as (server, client):
        stream = await client.basic.new_stream(server.id, [KAD])
        with trio.fail_after(PATIENCE_S):
            try:
                await stream.write(varint.encode(len(question)) + question)
                return bool(await stream.read(64))
            except Exception:
                return False


async def test_a_long_question_to_the_dht_is_not_read() -> None:
    assert not await long_question_is_answered()
    with without(bounds.short_dht_messages):
        assert provider_store.MAX_DHT_MESSAGE_SIZE == 4 << 20
        assert await long_question_is_answered()
    assert provider_store.MAX_DHT_MESSAGE_SIZE == bounds.DHT_ANSWER_SIZE


class Frames:
    """A stream with any number of frames of one byte."""

    def __init__(self) -> None:
        self.muxed_conn = SimpleNamespace()
        self._next = 0

    async def read(self, n: int | None = None) -> bytes:
        self._next ^= 1
        return b"\x01" if self._next else b"x"


async def time_of_questions(count: int) -> float:
    stream, begun = Frames(), trio.current_time()
    for _ in range(count):
        await kad_dht.read_varint_prefixed_bytes_limited(cast(Any, stream), 100)
    return trio.current_time() - begun


async def test_questions_to_the_dht_come_at_a_pace(autojump_clock: trio.testing.MockClock) -> None:
    hardening.harden()
    many = int(bounds.DHT_QUESTIONS_BURST) + 50
    assert await time_of_questions(many) == pytest.approx(50 / bounds.DHT_QUESTIONS_RATE, rel=0.1)
    with without(bounds.short_dht_messages):
        assert await time_of_questions(many) == 0


async def bytes_under_a_key() -> int:
    """Of an answer about a topic whose key one provider has filled with addresses."""
    async with a_host(1) as host:
        store = host.dht.provider_store
        addresses = [Multiaddr(f"/unix/{number:0200}") for number in range(1000)]
        store.add_provider(b"topic", PeerInfo(made_up_peer(), addresses))
        return sum(len(found.to_bytes()) for info in store.get_providers(b"topic") for found in info.addrs)


async def test_a_provider_does_not_fill_the_answers_of_others() -> None:
    assert await bytes_under_a_key() <= bounds.ADDRESSES * bounds.ADDRESS_SIZE
    with without(bounds.bounded_providers):
        assert await bytes_under_a_key() > 100_000


async def records_of_providers(keys: int, providers: int) -> list[tuple[bytes, int]]:
    """What a server keeps when each of some providers announces some keys: the keys, and how many provide each."""
    async with a_host(1) as host:
        store = host.dht.provider_store
        for _ in range(providers):
            peer = made_up_peer()
            for number in range(keys):
                store.add_provider(b"key%d" % number, PeerInfo(peer, [ADDRESS]))
        return [(key, len(under)) for key, under in store.providers.items()]


async def test_keys_of_one_provider_and_records_in_all_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "KEYS_PER_PROVIDER", 4)
    monkeypatch.setattr(bounds, "PROVIDER_RECORDS", 10)
    assert await records_of_providers(keys=100, providers=1) == [(b"key%d" % number, 1) for number in range(96, 100)]
    assert sum(count for _, count in await records_of_providers(keys=4, providers=9)) == 10
    with without(bounds.bounded_providers):
        assert len(await records_of_providers(keys=100, providers=1)) == 100


async def test_records_that_expired_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "PROVIDER_RECORDS", 3)
    async with a_host(1) as host:
        store = host.dht.provider_store
        for number in range(3):
            store.add_provider(b"old%d" % number, PeerInfo(made_up_peer(), [ADDRESS]))
        monkeypatch.setattr(provider_store, "PROVIDER_RECORD_EXPIRATION_INTERVAL", -1)
        store.cleanup_expired()
        monkeypatch.undo()
        for number in range(3):
            store.add_provider(b"new%d" % number, PeerInfo(made_up_peer(), [ADDRESS]))
        assert list(store.providers) == [b"new0", b"new1", b"new2"]


# ---- pubsub ------------------------------------------------------------------------------------------------------


async def tasks_of_one_rpc() -> tuple[int, int]:
    """Tasks, and control entries handed on, that an RPC of many small ones makes at once."""
    many = 5_000
    rpc = rpc_pb2.RPC(
        publish=[rpc_pb2.Message(topicIDs=["t"])] * many,
        control=rpc_pb2.ControlMessage(graft=[rpc_pb2.ControlGraft(topicID="t")] * many),
    )
    frame = varint.encode(rpc.ByteSize()) + rpc.SerializeToString()
    tasks: list[Any] = []
    control: list[Any] = []

    async def handle_rpc(rpc: Any, sender: ID) -> None:
        control.extend(rpc.control.graft)

    class OneFrame:
        muxed_conn = SimpleNamespace(peer_id=made_up_peer())
        metric_send_channel = None
        left = frame

        async def read(self, n: int | None = None) -> bytes:
            piece, self.left = self.left[:n], self.left[n:]
            return piece

    async with a_host(1) as host:
        pubsub = a_pubsub(host)
        pubsub._manager = cast(Any, SimpleNamespace(is_running=True, run_task=lambda *task: tasks.append(task)))
        pubsub._is_subscribed_to_msg = lambda message: True  # type: ignore[method-assign]
        pubsub.router.handle_rpc = handle_rpc  # type: ignore[method-assign]
        await pubsub.continuously_read_stream(cast(Any, OneFrame()))
        pubsub.seen_messages.stop()
    return len(tasks), len(control)


async def test_one_rpc_makes_a_limited_number_of_tasks() -> None:
    assert await tasks_of_one_rpc() == (bounds.RPC_MESSAGES, bounds.RPC_CONTROLS)
    with without(bounds.modest_rpcs):
        assert await tasks_of_one_rpc() == (5_000, 5_000)


async def copies_sent(times: int) -> int:
    """Of one message that is asked for so many times in one request."""
    sent: list[rpc_pb2.RPC] = []
    async with a_host(1) as host:
        pubsub = a_pubsub(host)
        router = cast(GossipSub, pubsub.router)
        message = rpc_pb2.Message(topicIDs=["t"], data=b"x", seqno=b"1", from_id=b"y")
        router.mcache.put(message)
        (found,) = router.mcache.msgs
        router.send_rpc = lambda peer, rpc, priority=False: sent.append(rpc)  # type: ignore[method-assign]
        wanted = rpc_pb2.ControlIWant(messageIDs=[found.hex().encode()] * times)
        await router.handle_iwant(wanted, made_up_peer())
        pubsub.seen_messages.stop()
    return sum(len(rpc.publish) for rpc in sent)


async def test_a_message_is_sent_again_once_for_a_request() -> None:
    assert await copies_sent(1000) == 1
    with without(bounds.wanted_once):
        assert await copies_sent(1000) == 1000
