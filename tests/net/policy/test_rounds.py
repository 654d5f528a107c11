"""When topics are announced and looked up, and which servers are asked."""

from __future__ import annotations

import random
from itertools import pairwise

from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID

from orchd.net.policy.rounds import (
    ANNOUNCE_AT_ONCE,
    ANNOUNCE_PAUSE_S,
    PARALLEL,
    SERVERS,
    SMALL_NETWORK,
    UPKEEP_SERVERS,
    Rounds,
    Search,
)

KEY = b"\x12\x20" + bytes(32)
PEERS = [ID(b"\x12\x20" + bytes([number]) * 32) for number in range(100)]


def test_a_lookup_asks_the_closest_servers_each_once() -> None:
    search: Search[ID, str] = Search(KEY, PEERS[0])
    search.heard_of(PEERS)
    asked: list[ID] = []
    while batch := search.next_servers():
        assert len(batch) <= PARALLEL
        asked += batch
        search.heard_of(PEERS)
    assert asked == sort_peer_ids_by_distance(KEY, PEERS[1:])[:SERVERS]


def test_what_a_lookup_finds_is_put_together() -> None:
    search: Search[ID, str] = Search(KEY, PEERS[0])
    search.found(PEERS[1], ["a", "b"])
    search.found(PEERS[1], ["b", "c"])
    search.found(PEERS[0], ["d"])
    assert search.providers == {PEERS[1]: ["a", "b", "c"]}


def test_lookups_become_seldom_and_announcements_keep_their_pace() -> None:
    rounds, now, at = Rounds(600.0, 1800.0, random.Random(1)), 0.0, list[tuple[float, str]]()
    rounds.joined("topic", now)
    while now < 4 * 3600:
        at += [(now, "announce") for _ in rounds.to_announce(now)] + [(now, "look up") for _ in rounds.to_look_up(now)]
        now = rounds.next_at()
    assert sum(what == "announce" for _, what in at) in range(24, 28)
    looked = [when for when, what in at if what == "look up"]
    assert len([when for when in looked if when < 1200]) == 11
    assert all(1600 < after - before < 2000 for before, after in pairwise(looked[12:]))


def test_a_lookup_for_upkeep_asks_few() -> None:
    rounds, now, asked = Rounds(600.0, 1800.0, random.Random(1)), 0.0, list[int]()
    rounds.joined("topic", now)
    while now < 3600:
        asked += [rounds.servers(name) for name in rounds.to_look_up(now)]
        rounds.to_announce(now)
        now = rounds.next_at()
    assert asked[:5] == [SERVERS] * 5
    assert set(asked[5:]) == {UPKEEP_SERVERS}
    busy = Rounds(600.0, 5.0, random.Random(1))
    busy.joined("topic", 0.0)
    assert {busy.servers(name) for now in range(60) for name in busy.to_look_up(now)} == {SERVERS}, "never seldom"
    search: Search[ID, str] = Search(KEY, PEERS[0], UPKEEP_SERVERS)
    search.heard_of(PEERS)
    assert search.next_servers() == sort_peer_ids_by_distance(KEY, PEERS[1:])[:UPKEEP_SERVERS]


def test_a_new_peer_makes_a_small_network_announce_again() -> None:
    rounds = Rounds(600.0, 1800.0, random.Random(1))
    rounds.joined("topic", 0.0)
    rounds.to_announce(0.0)
    rounds.new_peer(100.0, SMALL_NETWORK + 1)
    assert rounds.to_announce(100.0) == []
    rounds.new_peer(100.0, SMALL_NETWORK)
    assert rounds.to_announce(100.0) == ["topic"]


def test_many_topics_are_announced_a_few_at_a_time() -> None:
    rounds = Rounds(600.0, 1800.0, random.Random(1))
    for number in range(2 * ANNOUNCE_AT_ONCE):
        rounds.joined(f"{number}", 0.0)
    first = rounds.to_announce(0.0)
    assert len(first) == ANNOUNCE_AT_ONCE
    assert rounds.to_announce(0.0) == []
    assert set(rounds.to_announce(ANNOUNCE_PAUSE_S)).isdisjoint(first)
