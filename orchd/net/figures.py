"""What the network tells of itself in figures: its peers, its bans, its counters, and these as text for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import trio
from libp2p.peer.id import ID

from orchd.net import hardening
from orchd.net.context import Context, address_of
from orchd.net.host import is_through_relay
from orchd.net.node import Node

#: What each counter counts. Counters that are not here are shown by their name alone.
MEANINGS = {
    "announcements": "Announcements of this node on the DHT",
    "announcements_failed": "Announcements on the DHT that no server took",
    "bans": "Peers and places banned for what they did",
    "bulk_channels": "Bulk channels that peers opened here",
    "bulk_channels_used": "Bulk channels that this node opened at peers",
    "bytes_fetched": "Bytes of adapters that came from peers",
    "bytes_in": "Bytes read from sockets",
    "bytes_out": "Bytes written to sockets",
    "bytes_reused": "Bytes of fetched adapters that were here already",
    "bytes_served": "Bytes of adapters given to peers",
    "dials": "Connections tried",
    "dials_failed": "Connections tried that did not come about",
    "dials_relayed": "Connections made through a relay",
    "gossip_author_limit": "Gossiped records of authors who said too much, left to repair",
    "gossip_blocked": "Gossiped records of blocked authors",
    "gossip_known": "Gossiped messages that were no news",
    "gossip_malformed": "Gossiped messages that were no records, or forged",
    "gossip_misplaced": "Gossiped records of another topic, or from the future",
    "gossip_neighbour_limit": "Gossiped messages of neighbours who sent too many",
    "gossip_newcomer_limit": "Gossiped records of unknown authors, too many from one neighbour",
    "gossip_overflow": "Gossiped messages that came faster than they were taken",
    "gossip_passed": "Gossiped records that were new, and passed on",
    "gossip_passed_again": "Gossiped records passed on under a further topic",
    "gossip_published": "Records that this node gave to gossip",
    "inbound": "Connections that peers made",
    "inbound_from_afar": "Connections that peers made from outside this network",
    "inbound_pushed_out": "Half-open connections ended to make room",
    "inbound_relayed": "Connections that peers made through a relay",
    "inbound_refused": "Connections refused by place: banned, too many or too fast",
    "lookups": "Lookups of topics on the DHT",
    "lookups_found": "Peers that lookups found",
    "punches": "Times that a direct connection was tried instead of one through a relay",
    "punches_done": "Times that it came about",
    "questions_answered": "Questions of peers",
    "questions_asked": "Questions to peers",
    "relay_bytes": "Bytes that passed through this node for others",
    "relay_circuits": "Connections of others through this node",
    "relay_limit_reached": "Connections of others ended because they had carried their share",
    "relay_slots_given": "Times that a peer was given a slot here, or longer",
    "relay_slots_taken": "Times that a relay gave this node a slot, or longer",
    "repair_records_given": "Records that peers lacked",
    "repair_records_taken": "Records that this node lacked",
    "repairs": "Repairs that this node began",
    "repairs_answered": "Repairs that peers began",
    "strangers_let_go": "Connections ended to make room for peers that share a topic",
    "restarts": "Falls of the network part",
}


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A connected peer. `topics` are those that it shares with this node; bytes are those of its open connections;
    `score` is what its offences add up to, at 100 it is banned."""

    peer: str
    address: str
    inbound: bool
    topics: tuple[str, ...]
    bytes_in: int
    bytes_out: int
    score: int


class BanStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`subject` is a peer id, an IP address, or a /64 of IPv6; `until_ms` None: until it is lifted."""

    subject: str
    until_ms: int | None
    reason: str
    by_user: bool


class NetworkStats(msgspec.Struct, frozen=True, kw_only=True):
    """`counters` only grow, from the daemon's start; `gauges` are how it is now."""

    counters: dict[str, int]
    gauges: dict[str, int]


def peer_status(context: Context, node: Node, peer: ID) -> PeerStatus:
    connections = node.host.connections(peer)
    first = next(iter(connections), None)
    traffic = [seen for connection in connections if (seen := hardening.traffic_of(connection))]
    return PeerStatus(
        peer=str(peer),
        address=address_of(first),
        inbound=bool(first and "inbound" in str(first.direction).lower()),
        topics=tuple(node.members.topics_of(peer)),
        bytes_in=sum(seen.bytes_in for seen in traffic),
        bytes_out=sum(seen.bytes_out for seen in traffic),
        score=round(context.scores.score(str(peer), trio.current_time())),
    )


def bans_of(context: Context) -> list[BanStatus]:
    """The user's first."""
    now, now_ms = trio.current_time(), context.clock()
    by_user = [
        BanStatus(subject=ban.subject, until_ms=ban.until_ms, reason=ban.reason, by_user=True)
        for ban in context.book.bans(now_ms)
    ]
    for_deeds = [
        BanStatus(
            subject=ban.subject, until_ms=now_ms + round((ban.until - now) * 1000), reason=ban.reason, by_user=False
        )
        for ban in context.scores.bans(now)
    ]
    return by_user + for_deeds


def live_counters(context: Context, node: Node | None) -> dict[str, int]:
    """What has ended was counted; the bytes of what is still open are added."""
    counters = dict.fromkeys(MEANINGS, 0) | context.counters
    for connection in node.host.swarm.get_connections() if node else ():
        if not is_through_relay(connection) and (traffic := hardening.traffic_of(connection)):
            counters["bytes_in"] += traffic.bytes_in
            counters["bytes_out"] += traffic.bytes_out
    return counters


def gauges(context: Context, node: Node | None) -> dict[str, int]:
    return {
        "banned": len(bans_of(context)),
        "connections": len(node.host.swarm.get_connections()) if node else 0,
        "dht_peers": node.host.dht.get_routing_table_size() if node else 0,
        "members": len(node.members.members()) if node else 0,
        "peers": len(node.host.peers()) if node else 0,
        "relay_circuits": node.relay.slots.open if node else 0,
        "relay_slots": node.relay.slots.held if node else 0,
        "remembered_peers": len(context.book.peers()),
        "topics": len(context.topics),
        "up": int(node is not None),
    }


def prometheus(stats: NetworkStats) -> str:
    """Prometheus' text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    return _family("counter", "_total", stats.counters) + _family("gauge", "", stats.gauges)


def _family(kind: str, ending: str, values: Mapping[str, int]) -> str:
    lines = []
    for key, value in values.items():
        name = f"orchd_net_{key}{ending}"
        if key in MEANINGS:
            lines.append(f"# HELP {name} {MEANINGS[key]}")
        lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
    return "".join(f"{line}\n" for line in lines)
