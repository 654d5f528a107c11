"""A clock that is an hour off, in either direction: nobody falls or is blamed, and when it is right all is heard."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchd.net.policy import dealing
from tests.attacks.net.support import node_of, still_serves
from tests.net import support
from tests.net.support import TOPIC, Cluster, Peer, cluster, now_ms

HOUR_MS = 3_600_000


def wrong_clock(monkeypatch: pytest.MonkeyPatch, made: Cluster, name: str, off_ms: int) -> tuple[Peer, list[int]]:
    """A node whose clock is off, until the figure in the list is changed."""
    off = [off_ms]
    with monkeypatch.context() as patch:
        patch.setattr(support, "now_ms", lambda: now_ms() + off[0])
        return made.make(name), off


@pytest.mark.parametrize("off_ms", [HOUR_MS, -HOUR_MS], ids=["fast", "slow"])
async def test_a_clock_an_hour_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off_ms: int) -> None:
    monkeypatch.setattr(dealing, "REFUSED_S", 0.0)
    async with cluster(tmp_path) as made:
        right = await made.start("right")
        wrong, off = wrong_clock(monkeypatch, made, "wrong", off_ms)
        await made.run(wrong)
        for peer in (right, wrong):
            await peer.network.join(TOPIC)
        await right.events.wait("net.peer.connected", peer=wrong.network.peer_id)
        with monkeypatch.context() as patch:
            patch.setattr(support, "now_ms", lambda: now_ms() + off[0])
            of_wrong = await wrong.publish(seed=1)
        of_right = await right.publish(seed=2)
        early, late = (of_wrong, of_right) if off_ms > 0 else (of_right, of_wrong)
        hears, waits = (wrong, right) if off_ms > 0 else (right, wrong)
        await hears.events.wait("adapter.announced", id=late.id)
        await still_serves(made, right)
        assert early.id not in {row.adapter for row in waits.registry.announcements()}, "it comes from the future"
        for peer in (right, wrong):
            assert peer.network.bans() == []
            assert peer.network.status().restarts == 0
        # An hour later, or with the clock set right: the next repair brings it.
        off[0] = 0
        later = [HOUR_MS if off_ms > 0 else 0]
        monkeypatch.setattr(right.registry, "clock", lambda: now_ms() + later[0])
        await node_of(waits).records.repair.with_peer(node_of(hears).host.id)
        await waits.events.wait("adapter.announced", id=early.id)
