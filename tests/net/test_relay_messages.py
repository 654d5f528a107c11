"""The words of relays, against the library's own reading of them, and against garbage."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr

from orchd.errors import PeerMisbehaved
from orchd.identity import Identity
from orchd.net.host import peer_id_of
from orchd.net.relay_messages import (
    ADDRESSES_LIMIT,
    Answer,
    Connect,
    Hop,
    Limit,
    Meet,
    Now,
    Punch,
    Reserve,
    Status,
    Stop,
    decode_hop,
    decode_punch,
    decode_stop,
    encode_hop,
    encode_punch,
    encode_stop,
)

PEER = peer_id_of(Identity.from_seed(bytes(32)).public_key)
ADDRESS = Multiaddr(f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}")
LIMIT = Limit(3600, 1 << 40)
HOPS: list[Hop] = [
    Reserve(),
    Connect(PEER),
    Answer(Status.OK, 1_795_000_000, (ADDRESS,), LIMIT),
    Answer(Status.NO_RESERVATION),
]
STOPS: list[Stop] = [Connect(PEER, LIMIT), Connect(PEER), Answer(Status.OK)]
PUNCHES: list[Punch] = [Meet((ADDRESS, ADDRESS)), Meet(()), Now()]


def body(framed: bytes) -> bytes:
    """Without the length, which is right."""
    first = framed[0]
    size, start = (first, 1) if first < 0x80 else (first & 0x7F | framed[1] << 7, 2)
    assert len(framed) == start + size
    return framed[start:]


@pytest.mark.parametrize("message", HOPS)
def test_to_a_relay_and_back(message: Reserve | Connect | Answer) -> None:
    assert decode_hop(body(encode_hop(message))) == message


@pytest.mark.parametrize("message", STOPS)
def test_from_a_relay_and_back(message: Connect | Answer) -> None:
    assert decode_stop(body(encode_stop(message))) == message


@pytest.mark.parametrize("message", PUNCHES)
def test_hole_punching_and_back(message: Meet | Now) -> None:
    assert decode_punch(body(encode_punch(message))) == message


def test_the_library_reads_the_same() -> None:
    hop = HopMessage.FromString(body(encode_hop(HOPS[2])))
    assert (hop.type, hop.status, hop.reservation.expire) == (HopMessage.STATUS, 100, 1_795_000_000)
    assert list(hop.reservation.addrs) == [ADDRESS.to_bytes()]
    assert (hop.limit.duration, hop.limit.data) == (3600, 1 << 40)
    assert HopMessage.FromString(body(encode_hop(Connect(PEER)))).peer.id == PEER.to_bytes()
    stop = StopMessage.FromString(body(encode_stop(STOPS[0])))
    assert (stop.type, stop.peer.id, stop.limit.duration) == (StopMessage.CONNECT, PEER.to_bytes(), 3600)
    assert StopMessage.FromString(body(encode_stop(Answer(Status.OK)))).status == 100
    assert list(HolePunch.FromString(body(encode_punch(PUNCHES[0]))).ObsAddrs) == [ADDRESS.to_bytes()] * 2
    assert HolePunch.FromString(body(encode_punch(Now()))).type == HolePunch.SYNC


def test_what_the_library_says_is_read() -> None:
    hop = HopMessage(type=HopMessage.CONNECT, senderRecord=b"passed over")
    hop.peer.id = PEER.to_bytes()
    assert decode_hop(hop.SerializeToString()) == Connect(PEER)
    stop = StopMessage(type=StopMessage.STATUS, status=203)
    assert decode_stop(stop.SerializeToString()) == Answer(Status.CONNECTION_FAILED)
    punch = HolePunch(type=HolePunch.CONNECT, ObsAddrs=[b"no address", ADDRESS.to_bytes()])
    assert decode_punch(punch.SerializeToString()) == Meet((ADDRESS,))


def test_numbers_that_are_bytes_and_peers_that_are_too_long() -> None:
    long = HopMessage(type=HopMessage.CONNECT)
    long.peer.id = bytes(65)
    for garbage in (b"", b"\x0a\x00", b"\x08", b"\x08" + b"\xff" * 11, b"\x0b", b"\x08\x01", long.SerializeToString()):
        with pytest.raises(PeerMisbehaved):
            decode_hop(garbage)


def test_of_many_addresses_some_are_read() -> None:
    many = HolePunch(type=HolePunch.CONNECT, ObsAddrs=[ADDRESS.to_bytes()] * 100)
    message = decode_punch(many.SerializeToString())
    assert isinstance(message, Meet)
    assert len(message.addresses) == ADDRESSES_LIMIT


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read(data: bytes) -> None:
    for decode in (decode_hop, decode_stop, decode_punch):
        with suppress(PeerMisbehaved):
            decode(data)


def test_mutated_messages_are_refused_or_read() -> None:
    rng = random.Random(7)
    sound = [body(encode_hop(message)) for message in HOPS] + [body(encode_stop(message)) for message in STOPS]
    for _ in range(2000):
        data = bytearray(rng.choice(sound))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        for decode in (decode_hop, decode_stop, decode_punch):
            try:
                message = decode(bytes(data[: rng.randint(0, len(data))]))
            except PeerMisbehaved:
                continue
            assert not isinstance(message, Connect) or isinstance(message.peer, ID)
