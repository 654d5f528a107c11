"""Whom to dial of the members who were found."""

from __future__ import annotations

import random

from orchd.net.policy import seeking
from orchd.net.policy.seeking import MEMBERS_PER_PLACE, MEMBERS_WANTED, PEERS_SOUGHT, UNREACHABLE_PAUSE_S, Seeking
from tests.sim.world import Peer


def people(count: int, name: str = "p") -> list[Peer]:
    return [Peer(f"{name}{number}") for number in range(count)]


def seeker() -> Seeking[Peer]:
    return Seeking(random.Random(1))


def test_some_of_many_are_enough() -> None:
    found = {peer: f"10.0.0.{number}" for number, peer in enumerate(people(200))}
    chosen = seeker().choose(found, {}, (), 0.0)
    assert len(chosen) == len(set(chosen)) == MEMBERS_WANTED
    members = {peer: found[peer] for peer in chosen[:20]}
    more = seeker().choose(found, members, members, 0.0)
    assert len(more) == MEMBERS_WANTED - 20
    assert set(more).isdisjoint(members)
    assert len(seeker().choose(found, {}, people(PEERS_SOUGHT - 3, "other"), 0.0)) == 3


def test_a_crowd_at_one_place_gets_few_connections() -> None:
    honest = {peer: f"10.0.0.{number}" for number, peer in enumerate(people(20))}
    found = dict.fromkeys(people(500, "sybil"), "192.0.2.1") | honest
    chosen = seeker().choose(found, {}, (), 0.0)
    assert set(honest) <= set(chosen)
    assert len(chosen) == 20 + MEMBERS_PER_PLACE
    held = {peer: "192.0.2.1" for peer in chosen if peer not in honest}
    assert set(seeker().choose(found, held, held, 0.0)) == set(honest)


def test_on_ones_own_machine_places_say_nothing() -> None:
    assert len(seeker().choose(dict.fromkeys(people(10), ""), {}, (), 0.0)) == 10


def test_who_could_not_be_reached_is_left_alone_for_a_while() -> None:
    seek, (peer,) = seeker(), people(1)
    seek.failed(peer, 0.0)
    assert seek.avoids(peer, UNREACHABLE_PAUSE_S - 1)
    assert seek.choose({peer: ""}, {}, (), UNREACHABLE_PAUSE_S - 1) == []
    assert seek.choose({peer: ""}, {}, (), UNREACHABLE_PAUSE_S) == [peer]
    seek.failed(peer, 100.0)
    seek.forgive(peer)
    assert not seek.avoids(peer, 101.0)


def test_memory_is_bounded() -> None:
    seek = seeker()
    for peer in people(seeking.UNREACHABLE + 10):
        seek.failed(peer, 0.0)
    assert not seek.avoids(people(1)[0], 1.0)
    assert len(seek._avoided) == seeking.UNREACHABLE
