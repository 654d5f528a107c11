"""Hundreds of connections from one place that say nothing: honest peers come in between them, and are served."""

from __future__ import annotations

from pathlib import Path

import trio

from orchd.net.policy import gate
from tests.net.support import TOPIC, cluster, until

FLOOD, COUNT = "127.0.0.2", 400


async def test_honest_peers_are_served_during_a_half_open_flood(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        assert victim.network._node is not None
        slots = victim.network._node.host.swarm._inbound_limiter
        port = int(victim.network.addresses()[0].split("/")[4])
        held = [await trio.open_tcp_stream("127.0.0.1", port, local_address=FLOOD) for _ in range(COUNT)]
        counters = victim.network.stats
        await until(
            lambda: counters().counters["inbound_refused"] + counters().counters["inbound_pushed_out"] >= COUNT // 2,
            "the flood",
        )
        assert slots.borrowed_tokens <= gate.HALF_OPEN
        honest = await made.start("honest")
        await honest.network.join(TOPIC)
        manifest = await victim.publish()
        await honest.events.wait("adapter.announced", id=manifest.id)
        await honest.network.fetch(manifest.id)
        for stream in held:
            await stream.aclose()
        await until(lambda: slots.borrowed_tokens <= 2, "the slots are given back")
        assert victim.network.status().restarts == 0
