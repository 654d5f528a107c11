"""The network as the daemon uses it: several nodes, one bootstrap address, real adapters."""

from __future__ import annotations

import gc
import os
import random
import socket
from pathlib import Path

import pytest
import trio

from orchd.config import NetConfig
from orchd.errors import AddressInvalid, ListenFailed, NetworkDown, NoProvider, PeerUnreachable, TopicInvalid
from orchd.identity import Identity
from orchd.net import Network, Transferred
from orchd.net.host import peer_id_of
from tests.net.support import TOPIC, Recorder, cluster, joined_cluster, now_ms, until

# ---- meeting, news -----------------------------------------------------------------------------------------------


async def test_five_nodes_from_one_address_hear_each_other(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        peers = await joined_cluster(made, 5)
        for number, author in enumerate(peers):
            manifest = await author.publish(seed=number)
            for other in peers:
                if other is not author:
                    heard = await other.events.wait("adapter.announced", id=manifest.id)
                    assert heard["author"] == author.identity.author
                    assert heard["topics"] == [TOPIC]


async def test_a_node_that_joins_later_hears_everything(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        manifests = [await a.publish(seed=number) for number in range(3)]
        for manifest in manifests:
            await b.events.wait("adapter.announced", id=manifest.id)
        made.stop(a)
        await b.events.wait("net.peer.lost", peer=a.network.peer_id)
        c = await made.start("c", bootstrap=())
        assert await c.network.connect(b.network.addresses()[0]) == b.network.peer_id
        await c.network.join(TOPIC)
        for manifest in manifests:
            await c.events.wait("adapter.announced", id=manifest.id, peer=b.network.peer_id)
        assert len(c.registry.announcements(TOPIC)) == 3


async def test_more_announcements_than_one_message_holds(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a")
        await a.network.join(TOPIC)
        manifest = a.make()
        for _ in range(70):
            await a.network.tell(a.announcement(manifest))
        b = await made.start("b")
        await b.network.join(TOPIC)
        await until(lambda: len(b.registry.news.after([TOPIC], 0, "", 100)) == 70, "two pages of announcements")


async def test_news_of_other_topics_is_not_taken(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        await a.network.join("other")
        await a.publish(seed=1, topic="other")
        manifest = await a.publish(seed=2)
        await b.events.wait("adapter.announced", id=manifest.id)
        assert len(b.registry.announcements()) == 1


async def test_members_come_and_go(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        (seen,) = a.network.peers()
        assert seen.peer == b.network.peer_id
        assert seen.topics == (TOPIC,)
        assert seen.inbound
        await b.network.leave(TOPIC)
        assert b.network.topics() == []
        await until(lambda: a.network.topics()[0].members == 0, "the member has left")
        await b.network.join(TOPIC)
        await until(lambda: a.network.topics()[0].members == 1, "the member is back")
        await until(lambda: a.network.topics()[0].announced_at, "the DHT has taken the announcement")
        assert a.events.of("topic.joined") == [{"topic": TOPIC}]


async def test_a_name_that_is_none(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = made.make("a")
        for name in ("", "x" * 121, "e\N{COMBINING ACUTE ACCENT}"):
            with pytest.raises(TopicInvalid):
                await a.network.join(name)


# ---- fetching ----------------------------------------------------------------------------------------------------


async def test_fetch_brings_the_adapter_through_the_door(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made:
        a, b = await joined_cluster(made, 2)
        manifest = await a.publish(rank=512)
        await b.events.wait("adapter.announced", id=manifest.id)
        told: list[Transferred] = []
        admission = await b.network.fetch(manifest.id, progress=told.append)
        assert (admission.verdict, admission.new) == ("admitted", True)
        assert b.registry.manifest(manifest.id).envelope == manifest.envelope
        assert told[0] == Transferred(0, manifest.record.size)
        assert (told[-1].done, told[-1].total, told[-1].peers) == (manifest.record.size, manifest.record.size, 1)
        assert told[-1].rate > 0
        assert admission.row.topics == (TOPIC,)
        assert list((b.folder / "fetching").iterdir()) == []
        assert b.network.stats().counters["bytes_fetched"] == manifest.record.size
        assert a.network.stats().counters["bytes_served"] == manifest.record.size
        again = await b.network.fetch(manifest.id)
        assert (again.id, again.new) == (manifest.id, False)


async def test_what_a_peer_fetched_it_gives_on(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b, c = await joined_cluster(made, 3)
        manifest = await a.publish()
        await b.events.wait("adapter.announced", id=manifest.id)
        await b.network.fetch(manifest.id)
        made.stop(a)
        await c.events.wait("net.peer.lost", peer=a.network.peer_id)
        await c.network.fetch(manifest.id)
        assert c.registry.has_adapter(manifest.id)


async def test_only_the_named_peers_are_asked(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b, c = await joined_cluster(made, 3)
        manifest = await a.publish()
        with pytest.raises(NoProvider, match="unknown"):
            await c.network.fetch(manifest.id, peers=[b.network.peer_id])
        with pytest.raises(AddressInvalid):
            await c.network.fetch(manifest.id, peers=["nobody"])
        await c.network.fetch(manifest.id, peers=[a.network.peer_id])
        assert c.registry.has_adapter(manifest.id)


async def test_who_fetches_right_after_the_start_waits_for_who_is_being_dialled(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        (a,) = await joined_cluster(made, 1)
        manifest = await a.publish()
        b = await made.start("b")
        await b.network.join(TOPIC)
        assert b.network.peers() == [], "the control"
        await b.network.fetch(manifest.id)
        alone = await made.start("alone", bootstrap=())
        await alone.network.join(TOPIC)
        with pytest.raises(NoProvider, match="nobody who might is connected"), trio.fail_after(5):
            await alone.network.fetch(manifest.id)


async def test_a_node_that_listens_nowhere_dials_others(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        (a,) = await joined_cluster(made, 1)
        manifest = await a.publish()
        b = await made.start("b", listen=())
        await b.network.join(TOPIC)
        await b.network.fetch(manifest.id)
        assert b.network.addresses() == []


async def test_what_is_not_published_is_not_given(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        manifest = a.make()
        with pytest.raises(NoProvider, match="unknown"):
            await b.network.fetch(manifest.id)
        await a.network.tell(a.announcement(manifest))
        await b.network.fetch(manifest.id)


# ---- life --------------------------------------------------------------------------------------------------------


async def test_a_fallen_host_is_started_again_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        addresses = a.network.addresses()
        node = a.network._node
        assert node is not None

        async def fail() -> None:
            raise ZeroDivisionError("planted")

        node.host.swarm.manager.run_task(fail)
        await until(lambda: a.network.status().restarts == 1, "the fall")
        await until(lambda: a.network.status().state == "running", "the new life")
        assert a.network.addresses() == addresses
        await b.events.wait("net.peer.lost", peer=a.network.peer_id)
        await until(lambda: a.network.topics()[0].members == 1, "the member is back")
        manifest = await a.publish()
        await b.events.wait("adapter.announced", id=manifest.id)


async def test_a_host_that_is_falling_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed() -> None:
        raise OSError(9, "Bad file descriptor")

    async with cluster(tmp_path) as made:
        a = await made.start("a")
        assert a.network._node is not None
        monkeypatch.setattr(a.network._node.host.basic, "get_addrs", closed)
        assert a.network.status().addresses == ()


def resources() -> tuple[int, int]:
    """Open descriptors, and tasks of trio itself."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), len(trio.lowlevel.current_root_task().child_nurseries[0].child_tasks)


async def test_stopping_is_quick_and_leaves_nothing(tmp_path: Path) -> None:
    async def live(folder: Path) -> float:
        async with cluster(folder) as made:
            peers = await joined_cluster(made, 3)
            await peers[0].publish()
            begun = trio.current_time()
        return trio.current_time() - begun

    await live(tmp_path / "first")  # whatever is opened once a process
    before = resources()
    assert await live(tmp_path / "second") < 3.0
    await until(lambda: resources() == before, "everything is given back")


async def test_an_occupied_port_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BaseExceptionGroup) as caught:
            async with cluster(tmp_path) as made:
                await made.start("a", listen=(f"/ip4/127.0.0.1/tcp/{port}",))
    assert caught.group_contains(ListenFailed, match=f"port {port} of 127.0.0.1 is in use")


async def test_two_of_us_on_one_port_are_told_too(tmp_path: Path) -> None:
    """The library listens with SO_REUSEPORT: the kernel would deal connections out to both."""
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012
        async with cluster(tmp_path) as made:
            a = await made.start("a")
            port = a.network.addresses()[0].split("/")[4]
            await made.start("b", listen=(f"/ip4/127.0.0.1/tcp/{port}",))
    assert caught.group_contains(ListenFailed, match="in use")


@pytest.mark.parametrize("address", ["/ip4/127.0.0.1/udp/1", "/ip4/127.0.0.1", "nonsense", "/dns4/localhost/tcp/0"])
async def test_an_address_that_is_none_to_listen_on(tmp_path: Path, address: str) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with cluster(tmp_path) as made:
            await made.start("a", listen=(address,))
    assert caught.group_contains(AddressInvalid)


async def test_addresses_of_peers(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a")
        with pytest.raises(AddressInvalid, match="names no peer"):
            await a.network.connect("/ip4/127.0.0.1/tcp/1")
        with pytest.raises(PeerUnreachable):
            await a.network.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id_of(Identity.from_seed(bytes(32)).public_key)}")
        b = made.make("b")
        with pytest.raises(AddressInvalid):
            Network(b.identity, NetConfig(bootstrap=("nonsense",)), b.registry, Recorder(), now_ms, random.Random(0))


async def test_a_wildcard_is_told_as_concrete_addresses(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a", listen=("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0"))
        assert a.network.addresses()
        for address in a.network.addresses():
            assert "/0.0.0.0/" not in address
            assert "/::/" not in address
            assert address.endswith(a.network.peer_id)


async def test_a_network_that_is_off_or_not_yet_on(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a", enabled=False)
        assert a.network.status().state == "off"
        await a.network.join(TOPIC)
        await a.publish()
        assert (a.network.addresses(), a.network.peers()) == ([], [])
        b = made.make("b")
        assert b.network.status().state == "starting"
        with pytest.raises(NetworkDown):
            await b.network.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{a.network.peer_id}")
        with pytest.raises(NetworkDown):
            await b.network.fetch("adp_" + "a" * 52)


async def test_a_bootstrap_peer_that_starts_later_is_found(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a", bootstrap=())
        address = a.network.addresses()
        made.stop(a)
        await until(lambda: made.stopped(a))
        b = await made.start("b", bootstrap=tuple(address))
        await made.run(a)
        await b.events.wait("net.peer.connected", peer=a.network.peer_id)
