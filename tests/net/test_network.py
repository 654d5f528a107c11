"""The network as the daemon uses it: several nodes, one bootstrap address, real adapters."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.net.support import TOPIC, cluster, joined_cluster, until


async def test_five_nodes_from_one_address_hear_each_other(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        peers = await joined_cluster(made, 5)
        for number, author in enumerate(peers):
            manifest = await author.publish(seed=number)
            begun = trio.current_time()
            for other in peers:
                if other is not author:
                    await other.events.wait("adapter.announced", id=manifest.id)
            print(f"heard by all after {trio.current_time() - begun:.3f} s")


async def test_fetch_brings_the_adapter_through_the_door(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made:
        a, b = await joined_cluster(made, 2)
        manifest = await a.publish(rank=512)
        await b.events.wait("adapter.announced", id=manifest.id)
        told: list[tuple[int, int]] = []
        admission = await b.network.fetch(manifest.id, progress=lambda done, total: told.append((done, total)))
        assert (admission.verdict, admission.new) == ("admitted", True)
        assert b.registry.manifest(manifest.id).envelope == manifest.envelope
        assert told[0] == (0, manifest.record.size)
        assert told[-1] == (manifest.record.size, manifest.record.size)
        assert admission.row.topics == (TOPIC,)
        assert list((b.folder / "fetching").iterdir()) == []


async def test_a_late_comer_hears_everything(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        manifests = [await a.publish(seed=number) for number in range(3)]
        for manifest in manifests:
            await b.events.wait("adapter.announced", id=manifest.id)
        made.stop(a)
        await b.events.wait("net.peer.lost", peer=a.network.peer_id)
        late = await made.start("late", bootstrap=False, bootstrap_to=None) if False else None
        assert late is None
        c = await made.start("c", bootstrap=False)
        await c.network.join(TOPIC)
        await c.network.connect(b.network.addresses()[0])
        for manifest in manifests:
            await c.events.wait("adapter.announced", id=manifest.id)
        assert len(c.registry.announcements(TOPIC)) == 3
        await until(lambda: c.network.topics()[0].members == 1)
