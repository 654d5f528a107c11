"""Who is who: another key behind a known address, identify that speaks for others, sybils around a topic's key."""

from __future__ import annotations

import hashlib
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import varint
from libp2p.crypto.ed25519 import create_new_key_pair as new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError, create_signed_peer_record
from multiaddr import Multiaddr

from orchd.errors import PeerUnreachable
from orchd.identity import Identity
from orchd.net import topics
from orchd.net.host import Host, run_host
from orchd.net.topics import provider_key
from tests.attacks.net.support import (
    IDENTIFY,
    IDENTIFY_PUSH,
    KAD,
    connect,
    host_of,
    leaves_nothing,
    send,
    still_serves,
)
from tests.net.support import LOOPBACK, TOPIC, cluster, until

LIE = Multiaddr("/ip4/192.0.2.66/tcp/666")


async def test_another_key_behind_a_known_address_is_not_believed(tmp_path: Path) -> None:
    """A peer goes, and somebody else listens where it did: nobody takes the one for the other."""
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        friend = await made.start("friend", bootstrap=())
        for peer in (victim, friend):
            await peer.network.join(TOPIC)
        where = friend.network.addresses()[0]
        await victim.network.connect(where)
        manifest = await friend.publish(seed=1)
        await victim.events.wait("adapter.announced", id=manifest.id)
        made.stop(friend)
        await until(lambda: made.stopped(friend), "the friend has gone")
        await victim.events.wait("net.peer.lost", peer=friend.network.peer_id)
        listen = [where.partition("/p2p/")[0]]
        async with run_host(Identity.from_seed(b"impostor" * 4), listen):
            with pytest.raises(PeerUnreachable):
                await victim.network.connect(where)
            assert friend.network.peer_id not in {peer.peer for peer in victim.network.peers()}
            assert victim.network.bans() == [], "the friend has done nothing"
        await still_serves(made, victim)


async def test_a_peer_that_changes_its_key_is_a_new_peer(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        friend = await made.start("friend")
        await friend.network.join(TOPIC)
        before = friend.network.peer_id
        await victim.events.wait("net.peer.connected", peer=before)
        await friend.network.rekey(Identity.from_seed(b"another key" + bytes(21)))
        await victim.events.wait("net.peer.lost", peer=before)
        await victim.events.wait("net.peer.connected", peer=friend.network.peer_id)
        assert friend.network.peer_id != before
        await until(lambda: victim.network.topics()[0].members == 1, "it is a member under its new key")
        await still_serves(made, victim)


@pytest.mark.parametrize("protocol", [IDENTIFY, IDENTIFY_PUSH])
async def test_identify_speaks_for_nobody_else(tmp_path: Path, protocol: str) -> None:
    """With the key, the signed record and the addresses of another: of that other nothing changes."""
    other = new_key_pair(b"other".ljust(32, b"\0"))
    them = ID.from_pubkey(other.public_key)
    record = create_signed_peer_record(them, [LIE], other.private_key).marshal_envelope()
    claim = Identify(public_key=other.public_key.serialize(), listen_addrs=[LIE.to_bytes()], signedPeerRecord=record)
    frame = varint.encode(claim.ByteSize()) + claim.SerializeToString()
    asked = trio.Event()

    async def lie(stream: Any) -> None:
        await stream.write(frame)
        await stream.close()
        asked.set()

    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        async with leaves_nothing(victim), run_host(Identity.from_seed(b"liar" * 8), LOOPBACK) as liar:
            if protocol == IDENTIFY:
                liar.basic.set_stream_handler(TProtocol(IDENTIFY), lie)
            await connect(liar, victim)
            if protocol == IDENTIFY:
                await asked.wait()
            else:
                await send(liar, victim, IDENTIFY_PUSH, frame)
            host = host_of(victim)
            await until(lambda: liar.id not in host.basic._identify_inflight, "it is read")
            assert host.known_addresses(them) == []
            assert key_of(host, liar.id) != other.public_key.serialize()
        await still_serves(made, victim)


def key_of(host: Host, peer: ID) -> bytes:
    """The key that a host believes a peer to have; nothing when it knows none."""
    try:
        return host.basic.get_peerstore().pubkey(peer).serialize()
    except PeerStoreError:
        return b""


def near(key: bytes, count: int, of: int) -> list[bytes]:
    """Seeds of those of many keys whose peer ids lie the closest to a key of the DHT."""
    place = int.from_bytes(hashlib.sha256(key).digest(), "big")
    seeds = [hashlib.sha256(b"sybil %d" % number).digest() for number in range(of)]

    def distance(seed: bytes) -> int:
        id = ID.from_pubkey(new_key_pair(seed).public_key).to_bytes()
        return int.from_bytes(hashlib.sha256(id).digest(), "big") ^ place

    return sorted(seeds, key=distance)[:count]


async def hush(stream: Any) -> None:
    """A server that knows of nobody, and takes every announcement."""
    answer = Message(type=Message.MessageType.GET_PROVIDERS).SerializeToString()
    while await stream.read(1 << 16):
        await stream.write(varint.encode(len(answer)) + answer)


async def test_sybils_around_a_topics_key_hide_nobody(tmp_path: Path) -> None:
    """More servers than are asked lie closer to the key than any honest one, and say that nobody is there."""
    asked = 4
    async with AsyncExitStack() as stack:
        hub, announcer, seeker = [
            await stack.enter_async_context(run_host(Identity.from_seed(bytes([number]) * 32), LOOPBACK))
            for number in range(3)
        ]
        for one in (announcer, seeker):
            await connect(one, hub)
        for seed in near(provider_key(TOPIC), asked + 1, of=400):
            sybil = await stack.enter_async_context(run_host(Identity.from_seed(seed), LOOPBACK))
            sybil.basic.set_stream_handler(TProtocol(KAD), hush)
            for one in (announcer, seeker):
                await connect(sybil, one)
        await until(lambda: all(knows_all(one, asked + 2) for one in (announcer, seeker)), "they know of all")
        routing = announcer.dht.peer_routing
        routing.find_closest_peers_network = partial(routing.find_closest_peers_network, count=asked)
        assert await topics.announce(announcer.dht, TOPIC)
        assert announcer.id not in await topics.lookup(seeker.dht, TOPIC, asked, aside=[hub.id]), "the hub was not told"
        assert await topics.announce(announcer.dht, TOPIC, aside=[hub.id])
        assert announcer.id not in await topics.lookup(seeker.dht, TOPIC, asked), "the closest alone say nothing"
        assert announcer.id in await topics.lookup(seeker.dht, TOPIC, asked, aside=[hub.id])


def knows_all(host: Host, count: int) -> bool:
    return host.dht.get_routing_table_size() >= count
