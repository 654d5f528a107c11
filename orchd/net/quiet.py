"""Corrections to libp2p 0.8.1 that say less: what nobody asked for, and what was said before.

Continues `hardening.py`, whose rules hold here: each names what was seen without it, and has a test in
`tests/net/test_quiet.py` that shows it.
"""

from __future__ import annotations

from typing import Any

import trio
from libp2p.kad_dht import kad_dht as kad_dht_module
from libp2p.kad_dht.peer_routing import PeerRouting
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.pubsub import gossipsub as gossipsub_module
from libp2p.pubsub.pubsub import Pubsub
from libp2p.stream_muxer.yamux import yamux as yamux_module
from libp2p.stream_muxer.yamux.yamux import YamuxStream

from orchd.net.hardening import Replacement, correction
from orchd.net.policy.rounds import SMALL_NETWORK

#: Between refreshes of the routing table, and between Yamux pings; in seconds. `pulse.py` asks after a silence of 120.
REFRESH_S, PING_S = 1800, 100
#: Whom a refresh asks in a small network.
REFRESH_ASKED = 3

_stock_write_msg, _stock_refresh = Pubsub.write_msg, PeerRouting.refresh_routing_table


@correction
def quiet_dht() -> list[Replacement]:
    """An answer names peers without their signed records, and what goes on by itself goes on less often.

    Seen: two thirds of an answer's three kilobytes were records that nobody here asks for (a peer says its addresses
    itself when it is met), the routing table was refreshed every ten minutes, and each connection was pinged from both
    sides every half minute: forty megabytes a day of a node with twenty peers that did nothing.
    """
    return [
        (PeerStore, "get_peer_record", _no_record),
        (kad_dht_module, "ROUTING_TABLE_REFRESH_INTERVAL", REFRESH_S),
        (yamux_module, "RTT_MEASURE_INTERVAL", PING_S),
    ]


def _no_record(self: PeerStore, peer_id: ID) -> None:
    return None


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
