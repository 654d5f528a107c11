"""Bytes of unfinished questions: a share for everybody."""

from __future__ import annotations

from orchd.net.policy.unfinished import IN_ALL, OF_ONE, Unfinished


def test_one_peer_has_its_share_however_many_streams() -> None:
    unfinished: Unfinished[str] = Unfinished()
    assert all(unfinished.change("one", OF_ONE // 4) for _ in range(4))
    assert not unfinished.change("one", 1)
    assert unfinished.change("other", 1000)
    assert unfinished.change("one", -1)


def test_who_holds_more_than_the_share_of_a_crowd_goes() -> None:
    unfinished: Unfinished[int] = Unfinished()
    peers = IN_ALL // OF_ONE
    assert all(unfinished.change(peer, OF_ONE) for peer in range(peers))
    assert unfinished.change(peers, 1000), "who holds little is not asked to go"
    assert not unfinished.change(0, 1)


def test_what_has_ended_is_forgotten() -> None:
    unfinished: Unfinished[str] = Unfinished()
    unfinished.change("one", 1000)
    unfinished.change("one", -1000)
    assert unfinished.total == 0
    assert not unfinished._waiting
