"""Closed topics between real hosts: who is told of them, and who is served."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from orchd.errors import NoProvider, TopicInvalid
from orchd.net import asking, topics
from orchd.net.members import Members
from orchd.net.messages import GetRecords, Hello, Reconcile, Reconciled, RecordsAre, TopicParts, topic_key
from orchd.net.policy.names import private_name, proof
from orchd.net.policy.repair import Sum
from tests.net.support import TOPIC, Cluster, Peer, cluster, until

SECRET = bytes(range(32))
FAMILY = private_name("family", SECRET)


async def together(made: Cluster, *names: str) -> list[Peer]:
    """Connected nodes that share nothing yet."""
    peers = [await made.start(name) for name in names]
    for peer in peers[1:]:
        await peer.events.wait("net.peer.connected", peer=peers[0].network.peer_id)
        await until(lambda peer=peer: peer.network.status().peers, "connected")  # type: ignore[misc]
    return peers


def members(peer: Peer, name: str) -> int:
    return next(topic.members for topic in peer.network.topics() if topic.name == name)


async def test_members_prove_the_secret_and_an_outsider_gets_nothing(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b, outsider = await together(made, "a", "b", "outsider")
        for peer in (a, b):
            await peer.network.join(FAMILY, SECRET)
            await peer.network.join(TOPIC)
        await outsider.network.join(TOPIC)
        await until(lambda: members(b, FAMILY) == 1, "the member is found")
        manifest = a.make()
        await a.network.tell(a.announcement(manifest, FAMILY))
        await b.events.wait("adapter.announced", id=manifest.id)
        assert (await b.network.fetch(manifest.id)).verdict == "admitted"

        shown = await a.publish(seed=1, topic=TOPIC)
        await outsider.events.wait("adapter.announced", id=shown.id)
        assert len(outsider.registry.announcements()) == 1
        with pytest.raises(NoProvider, match="unknown"):
            await outsider.network.fetch(manifest.id, peers=[a.network.peer_id])
        await outsider.network.fetch(shown.id, peers=[a.network.peer_id])
        assert members(a, FAMILY) == 1


async def test_who_has_found_out_the_key_is_no_member(tmp_path: Path) -> None:
    """An outsider that says the private topic's key, and proofs that others made, is told nothing."""
    async with cluster(tmp_path) as made:
        a, outsider = await together(made, "a", "outsider")
        await a.network.join(FAMILY, SECRET)
        announced = a.announcement(a.make(), FAMILY)
        await a.network.tell(announced)
        node = outsider.network._node
        assert node is not None
        assert a.network._node is not None
        peer, member = a.network._node.host.id, topic_key(FAMILY)
        stolen = proof(SECRET, peer.to_bytes(), b"somebody")
        reply = await asking.ask(node.host, peer, Hello(topics=(member,), proofs=(stolen,)), Hello)
        assert reply.topics == ()
        assert len(reply.proofs) == 1
        record = GetRecords(topics=(member,), ids=(announced.digest,))
        compare = Reconcile(sets=(TopicParts(member, (Sum(b"", bytes(16)),)),))
        assert (await asking.ask(node.host, peer, record, RecordsAre)).records == ()
        assert (await asking.ask(node.host, peer, compare, Reconciled)).sets == ()
        assert members(a, FAMILY) == 0

        right = proof(SECRET, node.host.id.to_bytes(), peer.to_bytes())
        await asking.ask(node.host, peer, Hello(topics=(), proofs=(right,)), Hello)
        assert (await asking.ask(node.host, peer, record, RecordsAre)).records == (announced.envelope,)
        assert len((await asking.ask(node.host, peer, compare, Reconciled)).sets) == 1
        assert members(a, FAMILY) == 1


