"""go-libp2p, through its daemon: it pings and is pinged, finds, hears, tells, fetches, gives and relays."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from libp2p.network.health.ping_probe import ping_connection
from libp2p.peer.id import ID
from msgspec.structs import replace

from orchd.net import relayed
from orchd.records import sign
from tests.helpers import BOB
from tests.interop import plain
from tests.interop.p2pd import P2pd, P2pdFailed, exactly, run_p2pd
from tests.net.support import PATIENCE_S, TOPIC, Peer, cluster, joined_cluster, until
from tests.vectors.independent import verify

pytestmark = pytest.mark.usefixtures("p2pd")

PING = "/ipfs/ping/1.0.0"
#: An adapter of 4 MiB, 65 chunks: more than a Yamux window.
WIDTH, RANK = 1024, 512
#: Its routing table fills some time after a peer has connected, and no event tells of it; in seconds.
AGAIN_S = 0.1


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for sockets, whose paths may not be long."""
    with tempfile.TemporaryDirectory(prefix="p2pd-") as folder:
        yield Path(folder)


async def find(go: P2pd, *peers: Peer) -> None:
    """All of these are found under the topic."""
    wanted = {peer.network.peer_id for peer in peers}
    with trio.fail_after(PATIENCE_S):
        while True:
            if wanted <= await go.providers(plain.topic_cid(TOPIC)):
                return
            await trio.sleep(AGAIN_S)


async def announce(go: P2pd) -> None:
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                return await go.provide(plain.topic_cid(TOPIC))
            except P2pdFailed:
                await trio.sleep(AGAIN_S)


async def fetch(go: P2pd, peer: Peer, adapter: bytes) -> plain.Adapter:
    async with await go.open(peer.network.peer_id, plain.PROTOCOL) as stream:
        with trio.fail_after(PATIENCE_S):
            return await plain.fetch(stream, adapter)


async def test_go_pings_and_is_pinged(tmp_path: Path, short: Path) -> None:
    async with cluster(tmp_path) as made:
        (a,) = await joined_cluster(made, 1)
        async with run_p2pd(short, a.network.addresses()[0]) as go:
            await go.connect(a.network.addresses()[0])
            sent = os.urandom(32)
            async with await go.open(a.network.peer_id, PING) as stream:
                for _ in range(3):
                    await stream.send_all(sent)
                    with trio.fail_after(PATIENCE_S):
                        assert await exactly(stream, 32) == sent
            await a.events.wait("net.peer.connected", peer=go.peer)
            assert a.network._node is not None
            (connection,) = a.network._node.host.swarm.get_connections(ID.from_string(go.peer))
            assert (await ping_connection(connection, ping_timeout=PATIENCE_S)).success


async def test_go_finds_the_members_hears_of_an_adapter_fetches_it_and_tells(tmp_path: Path, short: Path) -> None:
    async with cluster(tmp_path, WIDTH) as made:
        a, b = await joined_cluster(made, 2)
        async with run_p2pd(short, a.network.addresses()[0]) as go:
            await go.connect(a.network.addresses()[0])
            news = await go.subscribe(plain.MESH + TOPIC)
            await find(go, a, b)
            manifest = await b.publish(seed=1, rank=RANK)
            async with aclosing(news):
                with trio.fail_after(PATIENCE_S):
                    _, announcement = verify(await anext(news), "announcement")
            assert announcement["manifest"] == manifest.digest
            assert announcement["topics"] == [TOPIC]
            got = await fetch(go, b, manifest.digest)
            assert got.id == manifest.id
            blobs = {entry.sha256: b.registry.blobs.path(entry.sha256) for entry in manifest.record.files}
            assert got.files == {digest: path.read_bytes() for digest, path in blobs.items()}
            told = replace(b.announcement(manifest).record, author=BOB.public_key)
            await go.publish(plain.MESH + TOPIC, sign(told, BOB).envelope)
            await a.events.wait("adapter.announced", id=manifest.id, author=BOB.author)


async def test_orchd_finds_go_and_fetches_from_it_what_it_has_fetched(tmp_path: Path, short: Path) -> None:
    async with cluster(tmp_path, WIDTH) as made:
        (a,) = await joined_cluster(made, 1)
        manifest = await a.publish(seed=1, rank=RANK)
        async with run_p2pd(short, a.network.addresses()[0]) as go:
            await go.connect(a.network.addresses()[0])
            got = await fetch(go, a, manifest.digest)
            asked: set[str] = set()

            async def answer(stream: trio.SocketStream, peer: str) -> None:
                asked.add(peer)
                await plain.serve(stream, (plain.topic_key(TOPIC),), {manifest.digest: got})

            await go.handle(plain.PROTOCOL, answer)
            await announce(go)
            b = await made.start("b")  # told of the first node alone: the other it finds on the DHT
            await b.network.join(TOPIC)
            await b.events.wait("net.peer.connected", peer=go.peer)
            assert (await b.network.fetch(manifest.id, peers=[go.peer])).verdict == "admitted"
            assert b.network.peer_id in asked


async def test_two_nodes_that_nobody_can_reach_meet_through_go(
    tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayed, "FIRST_S", 0.0)  # slots are asked for without waiting for who might come
    async with cluster(tmp_path) as made, run_p2pd(short, relays=True) as go:
        here, there = [await made.start(name, listen=(), bootstrap=go.addresses) for name in ("here", "there")]
        for peer in (here, there):
            await peer.network.join(TOPIC)
        met = await here.events.wait("net.peer.connected", peer=there.network.peer_id)
        assert met["address"].startswith(f"{go.addresses[0]}/p2p-circuit")
        await until(lambda: here.network.topics()[0].members, "members")
        manifest = await there.publish(seed=1)
        await here.events.wait("adapter.announced", id=manifest.id)
        assert (await here.network.fetch(manifest.id)).verdict == "admitted"
