"""News over GossipSub between real nodes, and what a hostile neighbour can't do with it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service

from orchd.identity import Identity
from orchd.net import gossip, repair
from orchd.net.gossip import PREFIX, PROTOCOL
from orchd.net.host import Host, run_host
from orchd.net.news import News
from orchd.net.policy import gossip as policy
from orchd.net.policy import repair as repairing
from orchd.records import KeyRotation, sign
from orchd.registry.trust import BLOCK
from tests.net.support import LOOPBACK, PATIENCE_S, TOPIC, Peer, cluster, joined_cluster, now_ms, until
from tests.net.test_records import OTHER, decide, equivocate

NEVER_S = 1e9


def heard(peer: Peer) -> int:
    return len(peer.registry.announcements(TOPIC))


def gossip_of(peer: Peer) -> gossip.Gossip:
    assert peer.network._node is not None
    return peer.network._node.records.gossip


async def meshed(peers: list[Peer]) -> None:
    """When everybody is known to take gossip."""
    ids = {peer.network.peer_id for peer in peers}

    def subscribers(peer: Peer) -> set[str]:
        return {str(one) for one in gossip_of(peer)._pubsub.peer_topics.get(PREFIX + TOPIC, ())}

    for peer in peers:
        await until(lambda peer=peer: subscribers(peer) == ids - {peer.network.peer_id}, "subscriptions")  # type: ignore[misc]
        await until(lambda peer=peer: gossip_of(peer)._router.mesh.get(PREFIX + TOPIC), "a mesh")  # type: ignore[misc]


@pytest.fixture
def gossip_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No record goes from node to node in another way."""

    async def nothing(*_: Any, **__: Any) -> None:
        pass

    monkeypatch.setattr(News, "_push", nothing)
    monkeypatch.setattr(repair.Repair, "run", nothing)


