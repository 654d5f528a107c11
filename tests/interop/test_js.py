"""A js-libp2p member, written from the pages: it hears, verifies and fetches, and what it publishes is admitted."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from orchd.errors import NoProvider
from orchd.net.policy.names import Invite, invitation, private_name
from orchd.records import Manifest, Verified
from tests.attacks.net.test_lying_providers import Swapping, Tampering
from tests.interop.fetch import JS, NODE
from tests.interop.javascript import JavaScriptFailed, JsMember, js_member
from tests.net.support import TOPIC, Peer, cluster, joined_cluster, until
from tests.vectors import make

pytestmark = pytest.mark.usefixtures("js")

#: An adapter of 4 MiB, 65 chunks: more than a Yamux window.
WIDTH, RANK = 1024, 512
#: Records: more than LISTED, so that ranges are cut.
MANY = 80


def digests(peer: Peer, manifest: Verified[Manifest]) -> dict[str, str]:
    """The files of an adapter that is here: their SHA-256 by path, from their bytes."""
    paths = {entry.path: peer.registry.blobs.path(entry.sha256) for entry in manifest.record.files}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}


async def fetched(js: JsMember, manifest: Verified[Manifest], peers: list[Peer], *, bulk: bool = False) -> None:
    """The client gets an adapter whose hashes agree, byte for byte what the first of these peers has."""
    ids = [peer.network.peer_id for peer in peers]
    got = await js.order("fetch", adapter=manifest.digest.hex(), peers=ids, bulk=bulk)
    assert got == {"id": manifest.id, "name": manifest.record.name, "files": digests(peers[0], manifest)}


async def meet(js: JsMember, peer: Peer) -> None:
    """The client joins, told of one node alone."""
    await js.order("connect", address=peer.network.addresses()[0])
    await js.order("join", topic=TOPIC)
    await js.event("repaired", peer=peer.network.peer_id, topic=TOPIC)


def test_javascript_reaches_the_verdicts_of_the_records() -> None:
    done = subprocess.run([NODE, "vectors.mjs", make.FILE], cwd=JS, capture_output=True, text=True, check=True)
    *different, count = done.stdout.splitlines()
    assert different == []
    assert int(count.split()[0]) > 100


async def test_it_finds_the_members_hears_of_adapters_and_fetches_them(tmp_path: Path) -> None:
    async with cluster(tmp_path, WIDTH) as made, js_member() as js:
        a, b = await joined_cluster(made, 2)
        old = await a.publish(seed=1, rank=RANK)
        await b.events.wait("adapter.announced", id=old.id)

        await meet(js, a)
        await js.event("announcement", manifest=old.digest.hex())
        found = await js.order("find", topic=TOPIC)
        assert sorted(found) == sorted([a.network.peer_id, b.network.peer_id])
        await js.event("repaired", peer=b.network.peer_id)

        new = await b.publish(seed=2, rank=RANK)
        await js.event("announcement", manifest=new.digest.hex(), way="mesh")
        assert await js.order("ping", peer=b.network.peer_id) >= 0
        await fetched(js, new, [b])
        await fetched(js, new, [b], bulk=True)
        assert (await b.network.fetch(old.id)).verdict == "admitted"
        await fetched(js, old, [a, b])


async def test_orchd_finds_it_and_admits_what_it_publishes(tmp_path: Path) -> None:
    async with cluster(tmp_path, WIDTH) as made, js_member() as js:
        (a,) = await joined_cluster(made, 1)
        model = await a.publish(seed=1, rank=RANK)
        await meet(js, a)
        await fetched(js, model, [a])
        assert a.network.peer_id in await js.order("announce", topic=TOPIC)

        b = await made.start("b")  # told of the first node alone: the other it finds on the DHT
        await b.network.join(TOPIC)
        await b.events.wait("net.peer.connected", peer=js.peer)
        await js.event("member", peer=b.network.peer_id, topics=[TOPIC])

        id = await js.order("publish", like=model.digest.hex(), topic=TOPIC, name="from-javascript")
        heard = await b.events.wait("adapter.announced", id=id)
        assert heard["topics"] == [TOPIC]
        assert (await b.network.fetch(id, peers=[js.peer])).verdict == "admitted"
        assert b.registry.manifest(id).record.name == "from-javascript"
        gave = [event["bytes"] for event in js.events if event["event"] == "gave"]
        assert sum(gave) > 0.9 * model.record.size  # the configuration is here already, like the model's
        assert (await a.network.fetch(id, peers=[b.network.peer_id])).verdict == "admitted"


async def test_it_is_reached_through_our_relay(tmp_path: Path) -> None:
    async with cluster(tmp_path, WIDTH) as made:
        (a,) = await joined_cluster(made, 1)
        model = await a.publish(seed=1, rank=RANK)
        async with js_member(relay=a.network.addresses()[0]) as js:
            assert js.addresses == (f"{a.network.addresses()[0]}/p2p-circuit/p2p/{js.peer}",)
            await js.order("join", topic=TOPIC)
            await fetched(js, model, [a])
            await js.order("announce", topic=TOPIC)
            b = await made.start("b")
            await b.network.join(TOPIC)
            found = await b.events.wait("net.peer.connected", peer=js.peer)
            assert "/p2p-circuit" in found["address"]
            id = await js.order("publish", like=model.digest.hex(), topic=TOPIC, name="from-behind")
            await b.events.wait("adapter.announced", id=id)
            assert (await b.network.fetch(id, peers=[js.peer])).verdict == "admitted"


async def test_it_takes_nothing_that_does_not_hold(tmp_path: Path) -> None:
    """One node changes a bit of every answer, another gives the same manifest whatever it is asked for."""
    async with cluster(tmp_path, WIDTH) as made, js_member() as js:
        liar = await made.start("liar", library=Tampering)
        swapper = await made.start("swapper", library=Swapping)
        for peer, words in ((liar, "a chunk with another hash"), (swapper, "the manifest of another adapter")):
            await peer.network.join(TOPIC)
            manifest = await peer.publish(rank=RANK)
            Swapping.other = peer.make(seed=7).envelope
            await js.order("connect", address=peer.network.addresses()[0])
            await js.event("member", peer=peer.network.peer_id)
            with pytest.raises(JavaScriptFailed, match=words):
                await fetched(js, manifest, [peer])


async def test_many_records_are_compared_in_both_directions(tmp_path: Path) -> None:
    """More than are listed at once, where no mesh is: the client asks the first node, and is asked by the second."""
    secret = bytes(range(32))
    topic = private_name("friends", secret)
    async with cluster(tmp_path) as made, js_member() as js:
        a = await made.start("a")
        await a.network.join(topic, secret)
        manifest = a.make()
        for _ in range(MANY):
            await a.network.tell(a.announcement(manifest, topic))
        await js.order("connect", address=a.network.addresses()[0])
        await js.order("join", topic=topic, secret=secret.hex())
        await js.event("repaired", peer=a.network.peer_id, learned=MANY, told=0)
        await js.order("join", topic=topic, secret=secret.hex())  # and compare again: the fingerprints are the same
        await js.event("repaired", peer=a.network.peer_id, learned=0, told=0, rounds=1)
        made.stop(a)

        b = await made.start("b", bootstrap=())
        await b.network.connect(js.addresses[0])
        await b.network.join(topic, secret)
        await until(lambda: len(b.registry.announcements(topic)) == MANY, "all of them")


async def test_a_private_topic(tmp_path: Path) -> None:
    """Its news are pushed and repaired; an outsider gets neither news nor files, on either side."""
    secret = bytes(range(32))
    topic = private_name("friends", secret)
    async with cluster(tmp_path) as made, js_member() as js, js_member() as outsider:
        a, b = await joined_cluster(made, 2)
        await a.network.join(topic, secret)
        old = await a.publish(seed=1, topic=topic)
        line = invitation(Invite("friends", secret, tuple(a.network.addresses())))
        assert await js.order("accept", line=line) == topic
        await js.event("announcement", manifest=old.digest.hex(), way="repair")
        await outsider.order("connect", address=a.network.addresses()[0])
        await outsider.order("join", topic=topic, secret=secret[::-1].hex())
        await outsider.event("member", peer=a.network.peer_id, topics=[])
        new = await a.publish(seed=2, topic=topic)
        await js.event("announcement", manifest=new.digest.hex(), way="push")
        await fetched(js, new, [a])
        with pytest.raises(JavaScriptFailed, match="the peer answers: unknown"):
            await fetched(outsider, new, [a])

        id = await js.order("publish", like=new.digest.hex(), topic=topic, name="from-javascript", push=True)
        await a.events.wait("adapter.announced", id=id, peer=js.peer)
        await b.network.connect(js.addresses[0])
        with pytest.raises(NoProvider, match="unknown"):
            await b.network.fetch(id, peers=[js.peer])
        assert (await a.network.fetch(id)).verdict == "admitted"
        assert not [event for event in outsider.events if event["event"] == "announcement"]
