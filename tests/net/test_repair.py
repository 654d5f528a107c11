"""Repair between real nodes: who was off, who heard nothing, who lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from orchd.errors import PeerMisbehaved, PeerRefused
from orchd.identity import Identity
from orchd.net import Library, asking, messages, records
from orchd.net.gossip import Gossip
from orchd.net.host import run_host
from orchd.net.messages import GetRange, GetRecords, Range, Reconcile, Reconciled, RecordsAre, TopicParts, topic_key
from orchd.net.news import News
from orchd.net.policy import repair as policy
from orchd.net.policy.repair import END, Listed, Sum
from orchd.registry.local import put
from orchd.registry.local_rows import Trust
from orchd.registry.trust import BLOCK
from tests.net.support import LOOPBACK, TOPIC, Cluster, Peer, cluster, joined_cluster, now_ms, until
from tests.net.test_records import revocation, state


@pytest.fixture
def repair_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No news travels; what a node learns, it learns by repair."""

    async def nothing(*_: Any, **__: Any) -> None:
        pass

    monkeypatch.setattr(News, "_push", nothing)
    monkeypatch.setattr(Gossip, "publish", nothing)
    monkeypatch.setattr(policy, "EVERY_S", 0.3)


def counted(peer: Peer, name: str) -> int:
    return peer.network.stats().counters[name]


async def reopened(made: Cluster, peer: Peer, **settings: Any) -> Peer:
    """The same node after a stop, with the same folder."""
    made.stop(peer)
    await until(lambda: made.stopped(peer), "stopped")
    peer.registry.close()
    made.peers.remove(peer)
    return await made.start(peer.name, **settings)


@pytest.mark.usefixtures("repair_alone")
async def test_what_gossip_lost_spreads_from_node_to_node(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b, c = await joined_cluster(made, 3)
        for author in (a, b, c):
            await author.publish(seed=ord(author.name[-1]))
        for peer in (a, b, c):
            await until(lambda peer=peer: len(peer.registry.announcements()) == 3, f"all three at {peer.name}")  # type: ignore[misc]
        assert sum(counted(peer, "gossip_passed") for peer in (a, b, c)) == 0


@pytest.mark.usefixtures("repair_alone")
async def test_one_conversation_serves_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "EVERY_S", 1e6)  # the one on connect is all there is
    async with cluster(tmp_path) as made:
        a, b = await made.start("a"), await made.start("b", bootstrap=())
        for peer in (a, b):
            await peer.network.join(TOPIC)
            for seed in range(3):
                await peer.publish(seed=seed)
        await b.network.connect(a.network.addresses()[0])
        for peer in (a, b):
            await until(lambda peer=peer: len(peer.registry.announcements()) == 6, f"all six at {peer.name}")  # type: ignore[misc]
        await until(lambda: counted(b, "repairs") == 1, "the end of it")
        assert (counted(b, "repair_records_taken"), counted(b, "repair_records_given")) == (3, 3)
        assert counted(a, "repairs") == 0


async def test_a_node_that_was_off_serves_nothing_before_it_has_repaired(tmp_path: Path) -> None:
    """A stranger asks for the revoked adapter before anybody else has told this node of the revocation."""
    async with cluster(tmp_path) as made, run_host(Identity.from_seed(b"x" * 32), LOOPBACK) as stranger:
        a, b, c = await joined_cluster(made, 3)
        leaf = await a.publish()
        await c.events.wait("adapter.announced", id=leaf.id)
        await c.network.fetch(leaf.id)
        made.stop(c)
        await until(lambda: made.stopped(c), "c is off")
        await a.network.tell(revocation(a, leaf))
        await b.events.wait("adapter.revoked", id=leaf.id)
        (c.folder / records.REPAIRED).unlink(missing_ok=True)  # a week later
        c = await reopened(made, c, bootstrap=())
        await c.network.join(TOPIC)
        assert state(c, leaf) == "admitted"
        assert c.network._node is not None
        await stranger.connect(c.network._node.host.id, c.network._node.host.basic.get_transport_addrs())
        file = leaf.record.files[-1]
        question = GetRange(adapter=leaf.digest, blob=file.sha256, offset=0, length=file.size)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, stranger, c, question)
            await until(
                lambda: c.network._node and c.network._node.records.repair._freshness._waiting_since_ms, "asked"
            )
            await c.network.connect(b.network.addresses()[0])
        assert state(c, leaf) == "quarantined"


