"""Corrections to libp2p 0.8.1 that say less: what nobody asked for, and what was said before.

Continues `hardening.py`, whose rules hold here: each names what was seen without it, and has a test in
`tests/net/test_quiet.py` that shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import IOException
from libp2p.kad_dht import kad_dht as kad_dht_module
from libp2p.kad_dht.peer_routing import PeerRouting
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_client import MULTISELECT_PROTOCOL_ID, MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.pubsub import gossipsub as gossipsub_module
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.stream_muxer.yamux import yamux as yamux_module
from libp2p.stream_muxer.yamux.yamux import YamuxStream
from libp2p.utils import encode_delim

from orchd.net.hardening import Replacement, correction
from orchd.net.policy.rounds import SMALL_NETWORK

#: Between refreshes of the routing table, and between measurements of a link's round trip; in seconds. Whether a link
#: is alive is found out by `pulse.py`, which pings after a silence.
REFRESH_S, PING_S = 1800, 3600
#: Between two looks at meshes in which nothing is amiss, while nobody tells anything; in seconds.
CALM_S = 15.0
#: Whom a refresh asks in a small network.
REFRESH_ASKED = 3

_stock_write_msg, _stock_refresh = Pubsub.write_msg, PeerRouting.refresh_routing_table
_stock_select = MultiselectClient.select_one_of


@correction
def quiet_dht() -> list[Replacement]:
    """An answer names peers without their signed records, and what goes on by itself goes on less often.

    Seen: two thirds of an answer's three kilobytes were records that nobody here asks for (a peer says its addresses
    itself when it is met), the routing table was refreshed every ten minutes, and each connection was pinged from both
    sides every half minute: forty megabytes a day of a node with twenty peers that did nothing. Pings every 100 s, to
    be sooner than `pulse.py`, were two megabytes still; when that alone asks, one of the two sides does.
    """
    return [
        (PeerStore, "get_peer_record", _no_record),
        (kad_dht_module, "ROUTING_TABLE_REFRESH_INTERVAL", REFRESH_S),
        (yamux_module, "RTT_MEASURE_INTERVAL", PING_S),
    ]


def _no_record(self: PeerStore, peer_id: ID) -> None:
    return None


@correction
def announced_by_us_alone() -> list[Replacement]:
    """Only `topics.py` announces; the library does not do it once more.

    Seen: half an hour after its start, and then every 22 hours, the library looked up the servers closest to each key
    that was ever announced, of topics that were left too, and told all of them: of 26 MB a day of an idle node most.
    """
    return [(ProviderStore, "_republish_provider_records", _republish_nothing)]


async def _republish_nothing(self: ProviderStore) -> None:
    pass


@correction
def small_networks_are_known() -> list[Replacement]:
    """Where the routing table has room for everybody, its refresh asks a few whom they know, and looks up no keys.

    Seen: of the 36 MB a day of each of 21 idle nodes 23 were the DHT's, most of them lookups of one key a bucket that
    asked everybody for everybody's addresses; one lookup of this node alone still took half of 20 MB. Whoever is new
    has met somebody, and each of these knows it.
    """
    return [(PeerRouting, "refresh_routing_table", _refresh_small_table)]


async def _refresh_small_table(self: PeerRouting) -> None:
    if not 0 < self.routing_table.size() <= SMALL_NETWORK:
        await _stock_refresh(self)
        return
    this_node, heard = self.host.get_id().to_bytes(), list[ID]()  # `heard` is thrown away: they are in the table then
    async with trio.open_nursery() as nursery:
        for peer in self.routing_table.find_local_closest_peers(this_node, REFRESH_ASKED):
            nursery.start_soon(self._query_single_peer_for_closest, peer, this_node, heard)


@correction
def calm_meshes() -> list[Replacement]:
    """While no message is new, and no mesh is too small or too large, the meshes are looked at now and then.

    Seen: once a second all of them, and every old limit of every neighbour: a tenth of what an idle node with twenty
    peers under three topics computes.
    """
    return [(GossipSub, "heartbeat", _heartbeat)]


async def _heartbeat(self: GossipSub) -> None:
    await trio.sleep(self.heartbeat_initial_delay)
    beaten_at = float("-inf")
    while True:
        if _is_stirred(self) or trio.current_time() - beaten_at >= CALM_S:
            await _beat(self)
            beaten_at = trio.current_time()
        await trio.sleep(self.heartbeat_interval)


def _is_stirred(self: GossipSub) -> bool:
    """Whether there is a message that others are to hear of, or a mesh that is to change."""
    if self.mcache.msgs or self.fanout:
        return True
    subscribed: Any = self.pubsub.peer_topics if self.pubsub else {}
    return any(
        len(mesh) > self.degree_high or len(mesh) < min(self.degree_low, len(subscribed.get(topic, ())))
        for topic, mesh in self.mesh.items()
    )


async def _beat(self: GossipSub) -> None:
    """What the library's loop does between two pauses, with what is turned off in `gossip.py` left out."""
    graft, prune = self.mesh_heartbeat()
    self.fanout_heartbeat()
    await self._emit_control_msgs(graft, prune, self.gossip_heartbeat())
    self.mcache.shift()
    self._periodic_security_cleanup()
    self._prune_idontwant_entries()