async def test_a_private_topic_is_joined_with_its_secret_only(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = made.make("a")
        for secret in (None, bytes(32)):
            with pytest.raises(TopicInvalid, match="private"):
                await a.network.join(FAMILY, secret)
        await a.network.join(FAMILY, SECRET)
        assert [topic.name for topic in a.network.topics()] == [FAMILY]


async def test_a_lan_topic_is_on_no_dht_and_shown_to_nobody_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path) as made:
        a, b, far = await together(made, "a", "b", "far")
        assert a.network._node is not None
        assert far.network._node is not None
        stranger = far.network._node.host.id
        near = a.network._node.company.is_near
        assert near(stranger), "loopback is near"
        monkeypatch.setattr(a.network._node.members, "_is_near", lambda peer: peer != stranger and near(peer))
        for peer in (a, b, far):
            await peer.network.join("lan/flat")
        await until(lambda: members(b, "lan/flat") >= 1 and members(a, "lan/flat") == 1, "the neighbour")
        manifest = await a.publish(topic="lan/flat")
        await b.events.wait("adapter.announced", id=manifest.id)
        with pytest.raises(NoProvider, match="unknown"):
            await far.network.fetch(manifest.id, peers=[a.network.peer_id])
        for peer in (a, b, far):
            assert peer.network._node is not None
            assert peer.network._node._rounds.next_at() == float("inf"), "nothing is to be announced"
            store = peer.network._node.host.dht.provider_store
            assert store.get_providers(topics.provider_key("lan/flat")) == []


async def test_a_node_that_was_restarted_is_on_the_dht_again(tmp_path: Path) -> None:
    """The library's own republishing runs before anybody is connected, and counts as done."""
    async with cluster(tmp_path) as made:
        server = await made.start("server")
        a = await made.start("a")
        await a.network.join(TOPIC)
        assert server.network._node is not None
        store = server.network._node.host.dht.provider_store
        key = topics.provider_key(TOPIC)
        await until(lambda: store.get_providers(key), "announced")
        made.stop(a)
        await until(lambda: made.stopped(a))
        store.providers.clear()
        await made.run(a)
        with trio.fail_after(30):
            await until(lambda: store.get_providers(key), "announced again")


# ---- what a peer said last ---------------------------------------------------------------------------------------


class Name(bytes):
    """A peer that is no more than its name."""

    def to_bytes(self) -> bytes:  # type: ignore[override]
        return bytes(self)


def someone(name: bytes, joined: dict[bytes, str], now_ms: int = 1_000) -> Members[Name]:
    return Members(Name(name), joined, lambda key: None, lambda peer: True, lambda: now_ms)


def test_a_hello_that_was_overtaken_changes_nothing() -> None:
    """Each comes on a stream of its own: the one from before we joined may come after the one that names the topic."""
    key = topic_key(TOPIC)
    theirs: dict[bytes, str] = {}
    sender, receiver = someone(b"sender", theirs), someone(b"receiver", {key: TOPIC})
    before = sender.hello(Name(b"receiver"))
    theirs[key] = TOPIC
    after = sender.hello(Name(b"receiver"))
    for hello in (after, before):
        receiver.heard(Name(b"sender"), hello)
    assert receiver.of(Name(b"sender")) == {key}
    del theirs[key]
    receiver.heard(Name(b"sender"), sender.hello(Name(b"receiver")))
    assert not receiver.of(Name(b"sender")), "it has left"


def test_who_does_not_say_since_when_is_believed_each_time() -> None:
    receiver, key = someone(b"receiver", {topic_key(TOPIC): TOPIC}), topic_key(TOPIC)
    for named, shared in (((), frozenset()), ((key,), {key}), ((), frozenset())):
        receiver.heard(Name(b"sender"), Hello(topics=named))
        assert receiver.of(Name(b"sender")) == shared


def test_a_peer_that_was_lost_begins_anew() -> None:
    key = topic_key(TOPIC)
    receiver = someone(b"receiver", {key: TOPIC})
    receiver.heard(Name(b"sender"), Hello(topics=(), as_of_ms=9_000))
    receiver.lost(Name(b"sender"))
    receiver.heard(Name(b"sender"), someone(b"sender", {key: TOPIC}).hello(Name(b"receiver")))
    assert receiver.of(Name(b"sender")) == {key}, "its clock was set back meanwhile"
