"""A peer that announces a million adapters: memory and disk are bounded, and who comes after it is heard all the same.

`ORCHD_ANNOUNCED=1000000` makes that many; `make test` some thousands, against limits that are made smaller in turn.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import trio
import varint
from libp2p.custom_types import TProtocol
from libp2p.pubsub.pb import rpc_pb2

from orchd.identity import Identity
from orchd.net import asking, exchange, news
from orchd.net.gossip import PREFIX
from orchd.net.messages import Done, Push
from orchd.net.policy import gossip as policy
from orchd.net.policy.gossip import KEPT_IN_ALL, REMEMBERED, SHARES, Gate, Message, Verdict
from orchd.records import Announcement, sign
from tests.attacks.net.support import MESHSUB, attacker, host_of, leaves_nothing, node_of, still_serves
from tests.net.support import TOPIC, Peer, cluster, now_ms

ANNOUNCED = int(os.environ.get("ORCHD_ANNOUNCED", "1500"))
#: In `make test` the limits are this part of what they are.
SMALLER = KEPT_IN_ALL // 500


def made_up(peer: Peer, author: int, number: int) -> bytes:
    """A signed announcement of an adapter that nobody has."""
    identity = Identity.from_seed(hashlib.sha256(b"%d" % author).digest())
    claim = Announcement(
        manifest=hashlib.sha256(b"%d %d" % (author, number)).digest(),
        topics=(TOPIC,),
        size=1000,
        created_ms=now_ms(),
        base=peer.base,
        author=identity.public_key,
        seq=number + 1,
    )
    return sign(claim, identity).envelope


@pytest.mark.parametrize("each", [1, 300], ids=["a key for each", "few keys"])
async def test_a_peer_that_announces_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: int) -> None:
    """It is given the time of days: nothing slows it down."""
    limit = max(KEPT_IN_ALL // SMALLER, min(KEPT_IN_ALL, ANNOUNCED // 20))
    monkeypatch.setattr(policy, "KEPT_IN_ALL", limit)
    monkeypatch.setattr(policy, "KEPT_OF_ONE", max(1, limit // 10))
    monkeypatch.setattr(news, "NEWS_RATE", 1e9)
    monkeypatch.setattr(exchange, "QUESTIONS_RATE", 1e9)
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        kept = await victim.publish(seed=1)
        async with leaves_nothing(victim), attacker(victim) as hostile:
            for start in range(0, ANNOUNCED, 64):
                numbers = range(start, min(ANNOUNCED, start + 64))
                records = tuple(made_up(victim, number // each, number % each) for number in numbers)
                await asking.ask(hostile, host_of(victim).id, Push(records=records), Done)
                assert len(node_of(victim).news._known) <= limit + 64
        rows = victim.registry.announcements()
        assert len(rows) <= limit + 64
        assert kept.id in {row.adapter for row in rows}, "what is here is not forgotten"
        newcomer = await still_serves(made, victim)
        manifest = await newcomer.publish(seed=7)
        await victim.events.wait("adapter.announced", id=manifest.id)


async def test_a_neighbour_that_gossips_without_end_is_banned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "NEIGHBOUR_RATE", 0.0)
    monkeypatch.setattr(policy, "NEIGHBOUR_BURST", 20.0)
    monkeypatch.setattr(policy, "DROPPED_RATE", 0.0)
    monkeypatch.setattr(policy, "DROPPED_BURST", 50.0)
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        async with leaves_nothing(victim), attacker(victim) as hostile:
            message = rpc_pb2.Message(from_id=hostile.id.to_bytes(), data=b"x", seqno=b"1", topicIDs=[PREFIX + TOPIC])
            rpc = rpc_pb2.RPC(publish=[message] * 500).SerializeToString()
            stream = await hostile.basic.new_stream(host_of(victim).id, [TProtocol(MESHSUB)])
            await stream.write(varint.encode(len(rpc)) + rpc)
            await victim.events.wait("net.peer.banned", subject=str(hostile.id))
            await victim.events.wait("net.peer.lost", peer=str(hostile.id))
        monkeypatch.undo()
        await still_serves(made, victim)


async def test_a_million_messages_are_judged_in_bounded_memory() -> None:
    """The policy alone, without signatures: every message of another author, from another neighbour."""
    gate = Gate()
    passed = 0
    for number in range(max(ANNOUNCED, 3 * REMEMBERED)):
        digest = hashlib.sha256(b"%d" % number).digest()
        claim = Announcement(
            manifest=digest, topics=(TOPIC,), size=1, created_ms=0, base=bytes(32), author=digest, seq=number + 1
        )
        message, now = Message(TOPIC, number % 5000, digest), number / 1000
        if gate.message(message, 400, now) is Verdict.PASS:
            verdict = gate.record(message, claim, digest, known=False, heard_of=False, now=now, now_ms=0)
            passed += verdict is Verdict.PASS
        if not number % 1000:
            await trio.lowlevel.checkpoint()
    assert passed
    for memory in (gate._messages, gate._under, gate._met):
        assert len(memory) <= REMEMBERED
    for shares in (gate._authors, gate._neighbours, gate._newcomers):
        assert len(shares) <= SHARES