@correction
def windows_in_batches() -> list[Replacement]:
    """A stream's window is opened again when half of it was used, not after every read.

    Seen: each read, also each of the one-byte reads of a length, was answered with a frame of its own, encrypted and
    sent alone: of what twenty quiet nodes did, four frames of five. go-yamux waits for half of the window.
    """
    return [(YamuxStream, "_auto_tune_and_send_window_update", _open_half_used_window)]


async def _open_half_used_window(self: YamuxStream, *, bytes_read: int = 0) -> None:
    waiting = len(self.conn.stream_buffers.get(self.stream_id, b""))
    used = self.target_recv_window - (self.recv_window + waiting)
    if used >= self._grow_threshold() and not self.recv_closed:
        await self.send_window_update(self._grow_to_delta(waiting) + self._apply_autotune_epoch(waiting))


@correction
def records_said_once() -> list[Replacement]:
    """Who a node is stands in the first RPC on a stream, not in each.

    Seen: every gossiped message and every look at the mesh carried the sender's signed addresses, looked up
    and verified each time: 7 % of the event loop's time of twenty nodes that fetch. Only `do_px` ever asks for them.
    """
    return [
        (gossipsub_module, "env_to_send_in_RPC", lambda host: (b"", False)),
        (Pubsub, "write_msg", _write_without_empty_record),
    ]


async def _write_without_empty_record(self: Pubsub, stream: Any, rpc: Any) -> bool:
    if not rpc.senderRecord:
        rpc.ClearField("senderRecord")  # an empty one is there, and refused
    return await _stock_write_msg(self, stream, rpc)


@correction
def protocols_asked_at_once() -> list[Replacement]:
    """Who knows which protocol it wants asks for it at once, and does not wait for the greeting first.

    Seen: of the eight frames that a stream for one question cost, two were spent to wait for a greeting that is always
    the same; under load each wait is a tenth of a second. go-libp2p and js-libp2p do so too.
    """
    return [(MultiselectClient, "select_one_of", _select_at_once)]


class _AtOnce(MultiselectCommunicator):
    """Says the first line and the one that will follow it together."""

    def __init__(self, inner: Any, protocol: TProtocol) -> None:
        super().__init__(inner.read_writer)
        self._protocol, self._is_first, self._is_said = protocol, True, False

    async def write(self, msg_str: str) -> None:
        if self._is_said and msg_str == self._protocol:
            self._is_said = False
        elif self._is_first and msg_str == MULTISELECT_PROTOCOL_ID:
            self._is_first, self._is_said = False, True
            try:
                await self.read_writer.write(encode_delim(msg_str.encode()) + encode_delim(self._protocol.encode()))
            except (IOException, AssertionError, ValueError) as error:  # as the library's
                raise MultiselectCommunicatorError("fail to write to multiselect communicator") from error
        else:
            await super().write(msg_str)


async def _select_at_once(
    self: MultiselectClient, protocols: Sequence[TProtocol], communicator: Any, *more: Any
) -> TProtocol:
    if len(protocols) == 1 and protocols[0]:
        communicator = _AtOnce(communicator, protocols[0])
    return await _stock_select(self, protocols, communicator, *more)
