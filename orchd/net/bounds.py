"""Corrections to libp2p 0.8.1 that bound what a stranger makes a node remember, and do at one blow.

Continues `hardening.py`, whose rules hold here: each names what was seen without it, and has a test in
`tests/net/test_bounds.py` that shows the failure without it and its absence with it. No upstream thread was found for
any of them.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import trio
from libp2p.host import basic_host
from libp2p.identity.identify_push import identify_push as push_module
from libp2p.kad_dht import kad_dht, peer_routing, provider_store
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.peer.id import ID
from libp2p.peer.peerdata import PeerData
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStore
from libp2p.pubsub import pubsub as pubsub_module
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.utils import maybe_consume_signed_record
from libp2p.utils.varint import read_length_prefixed_protobuf, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.net.hardening import Replacement, correction
from orchd.net.policy.rates import Bucket

log = logging.getLogger(__name__)

#: Addresses that are kept of one peer, and bytes of one.
ADDRESSES, ADDRESS_SIZE = 16, 256
#: Of the peers that are known, so large a part goes at once when there are too many.
FORGOTTEN_PART = 0.25
#: Bytes of an identify message; of a question to our DHT server; of a DHT server's answer.
IDENTIFY_SIZE, DHT_QUESTION_SIZE, DHT_ANSWER_SIZE = 64 << 10, 64 << 10, 1 << 20
#: Questions a second that one connection may put to our DHT server, and at once after a silence. More have to wait.
DHT_QUESTIONS_RATE, DHT_QUESTIONS_BURST = 10.0, 200.0
#: Keys that one peer may provide, and records of providers in all. The oldest go.
KEYS_PER_PROVIDER, PROVIDER_RECORDS = 512, 65_536
#: Messages in one RPC of pubsub, control entries of one kind in it, and message ids in one of these.
RPC_MESSAGES, RPC_CONTROLS, RPC_IDS = 512, 64, 5_000
#: Messages that a neighbour may have sent again at one request.
WANTED = 256

_stock_consume = maybe_consume_signed_record
_stock_iwant = GossipSub.handle_iwant
_stock_add_provider = ProviderStore.add_provider


# ---- what is known of peers ------------------------------------------------------------------------------------


@correction
def own_key_stays() -> list[Replacement]:
    """When too many peers are known, those go that are not connected, the ones heard of longest ago first.

    Seen: at the 1,001st the library forgot whoever has no address in its book, and that is the node itself: its private
    key was gone, and from then on every question to the DHT failed. One answer of a DHT server can name that many.
    """
    return [(PeerStore, "_enforce_peer_limit", _forget_strangers)]


def _forget_strangers(self: PeerStore) -> None:
    if len(self.peer_data_map) <= self.max_peers:
        return
    # Protocols are known of who is connected and identified; `node.py` clears them at the end.
    strangers = [
        (data.last_identified, number, peer)
        for number, (peer, data) in enumerate(self.peer_data_map.items())
        if data.privkey is None and not data.protocols
    ]
    for _, _, peer in sorted(strangers)[: int(self.max_peers * FORGOTTEN_PART)]:
        self.peer_record_map.pop(peer, None)
        del self.peer_data_map[peer]


@correction
def few_addresses() -> list[Replacement]:
    """Of each peer the last `ADDRESSES` addresses are kept, and no long ones.

    Seen: every address that anybody says a peer has was kept, each compared with all others: one answer of a DHT server
    with 10,000 addresses of one peer took 4 s in which nothing else ran, and 4 MiB may hold 400,000: hours. And the
    library makes an address of any bytes: what is none raised wherever it was written out.
    """
    return [(PeerData, "add_addrs", _add_few_addresses)]


def _add_few_addresses(self: PeerData, addrs: Sequence[Multiaddr]) -> None:
    self.addrs = list(dict.fromkeys([*self.addrs, *reasonable(addrs)]))[-ADDRESSES:]


def reasonable(addresses: Sequence[Multiaddr]) -> list[Multiaddr]:
    """Of what somebody says, few and no long ones."""
    return [one for one in addresses[:ADDRESSES] if len(one.to_bytes()) <= ADDRESS_SIZE and _is_one(one)]


def _is_one(address: Multiaddr) -> bool:
    try:
        return bool(str(address))
    except Exception:  # of several kinds
        return False


@correction
def short_identify() -> list[Replacement]:
    """What a peer says of itself has `IDENTIFY_SIZE` bytes at most, or its stream ends.

    Seen: 1 MiB, and all of it is kept: 300,000 protocols with names of a letter, 20 MB of memory for each connection.
    Other nodes say 1 to 2 KiB. What follows a length that is too large is read as another format: so the stream ends.
    """
    return [
        (basic_host, "read_length_prefixed_protobuf", _read_identify),
        (push_module, "read_length_prefixed_protobuf", _read_identify),
    ]


async def _read_identify(stream: Any, use_varint_format: bool = True) -> bytes:
    try:
        return await read_length_prefixed_protobuf(stream, use_varint_format, IDENTIFY_SIZE)
    except Exception:
        await stream.reset()  # what is read after this finds nothing
        raise


# ---- the DHT -----------------------------------------------------------------------------------------------------


@correction
def short_dht_messages() -> list[Replacement]:
    """Questions to our DHT server have 64 KiB at most and come at a pace; answers have 1 MiB at most.

    Seen: 4 MiB either way, and as many questions as a connection carries: each of 40 bytes is answered with up to a
    thousand providers.
    """
    return [
        (kad_dht, "MAX_DHT_MESSAGE_SIZE", DHT_QUESTION_SIZE),
        (kad_dht, "read_varint_prefixed_bytes_limited", _read_dht_question),
        (provider_store, "MAX_DHT_MESSAGE_SIZE", DHT_ANSWER_SIZE),
        (peer_routing, "MAX_DHT_MESSAGE_SIZE", DHT_ANSWER_SIZE),
    ]


async def _read_dht_question(stream: Any, max_length: int) -> bytes:
    question = await read_varint_prefixed_bytes_limited(stream, max_length)
    questions: Bucket = stream.muxed_conn.__dict__.setdefault(
        "orchd_dht_questions", Bucket(DHT_QUESTIONS_RATE, DHT_QUESTIONS_BURST, trio.current_time())
    )
    while not questions.take(trio.current_time()):  # noqa: ASYNC110 (a bucket tells nobody that it has filled)
        await trio.sleep(1 / DHT_QUESTIONS_RATE)
    return question


@correction
def bounded_providers() -> list[Replacement]:
    """Our DHT server keeps so many keys of one provider, so many records in all, and few addresses of each.

    Seen: no bound but 10 announcements of a peer in 10 s; and each with up to 4 MiB of addresses, which every answer
    under that key then carries: one such provider under a topic's key makes the answer too long for anybody to read.
    """
    return [(ProviderStore, "add_provider", _add_bounded_provider)]


def _add_bounded_provider(self: ProviderStore, key: bytes, provider: PeerInfo) -> None:
    peer = str(provider.peer_id)
    _stock_add_provider(self, key, PeerInfo(provider.peer_id, reasonable(provider.addrs)))
    if peer not in self.providers.get(key, ()):
        return
    held: dict[str, OrderedDict[bytes, None]] = self.__dict__.setdefault("orchd_held", {})
    order: OrderedDict[tuple[bytes, str], None] = self.__dict__.setdefault("orchd_order", OrderedDict())
    held.setdefault(peer, OrderedDict())[key] = None
    held[peer].move_to_end(key)
    order[key, peer] = None
    order.move_to_end((key, peer))
    if len(held[peer]) > KEYS_PER_PROVIDER:
        _forget_record(self, next(iter(held[peer])), peer)
    if len(order) > PROVIDER_RECORDS:
        _forget_record(self, *next(iter(order)))


def _forget_record(self: ProviderStore, key: bytes, peer: str) -> None:
    self.__dict__["orchd_order"].pop((key, peer), None)
    held = self.__dict__["orchd_held"]
    held[peer].pop(key, None)
    if not held[peer]:
        del held[peer]
    under = self.providers.get(key, {})
    under.pop(peer, None)
    if not under:
        self.providers.pop(key, None)


# ---- pubsub ------------------------------------------------------------------------------------------------------


@correction
def modest_rpcs() -> list[Replacement]:
    """Of one RPC so many messages and control entries are looked at, and no more.

    Seen: 60,000 messages of 14 bytes in one RPC of 1 MiB became 60,000 tasks at once, before any limit asked who had
    sent them: seconds in which nothing else ran, and 300 MB.
    """
    return [(pubsub_module, "maybe_consume_signed_record", _cut_and_consume)]


def _cut_and_consume(rpc: Any, host: Any, peer_id: ID) -> bool:
    del rpc.publish[RPC_MESSAGES:]
    if rpc.HasField("control"):
        control = rpc.control
        for entries in (control.ihave, control.iwant, control.graft, control.prune, control.idontwant):
            del entries[RPC_CONTROLS:]
        for naming in (*control.ihave, *control.iwant, *control.idontwant):
            del naming.messageIDs[RPC_IDS:]
    return _stock_consume(rpc, host, peer_id)


@correction
def wanted_once() -> list[Replacement]:
    """A message is sent again once for each request, and so many at one request.

    Seen: a request of 1 MiB that names one message 25,000 times was answered with 25,000 copies of it, all in memory at
    once: 800 MB for a message of 32 KiB.
    """
    return [(GossipSub, "handle_iwant", _handle_iwant)]


async def _handle_iwant(self: GossipSub, iwant_msg: Any, sender_peer_id: ID) -> None:
    wanted = list(dict.fromkeys(iwant_msg.messageIDs))[:WANTED]
    del iwant_msg.messageIDs[:]
    iwant_msg.messageIDs.extend(wanted)
    await _stock_iwant(self, iwant_msg, sender_peer_id)
