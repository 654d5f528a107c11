"""Greetings that do not come about are made up for."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from libp2p.peer.id import ID

from orchd.errors import PeerTimeout
from orchd.net import node
from orchd.net.records import Records
from tests.net.support import cluster, until


@pytest.mark.parametrize("is_identified", [True, False])
async def test_a_peer_that_did_not_hear_of_a_topic_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_identified: bool
) -> None:
    """Both know each other already: that one has said something once is not enough."""
    monkeypatch.setattr(node, "GREET_AGAIN_S", 0.2)
    greet, lost = Records.greet, list[ID]()

    async with cluster(tmp_path) as made:
        a = await made.start("a")
        b = await made.start("b")
        await a.network.join("shared")
        for peer in (a, b):
            await until(lambda peer=peer: peer.network._node and peer.network._node.host.peers(), "connected")  # type: ignore[misc]
            of = peer.network._node
            assert of is not None
            await until(lambda of=of: of.news.knows(of.host.peers()[0]), "greeted")  # type: ignore[misc]

        async def lose_the_first(self: Records, peer: ID) -> None:
            if not lost:
                lost.append(peer)
                if not is_identified:  # as when the two have dialled each other at once
                    of.host.basic.get_peerstore().clear_protocol_data(peer)
                raise PeerTimeout(f"{peer} did not answer")
            await greet(self, peer)

        monkeypatch.setattr(Records, "greet", lose_the_first)
        await b.network.join("shared")
        await until(lambda: b.network.topics()[0].members == 1, "b is told of")
        await until(lambda: a.network.topics()[0].members == 1, "a is told of")
        assert lost
        of = b.network._node
        assert of is not None
        await until(lambda: not of._ungreeted, "and b's own greeting came through")


async def test_a_greeting_from_before_does_not_make_up_for_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the topics of then; that it came through says nothing of the new one."""
    monkeypatch.setattr(node, "GREET_AGAIN_S", 3600.0)
    greet, go_on, begun = Records.greet, trio.Event(), trio.Event()

    async with cluster(tmp_path) as made:
        await made.start("a")
        b = await made.start("b")
        of = b.network._node
        assert of is not None
        await until(of.host.peers, "connected")
        (peer,) = of.host.peers()
        await until(lambda: of.news.knows(peer), "greeted")

        async def first_waits_second_fails(self: Records, peer: ID) -> None:
            if begun.is_set():
                raise PeerTimeout(f"{peer} did not answer")
            await greet(self, peer)
            begun.set()
            await go_on.wait()

        monkeypatch.setattr(Records, "greet", first_waits_second_fails)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(of._greet, peer)
            await begun.wait()
            await b.network.join("shared")
            await until(lambda: of._ungreeted == {peer}, "lost")
            go_on.set()
        assert of._ungreeted == {peer}
