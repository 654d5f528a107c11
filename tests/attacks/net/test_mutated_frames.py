"""Good frames that chance has changed, on every protocol id: the node stays up, keeps nothing, and serves honest peers.

`ORCHD_FRAMES=100000` sends that many on each; `make test` a few hundred. What failed can be had again: the changes come
from a seed, `ORCHD_SEED`.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.host.exceptions import StreamFailure

from orchd.net import asking, bounds
from orchd.net.host import Host
from orchd.net.messages import BulkAt, OpenBulk
from tests.attacks.net.frames import OFFERED, frames_of, mutate
from tests.attacks.net.support import (
    attacker,
    host_of,
    leaves_nothing,
    nobody_is_banned,
    still_serves,
)
from tests.net.support import PATIENCE_S, TOPIC, Peer, cluster

FRAMES, SEED = int(os.environ.get("ORCHD_FRAMES", "150")), int(os.environ.get("ORCHD_SEED", "5"))
#: Streams at once, and frames on one of them at most.
STREAMS, FRAMES_PER_STREAM = 8, 16


@pytest.mark.parametrize("protocol", OFFERED)
async def test_mutated_frames(tmp_path: Path, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "DHT_QUESTIONS_RATE", 1e6)
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        offered = {str(name) for name in host_of(victim).basic.get_mux().get_protocols()}
        assert offered == set(OFFERED), "a protocol is new: it wants its frames here"
        await victim.network.join(TOPIC)
        manifest = await victim.publish(seed=1)
        news = victim.announcement(manifest, TOPIC)
        async with attacker(victim, b"before") as first:  # who asks for it first has the bulk port opened, for good
            await asking.ask(first, host_of(victim).id, OpenBulk(adapter=manifest.digest), BulkAt)
        with nobody_is_banned():
            async with leaves_nothing(victim), attacker(victim) as hostile:
                good = frames_of(protocol, hostile, manifest, news)
                await send_mutated(hostile, victim, protocol, good, FRAMES)
        assert [row.id for row in victim.registry.adapters()] == [manifest.id]
        await still_serves(made, victim)


async def send_mutated(hostile: Host, victim: Peer, protocol: str, good: list[bytes], count: int) -> None:
    rng = random.Random(f"{SEED} {protocol}")
    left = count

    async def one_after_the_other() -> None:
        nonlocal left
        while left > 0:
            frames = [mutate(rng, rng.choice(good), good) for _ in range(rng.randint(1, FRAMES_PER_STREAM))]
            left -= len(frames)
            await send_frames(hostile, victim, protocol, frames)

    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(one_after_the_other)


async def send_frames(hostile: Host, victim: Peer, protocol: str, frames: list[bytes]) -> None:
    """On one stream, which may end before the last; what comes back is not looked at."""
    with trio.fail_after(PATIENCE_S):
        try:
            stream = await hostile.basic.new_stream(host_of(victim).id, [TProtocol(protocol)])
        except StreamFailure:  # more at once than this protocol allows a peer
            return
        try:
            for frame in frames:
                await stream.write(frame)
            await stream.close_write()
            while await stream.read(1 << 16):
                pass
        except Exception:
            pass
        await stream.reset()
