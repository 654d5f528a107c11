"""Frames of every protocol that a node offers, and what becomes of them when chance changes them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import varint
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.peerstore import env_to_send_in_RPC
from libp2p.pubsub.pb import rpc_pb2

from orchd.net import messages
from orchd.net.gossip import PREFIX
from orchd.net.host import Host
from orchd.net.messages import PROTOCOL, topic_key
from orchd.net.policy.repair import Same, Sum
from orchd.net.relay_messages import (
    DCUTR,
    HOP,
    STOP,
    Connect,
    Limit,
    Meet,
    Now,
    Reserve,
    encode_hop,
    encode_punch,
    encode_stop,
)
from orchd.net.topics import provider_key
from orchd.records import Announcement, Manifest, Verified
from tests.attacks.net.support import IDENTIFY, IDENTIFY_PUSH, KAD, MESHSUB, PING
from tests.net.support import TOPIC

#: Every protocol id of a node.
OFFERED = (PROTOCOL, KAD, MESHSUB, IDENTIFY, IDENTIFY_PUSH, PING, HOP, STOP, DCUTR)


def frames_of(protocol: str, sender: Host, manifest: Verified[Manifest], news: Verified[Announcement]) -> list[bytes]:
    """Good frames that `sender` may send on a protocol, about an adapter that is at the other end."""
    makers: dict[str, Callable[[], list[bytes]]] = {
        PROTOCOL: lambda: _questions(manifest, news),
        KAD: lambda: [_prefixed(message) for message in _dht_questions(sender)],
        MESHSUB: lambda: [_prefixed(rpc) for rpc in _rpcs(sender, news)],
        IDENTIFY_PUSH: lambda: [_prefixed(_identify(sender))],
        IDENTIFY: lambda: [_prefixed(_identify(sender))],
        PING: lambda: [bytes(range(32))],
        HOP: lambda: [encode_hop(Reserve()), encode_hop(Connect(sender.id))],
        STOP: lambda: [encode_stop(Connect(sender.id, Limit(60, 1 << 20)))],
        DCUTR: lambda: [encode_punch(Meet(tuple(sender.basic.get_transport_addrs()))), encode_punch(Now())],
    }
    return makers[protocol]()


def _prefixed(message: Message | rpc_pb2.RPC | Identify) -> bytes:
    body = message.SerializeToString()
    return bytes(varint.encode(len(body))) + body


def _questions(manifest: Verified[Manifest], news: Verified[Announcement]) -> list[bytes]:
    key, adapter, entry = topic_key(TOPIC), manifest.digest, manifest.record.files[-1]
    questions: list[messages.Request] = [
        messages.Hello(topics=(key,), proofs=(bytes(32),)),
        messages.Push(records=(news.envelope,)),
        messages.Reconcile(sets=(messages.TopicParts(key, (Sum(b"", bytes(16)),)),)),
        messages.Reconcile(sets=(messages.TopicParts(key, (Same(b"\x80"), Sum(b"", bytes(16)))),)),
        messages.GetRecords(topics=(key,), ids=(news.digest,)),
        messages.GetManifest(adapter=adapter),
        messages.GetRange(adapter=adapter, blob=entry.sha256, offset=0, length=entry.size),
        messages.OpenBulk(adapter=adapter),
    ]
    return [messages.encode(question) for question in questions]


def _dht_questions(sender: Host) -> list[Message]:
    record, _ = env_to_send_in_RPC(sender.basic)
    addresses = [address.to_bytes() for address in sender.basic.get_transport_addrs()]
    this = Message.Peer(id=sender.id.to_bytes(), addrs=addresses, signedRecord=record)
    kinds = Message.MessageType
    key = provider_key(TOPIC)
    put = Message(type=kinds.PUT_VALUE, key=b"/pk/" + sender.id.to_bytes(), senderRecord=record)
    put.record.key, put.record.value = put.key, sender.basic.get_public_key().serialize()
    return [
        Message(type=kinds.FIND_NODE, key=sender.id.to_bytes(), senderRecord=record),
        Message(type=kinds.GET_PROVIDERS, key=key, senderRecord=record),
        Message(type=kinds.ADD_PROVIDER, key=key, senderRecord=record, providerPeers=[this]),
        Message(type=kinds.GET_VALUE, key=put.key, senderRecord=record),
        Message(type=kinds.PING),
        put,
    ]


def _rpcs(sender: Host, news: Verified[Announcement]) -> list[rpc_pb2.RPC]:
    topic, id = PREFIX + TOPIC, b"ab" * 32
    control = rpc_pb2.ControlMessage(
        ihave=[rpc_pb2.ControlIHave(topicID=topic, messageIDs=[id])],
        iwant=[rpc_pb2.ControlIWant(messageIDs=[id])],
        graft=[rpc_pb2.ControlGraft(topicID=topic)],
        prune=[rpc_pb2.ControlPrune(topicID=topic, backoff=1, peers=[rpc_pb2.PeerInfo(peerID=sender.id.to_bytes())])],
        idontwant=[rpc_pb2.ControlIDontWant(messageIDs=[id])],
    )
    message = rpc_pb2.Message(
        from_id=sender.id.to_bytes(), data=news.envelope, seqno=bytes(8), topicIDs=[topic], signature=bytes(64)
    )
    record, _ = env_to_send_in_RPC(sender.basic)
    return [
        rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic)], senderRecord=record),
        rpc_pb2.RPC(publish=[message, message], senderRecord=record),
        rpc_pb2.RPC(control=control, senderRecord=record),
    ]


def _identify(sender: Host) -> Identify:
    return Identify(
        protocol_version="ipfs/0.1.0",
        agent_version="attacker",
        public_key=sender.basic.get_public_key().serialize(),
        listen_addrs=[address.to_bytes() for address in sender.basic.get_transport_addrs()],
        protocols=[PROTOCOL, KAD, MESHSUB],
        signedPeerRecord=env_to_send_in_RPC(sender.basic)[0],
    )


def mutate(rng: random.Random, frame: bytes, others: Sequence[bytes]) -> bytes:
    """One to four changes: other bits, bytes gone, come or said twice, a part of another frame, another length."""
    data = bytearray(frame)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 2, 4, 8, 32)))
        match rng.randrange(7):
            case 0 if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = rng.randbytes(rng.randint(1, 32))
            case 3:
                data[at:at] = data[at:end] * rng.randint(1, 9)
            case 4:
                other = rng.choice(others)
                begin = rng.randrange(len(other))
                data[at:end] = other[begin : begin + rng.randint(1, 64)]
            case 5:
                data[at:end] = rng.choice((b"\xff", b"\x00", b"\x80")) * (end - at)
            case _:
                data[:4] = rng.randbytes(rng.randint(1, 4))
    return bytes(data[: 1 << 16])
