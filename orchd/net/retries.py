"""Corrections to libp2p 0.8.1 that try again what a busy moment has cost, as long as the peer is connected.

Continues `hardening.py`, whose rules hold here: each names what was seen without it, and has a test in
`tests/net/test_retries.py` that shows the failure without it and its absence with it.
"""

from __future__ import annotations

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.pubsub.pubsub import Pubsub

from orchd.net.hardening import Replacement, correction

#: The pause before a peer is asked again what it is, doubling up to the second figure, in seconds.
PAUSE_S, PAUSE_MAX_S = 1.0, 60.0

_stock_new_peer = Pubsub._handle_new_peer


@correction
def identified_in_the_end() -> list[Replacement]:
    """A connected peer is asked what it speaks until it has told.

    Seen: twenty nodes that met within half a minute on one core: of 380 identifications 101 met a stream that took too
    long to open. Nothing asked again, so for as long as the connection lasted the peer spoke nothing that is known:
    it was not in the routing table, it was nobody's member, and a relay of ours took it for a stranger.
    """
    return [(BasicHost, "_identify_task_entry", _identify_until_known)]


async def _identify_until_known(self: BasicHost, peer_id: ID, reason: str) -> None:
    pause = PAUSE_S
    try:
        while True:
            await self._identify_peer(peer_id, reason=reason)
            if peer_id in self._identified_peers or not self.get_network().get_connections(peer_id):
                return
            await trio.sleep(pause)
            pause = min(pause * 2, PAUSE_MAX_S)
    finally:
        self._identify_inflight.discard(peer_id)


@correction
def gossip_reaches_in_the_end() -> list[Replacement]:
    """A stream of pubsub that could not be opened is tried again; and what was subscribed to meanwhile is told.

    Seen: the library does try again, but after errors of the swarm alone, and what opening a stream raises is one of
    the host: of 380 pairs 65 never gossiped, and each record went to those straight, from everybody. And a topic that
    was subscribed to between the greeting, which names the topics, and the moment from which the peer is told of
    others, it never heard of.
    """
    return [(Pubsub, "_handle_new_peer", _new_peer_again)]


async def _new_peer_again(self: Pubsub, peer_id: ID) -> None:
    greeted = set(self.topic_ids)
    try:
        await _stock_new_peer(self, peer_id)
    except StreamFailure as error:
        if _may_gossip(self, peer_id):
            raise SwarmException(str(error)) from error
        raise
    if (queue := self.peer_queues.get(peer_id)) is None:
        return
    for topic in greeted.symmetric_difference(self.topic_ids):
        packet, announced = self._build_announce_rpc(topic, subscribe=topic in self.topic_ids)
        self._enqueue_or_retry_announce(peer_id, queue, packet, announced)


def _may_gossip(pubsub: Pubsub, peer: ID) -> bool:
    """Whether it has not told what it speaks, or has told that it does."""
    try:
        spoken = pubsub.host.get_peerstore().get_protocols(peer)
    except PeerStoreError:
        return True
    return not spoken or any(protocol in spoken for protocol in pubsub.protocols)