async def refused(stranger: Any, peer: Peer, question: GetRange) -> None:
    assert peer.network._node is not None
    with pytest.raises(PeerRefused, match="unknown"):
        await asking.ask(stranger, peer.network._node.host.id, question, Range)


async def test_who_wants_to_average_waits_for_the_first_repair(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a")
        await a.network.join(TOPIC)
        b = await made.start("b", bootstrap=())
        fresh = b.network._context.freshness
        fresh.repaired_ms = 0
        await b.network.caught_up()
        assert fresh._waiting_since_ms is None, "it takes part in nothing, and does not wait"
        await b.network.join(TOPIC)
        taken_back = revocation(a, await a.publish())
        await a.network.tell(taken_back)
        async with trio.open_nursery() as nursery:

            async def ready_to_average() -> None:
                await b.network.caught_up()
                assert b.registry.news.has(taken_back.id)

            nursery.start_soon(ready_to_average)
            await until(lambda: fresh._waiting_since_ms, "it waits")
            await b.network.connect(a.network.addresses()[0])
        assert fresh.repaired_ms > 0
        off = await made.start("off", enabled=False)
        await off.network.join(TOPIC)
        await off.network.caught_up()


async def test_a_node_that_was_off_for_a_moment_serves_at_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        leaf = await a.publish()
        await b.events.wait("adapter.announced", id=leaf.id)
        await b.network.fetch(leaf.id)
        await until((b.folder / records.REPAIRED).exists, "when it repaired is on disk")
        assert records.freshness(b.registry, now_ms()).wait_ms(now_ms()) == 0
        (b.folder / records.REPAIRED).write_text("no number")
        assert records.freshness(b.registry, now_ms()).wait_ms(now_ms()) > 0
        made_new = made.make("new")
        assert records.freshness(made_new.registry, now_ms()).wait_ms(now_ms()) == 0, "it has nothing to serve"


class Counting(Library):
    """Counts how often records were read for a peer."""

    reads = 0

    def records(self, ids: Any, topics: Any) -> list[bytes]:
        self.reads += 1
        return super().records(ids, topics)


@pytest.mark.usefixtures("repair_alone")
@pytest.mark.parametrize("who_begins", ["who lacks it", "who has it"])
async def test_what_is_not_wanted_travels_once(tmp_path: Path, who_begins: str) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a", library=Counting, bootstrap=())
        b = await made.start("b", bootstrap=())
        for peer in (a, b):
            await peer.network.join(TOPIC)
        row = Trust(subject=a.identity.author, kind="author", verdict=BLOCK, note="", auto_update=False, since=now_ms())
        b.registry.local.act("trust.block", put(row), undoable=True)
        b.registry.people.forget()
        await a.publish()
        begins, other = (b, a) if who_begins == "who lacks it" else (a, b)
        assert other.network._node is not None
        other.network._node.records.repair._schedule.take_due = lambda now: []  # type: ignore[method-assign]
        await begins.network.connect(other.network.addresses()[0])
        await until(lambda: counted(begins, "repairs") >= 4, "some repairs")
        assert b.registry.announcements() == []
        library = a.network._context.library
        assert isinstance(library, Counting)
        assert library.reads == 1


@pytest.mark.usefixtures("repair_alone")
async def test_what_both_know_under_different_topics_travels_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await made.start("a"), await made.start("b", bootstrap=())
        for peer in (a, b):
            await peer.network.join(TOPIC)
        author = made.make("author")
        record = revocation(author, author.make())
        a.registry.news.take(record, "x", (TOPIC,))
        b.registry.news.take(record, "x", ("elsewhere",))
        await b.network.connect(a.network.addresses()[0])
        await until(lambda: len(b.registry.news.after([TOPIC], 0, "", 9)) == 1, "it concerns this topic too")
        before = counted(a, "repairs") + counted(b, "repairs")
        await until(lambda: counted(a, "repairs") + counted(b, "repairs") >= before + 3, "some repairs")
        travelled = sum(counted(peer, "repair_records_given") for peer in (a, b))
        assert travelled <= 1


# ---- liars -------------------------------------------------------------------------------------------------------


class Promising(Library):
    """Says that it has records, and gives others."""

    def records(self, ids: Any, topics: Any) -> list[bytes]:
        return self.others

    others: list[bytes] = []  # noqa: RUF012


@pytest.mark.usefixtures("repair_alone")
@pytest.mark.parametrize("forged", [False, True])
async def test_who_gives_what_was_not_asked_for_is_dropped(tmp_path: Path, forged: bool) -> None:
    async with cluster(tmp_path) as made:
        author = made.make("author")
        liar = await made.start("liar", library=Promising, bootstrap=())
        victim = await made.start("victim", bootstrap=())
        other = author.announcement(author.make()).envelope
        Promising.others = [other.replace(b"test/topic", b"test/tonic") if forged else other]
        for peer in (liar, victim):
            await peer.network.join(TOPIC)
        await liar.publish()
        await victim.network.connect(liar.network.addresses()[0])
        await victim.events.wait("net.peer.lost", peer=liar.network.peer_id)
        assert victim.registry.announcements() == []


@pytest.mark.usefixtures("repair_alone")
async def test_who_announces_without_end_fills_nothing_and_can_still_take_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchd.net.policy.gossip.KEPT_OF_ONE", 5)
    async with cluster(tmp_path) as made:
        a, b = await made.start("a"), await made.start("b", bootstrap=())
        for peer in (a, b):
            await peer.network.join(TOPIC)
        manifest = a.make()
        for _ in range(12):
            await a.network.tell(a.announcement(manifest))
        assert len(a.registry.announcements()) == 12, "its own"
        await b.network.connect(a.network.addresses()[0])
        await until(lambda: counted(b, "repairs") + counted(a, "repairs") >= 1, "a repair")
        await a.network.tell(revocation(a, manifest))
        await b.events.wait("adapter.revoked", id=manifest.id)
        assert len(b.registry.announcements()) == 5


async def test_questions_that_make_no_sense_and_too_many_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = topic_key(TOPIC), topic_key("other")
    nothing = Sum(END, bytes(16))
    async with cluster(tmp_path) as made, run_host(Identity.from_seed(b"x" * 32), LOOPBACK) as stranger:
        a = await made.start("a")
        for topic in (TOPIC, "other"):
            await a.network.join(topic)
        assert a.network._node is not None
        peer = a.network._node.host.id
        await stranger.connect(peer, a.network._node.host.basic.get_transport_addrs())
        for sets in (
            (TopicParts(key, (Listed(END, (bytes(32), bytes(32))),)),),
            (TopicParts(key, (nothing,)), TopicParts(other, (Listed(END, ()),))),
            (TopicParts(key, (Sum(b"a", bytes(16)), nothing)), TopicParts(other, (nothing,))),
        ):
            with pytest.raises(PeerMisbehaved):
                await a.network._node.answer(stranger.id, Reconcile(sets=sets))
        unknown = GetRecords(topics=(key,), ids=(bytes(32),))
        assert (await asking.ask(stranger, peer, unknown, RecordsAre)).records == ()
        repair = a.network._node.records.repair
        monkeypatch.setattr(repair._dealings._shares, "_buckets", type(repair._dealings._shares._buckets)())
        monkeypatch.setattr(repair._dealings._shares, "_burst", 2.0)
        monkeypatch.setattr(repair._dealings._shares, "_rate", 0.0)
        question = Reconcile(sets=(TopicParts(key, (nothing,)), TopicParts(bytes(32), (nothing,))))
        for _ in range(2):
            answer = await asking.ask(stranger, peer, question, Reconciled)
            assert [one.topic for one in answer.sets] == [key], "of a topic that is not ours nothing is said"
        with pytest.raises(PeerRefused, match=messages.BUSY):
            await asking.ask(stranger, peer, question, Reconciled)
