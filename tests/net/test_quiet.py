"""What the DHT, Yamux and pubsub say by themselves, and how much of it."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
from libp2p.custom_types import TProtocol
from libp2p.host.exceptions import StreamFailure
from libp2p.kad_dht import kad_dht
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.pubsub import pubsub as pubsub_module
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.stream_muxer.yamux import yamux

from orchd.config import NetConfig
from orchd.net import bounds, pulse, quiet, topics
from orchd.net.hardening import PROVIDER_EXPIRY_S, without
from orchd.net.quiet import (
    announced_by_us_alone,
    calm_meshes,
    protocols_asked_at_once,
    quiet_dht,
    records_said_once,
    small_networks_are_known,
)
from tests.net import test_hardening
from tests.net.support import until
from tests.net.test_hardening import a_host, echo_handler, join, two_that_gossip

NAME = "test/quiet"


@pytest.mark.parametrize("corrected", [True, False])
async def test_answers_name_peers_without_their_records(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Message] = []

    with nullcontext() if corrected else without(quiet_dht):
        async with a_host(1) as server, a_host(2) as other, a_host(3) as seeker:
            for host in (other, seeker):
                await join(host, server)
            await until(lambda: server.dht.get_routing_table_size() == 2, "identified")
            assert await topics.announce(other.dht, NAME)
            ask = kad_dht.KadDHT._add_closer_peers_to_response

            def added(self: Any, response: Message, *arguments: Any, **named: Any) -> None:
                ask(self, response, *arguments, **named)
                answers.append(response)

            monkeypatch.setattr(kad_dht.KadDHT, "_add_closer_peers_to_response", added)
            found = await topics.lookup(seeker.dht, NAME)
            assert list(found) == [other.id]
            assert found[other.id], "its addresses are told all the same"
            named = [peer for answer in answers for peer in (*answer.closerPeers, *answer.providerPeers)]
            assert named
            assert any(peer.HasField("signedRecord") for peer in named) != corrected


def test_intervals_fit_each_other() -> None:
    with without(quiet_dht):
        assert (kad_dht.ROUTING_TABLE_REFRESH_INTERVAL, yamux.RTT_MEASURE_INTERVAL) == (600, 30)
    assert (kad_dht.ROUTING_TABLE_REFRESH_INTERVAL, yamux.RTT_MEASURE_INTERVAL) == (1800, 3600)
    assert yamux.RTT_MEASURE_INTERVAL > pulse.IDLE_QUIET_S, "one of the two asks whether a link is alive"
    assert 2 * NetConfig().announce_interval_s < PROVIDER_EXPIRY_S, "one announcement may get lost"


@pytest.mark.parametrize("corrected", [True, False])
async def test_a_message_says_nothing_of_its_sender(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[rpc_pb2.RPC] = []
    take = bounds._cut_and_consume

    def seen(rpc: rpc_pb2.RPC, host: Any, peer: ID) -> bool:
        came.append(rpc_pb2.RPC.FromString(rpc.SerializeToString()))
        return take(rpc, host, peer)

    with nullcontext() if corrected else without(records_said_once):
        async with two_that_gossip(monkeypatch) as (ours, theirs):
            monkeypatch.setattr(pubsub_module, "maybe_consume_signed_record", seen)
            heard = await theirs.subscribe(NAME)
            await until(lambda: NAME in ours.peer_topics, "subscribed")
            await ours.publish(NAME, b"news")
            assert (await heard.get()).data == b"news"
            messages = [rpc for rpc in came if rpc.publish]
            assert messages
            assert all(rpc.HasField("senderRecord") is not corrected for rpc in messages)


@pytest.mark.parametrize("corrected", [True, False])
async def test_a_small_table_is_refreshed_by_asking_a_few(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "REFRESH_ASKED", 1)
    with nullcontext() if corrected else without(small_networks_are_known):
        async with a_host(1) as host, a_host(2) as other, a_host(3) as third:
            await join(host, other)
            await until(lambda: host.dht.get_routing_table_size() == 1, "identified")
            await join(third, other)
            await until(lambda: other.dht.get_routing_table_size() == 2, "identified")
            routing, asked, looked_up = host.dht.peer_routing, list[ID](), list[bytes]()
            ask, look_up = routing._query_peer_for_closest, routing.find_closest_peers_network

            async def asks(peer: ID, key: bytes) -> list[ID]:
                asked.append(peer)
                return await ask(peer, key)

            async def looks_up(key: bytes, count: int = 20) -> list[ID]:
                looked_up.append(key)
                return await look_up(key, count)

            monkeypatch.setattr(routing, "_query_peer_for_closest", asks)
            monkeypatch.setattr(routing, "find_closest_peers_network", looks_up)
            await routing.refresh_routing_table()
            assert (asked == [other.id]) is corrected
            assert (not looked_up) is corrected
            assert host.dht.get_routing_table_size() == 2, "who was found is in it"
            monkeypatch.setattr(quiet, "SMALL_NETWORK", 1)
            await routing.refresh_routing_table()
            assert looked_up, "in a large network keys are looked up"


@pytest.mark.parametrize("corrected", [True, False])
async def test_the_library_announces_nothing_again(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with nullcontext() if corrected else without(announced_by_us_alone):
        async with a_host(1) as host, a_host(2) as other:
            await join(host, other)
            await until(lambda: host.dht.get_routing_table_size() == 1, "identified")
            assert await topics.announce(host.dht, NAME)
            provided: list[bytes] = []

            async def provide(key: bytes) -> bool:
                provided.append(key)
                return True

            monkeypatch.setattr(host.dht.provider_store, "provide", provide)
            await host.dht.provider_store._republish_provider_records()
            assert provided == ([] if corrected else [topics.provider_key(NAME)])


@pytest.mark.parametrize("corrected", [True, False])
async def test_calm_meshes_are_left_alone_until_news_comes(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = pauses = 0
    look, is_stirred = GossipSub.mesh_heartbeat, quiet._is_stirred

    def looks(self: GossipSub) -> Any:
        nonlocal beats
        beats += self is ours.router
        return look(self)

    def asks(self: GossipSub) -> bool:
        nonlocal pauses
        pauses += self is ours.router
        return is_stirred(self)

    monkeypatch.setattr(test_hardening, "GossipSub", partial(GossipSub, heartbeat_interval=0.02))
    with nullcontext() if corrected else without(calm_meshes):
        async with two_that_gossip(monkeypatch) as (ours, theirs):
            monkeypatch.setattr(GossipSub, "mesh_heartbeat", looks)
            monkeypatch.setattr(quiet, "_is_stirred", asks)
            heard = await theirs.subscribe(NAME)
            await ours.subscribe(NAME)
            router: Any = ours.router
            await until(lambda: theirs.my_id in router.mesh.get(NAME, ()), "in the mesh")
            await until(lambda: beats and not is_stirred(router), "calm, and looked at once")
            before = beats, pauses
            await until(lambda: beats >= before[0] + 3 or pauses >= before[1] + 3, "three pauses")
            assert (beats == before[0]) is corrected
            await ours.publish(NAME, b"news")
            assert (await heard.get()).data == b"news"
            before = beats, pauses
            await until(lambda: beats > before[0], "looked at again")
            await until(lambda: not router.mcache.msgs, "old news is forgotten")
            router.mesh[NAME].clear()
            await until(lambda: theirs.my_id in router.mesh[NAME], "who was lost is in it again")


@pytest.mark.parametrize("corrected", [True, False])
async def test_a_protocol_is_asked_for_in_one_frame(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with nullcontext() if corrected else without(protocols_asked_at_once):
        async with a_host(1) as server, a_host(2) as client:
            server.basic.set_stream_handler(TProtocol("/echo"), echo_handler)
            await join(client, server)
            frames, stock = list[bytes](), yamux.Yamux._write_frame

            async def write(self: Any, data: bytes) -> None:
                if self.peer_id == server.id:
                    frames.append(data[12:])
                await stock(self, data)

            monkeypatch.setattr(yamux.Yamux, "_write_frame", write)
            stream = await client.basic.new_stream(server.id, [TProtocol("/echo")])
            (asked,) = [frame for frame in frames if b"/echo" in frame]
            assert (b"/multistream" in asked) == corrected
            await stream.write(b"word")
            assert await stream.read(4) == b"word"
            with pytest.raises(StreamFailure):
                await client.basic.new_stream(server.id, [TProtocol("/nobody/speaks/this")])
            several = await client.basic.new_stream(server.id, [TProtocol("/nobody"), TProtocol("/echo")])
            assert several.get_protocol() == "/echo"