@pytest.mark.usefixtures("gossip_alone")
async def test_news_travels_by_gossip_over_neighbours(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a", bootstrap=())
        b = await made.start("b", bootstrap=tuple(a.network.addresses()), lookup_interval_s=NEVER_S)
        for peer in (a, b):
            await peer.network.join(TOPIC)
        await meshed([a, b])
        manifest = await a.publish()
        await b.events.wait("adapter.announced", id=manifest.id, peer=a.network.peer_id)
        assert b.network.stats().counters["gossip_passed"] == 1
        assert a.network.stats().counters["gossip_published"] == 1
        await b.network.leave(TOPIC)
        await until(lambda: not gossip_of(a)._pubsub.peer_topics, "unsubscribed")
        assert gossip_of(b)._pubsub.topic_validators == {}


async def test_what_is_published_before_there_is_a_mesh_is_told_straight(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        await meshed([a, b])
        assert a.network._node is not None
        peer = next(iter(a.network._node.host.peers()))
        assert gossip_of(a).reaches(peer, {TOPIC})
        assert not gossip_of(a).reaches(peer, {TOPIC, "other"})
        assert gossip_of(a).reaches(peer, {"lan/flat"}), "no business of gossip's"
        gossip_of(a)._router.mesh[PREFIX + TOPIC].clear()
        assert not gossip_of(a).reaches(peer, {TOPIC})
        manifest = await a.publish()
        await b.events.wait("adapter.announced", id=manifest.id)


async def test_the_half_of_a_proof_that_another_topic_names_is_told_straight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gossip carries no record under a topic that it does not name, and whoever hears only one half learns nothing."""

    async def nothing(*_: Any, **__: Any) -> None:
        pass

    monkeypatch.setattr(repair.Repair, "run", nothing)
    async with cluster(tmp_path) as made:
        liar, x, z = [await made.start(name) for name in ("liar", "x", "z")]
        for peer, topics in ((liar, (TOPIC, OTHER)), (x, (TOPIC,)), (z, (TOPIC, OTHER))):
            for topic in topics:
                await peer.network.join(topic)
        await meshed([liar, x, z])
        await equivocate(liar)
        await x.events.wait("author.equivocated", author=liar.identity.author)


async def test_a_burst_of_sixty_reaches_four_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library alone drops 25 of 60 at 20 a second; these come as fast as they can be signed."""
    monkeypatch.setattr(repairing, "EVERY_S", 1.0)
    async with cluster(tmp_path) as made:
        peers = await joined_cluster(made, 5)
        await meshed(peers)
        manifest = peers[0].make()
        for _ in range(60):
            await peers[0].network.tell(peers[0].announcement(manifest))
        for peer in peers[1:]:
            await until(lambda peer=peer: heard(peer) == 60, f"all sixty at {peer.name}")  # type: ignore[misc]
        by_gossip = [peer.network.stats().counters["gossip_passed"] for peer in peers[1:]]
        assert min(by_gossip) > 0, "gossip has had its part"


@pytest.mark.usefixtures("gossip_alone")
async def test_what_waits_is_kept_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        await meshed([a, b])
        batches: list[int] = []
        go_on, keep = threading.Event(), b.registry.news.take_all

        def slowly(heard: list[Any]) -> list[Any]:
            batches.append(len(heard))
            go_on.wait(PATIENCE_S)
            return keep(heard)

        monkeypatch.setattr(b.registry.news, "take_all", slowly)
        manifest = a.make()
        for _ in range(30):
            await a.network.tell(a.announcement(manifest))
        await until(lambda: gossip_of(b)._inbox.statistics().current_buffer_used == 29, "the others wait")
        go_on.set()
        await until(lambda: heard(b) == 30, "all")
        assert batches == [1, 29]


@pytest.mark.usefixtures("gossip_alone")
async def test_the_stock_limit_would_drop_most_of_a_burst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        await meshed([a, b])
        gossip_of(a)._router.spam_protection_enabled = True
        gossip_of(a)._router.max_messages_per_topic_per_second = 2
        manifest, announcements = a.make(), []
        for _ in range(40):
            announcements.append(a.announcement(manifest))
            await a.network.tell(announcements[-1])
        await until(
            lambda: a.network.stats().counters["gossip_published"] == 40 and heard(b) >= 2,
            "what the limit lets through",
        )
        dropped = 40 - heard(b)
        gossip_of(a)._router.spam_protection_enabled = False
        for one in announcements:
            await gossip_of(a).publish(TOPIC, one.envelope)
        await until(lambda: heard(b) == 40, "all of them")
        assert dropped > 20


async def test_a_record_that_names_no_topic_goes_on_under_others(tmp_path: Path) -> None:
    """A rotation told where the author was known goes to everybody who knew the author, under their topic."""
    async with cluster(tmp_path) as made:
        a, b, c = [await made.start(name) for name in "abc"]
        for peer, topics in ((a, (TOPIC,)), (b, (TOPIC, "other")), (c, ("other",))):
            for topic in topics:
                await peer.network.join(topic)
        manifest = b.make()
        await b.network.tell(b.announcement(manifest, "other"))
        await b.network.tell(b.announcement(manifest, TOPIC))
        for peer in (a, c):
            await peer.events.wait("adapter.announced", id=manifest.id)
        new = Identity.from_seed(b"n" * 32)
        record = KeyRotation(old=b.identity.public_key, new=new.public_key, created_ms=now_ms())
        await a.network.tell(sign(record, b.identity, new))
        await c.events.wait("author.key_changed", new=new.author)


# ---- hostile neighbours --------------------------------------------------------------------------------------------


@asynccontextmanager
async def a_stranger(victim: Peer) -> AsyncIterator[tuple[Host, Pubsub]]:
    """A neighbour in the victim's mesh, with the library as it comes."""
    async with run_host(Identity.from_seed(b"x" * 32), LOOPBACK) as host:
        router = GossipSub([PROTOCOL], 3, 2, 4, heartbeat_interval=1, spam_protection_enabled=False)
        pubsub = Pubsub(host.basic, router)
        async with background_trio_service(router), background_trio_service(pubsub):
            await pubsub.wait_until_ready()
            await pubsub.subscribe(PREFIX + TOPIC)
            assert victim.network._node is not None
            target = victim.network._node.host
            await host.connect(target.id, target.basic.get_transport_addrs())
            await until(lambda: target.id in pubsub.peers and host.id in gossip_of(victim)._pubsub.peers)
            await until(lambda: target.id in router.mesh.get(PREFIX + TOPIC, ()), "the victim is in the mesh")
            yield host, pubsub
        pubsub.seen_messages.stop()


async def test_who_passes_on_what_is_forged_is_dropped(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        author = made.make("author")
        envelope = author.announcement(author.make()).envelope.replace(b"test/topic", b"test/tonic")
        async with a_stranger(victim) as (host, pubsub):
            await pubsub.publish(PREFIX + TOPIC, envelope)
            await victim.events.wait("net.peer.lost", peer=str(host.id))
        assert heard(victim) == 0
        assert victim.network.stats().counters["gossip_malformed"] == 1


async def test_what_is_of_no_kind_known_here_is_dropped_and_its_bearer_is_not(tmp_path: Path) -> None:
    """A newer node may pass on records that this one has no name for."""
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        author = made.make("author")
        good = author.announcement(author.make())
        async with a_stranger(victim) as (host, pubsub):
            for data in (b"", b"garbage", good.envelope.replace(b"orchd.announcement", b"orchd.invitations.")):
                await pubsub.publish(PREFIX + TOPIC, data)
            await pubsub.publish(PREFIX + TOPIC, good.envelope)
            await until(lambda: heard(victim) == 1, "the good one")
            assert victim.network.stats().counters["gossip_malformed"] == 3
            assert str(host.id) in {peer.peer for peer in victim.network.peers()}


async def test_a_blocked_author_is_not_passed_on(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        author = made.make("author")
        await decide(victim, author.identity.author, BLOCK)
        async with a_stranger(victim) as (_, pubsub):
            await pubsub.publish(PREFIX + TOPIC, author.announcement(author.make()).envelope)
            await until(lambda: victim.network.stats().counters["gossip_blocked"] == 1, "it has come")
        assert victim.network.stats().counters["gossip_passed"] == 0
        assert heard(victim) == 0


async def test_a_flood_under_many_keys_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "NEWCOMER_BURST", 5.0)
    monkeypatch.setattr(policy, "NEWCOMER_RATE", 0.0)
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        author = made.make("author")
        example = author.announcement(author.make()).record
        async with a_stranger(victim) as (_, pubsub):
            for number in range(20):
                key = Identity.from_seed(number.to_bytes(32))
                signed = sign(msgspec.structs.replace(example, author=key.public_key), key)
                await pubsub.publish(PREFIX + TOPIC, signed.envelope)
            await until(lambda: victim.network.stats().counters["gossip_newcomer_limit"] == 15, "the rest is refused")
            await until(lambda: heard(victim) == 5)


async def test_a_life_of_gossip_leaves_no_thread(tmp_path: Path) -> None:
    """The library's cache of seen messages starts a thread, and nobody there ends it."""

    def sweepers() -> int:
        return sum("_background_cleanup" in thread.name for thread in threading.enumerate())

    before = sweepers()
    async with cluster(tmp_path) as made:
        await made.start("a")
        await until(lambda: sweepers() == before + 1, "the control")
    await until(lambda: sweepers() == before, "the thread has ended")
