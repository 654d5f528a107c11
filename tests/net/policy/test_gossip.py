"""What of gossip is taken and passed on, and whom to tell: pure."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from orchd.identity import Identity
from orchd.net.policy import gossip
from orchd.net.policy.gossip import (
    PASSED_TO,
    Gate,
    Message,
    Recent,
    Shares,
    Verdict,
    belongs,
    is_early,
    to_gossip,
    to_push,
)
from orchd.records import Announcement, KeyRotation, Record, Revocation, Verified, sign
from orchd.records.ids import sha256

TOPIC, NOW = "topic", 1_700_000_000_000
ANNA, BERT = Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32)


def announcement(author: Identity = ANNA, seq: int = 1, topics: tuple[str, ...] = (TOPIC,)) -> Verified[Announcement]:
    record = Announcement(
        manifest=bytes(32), topics=topics, size=1, created_ms=NOW, base=bytes(32), author=author.public_key, seq=seq
    )
    return sign(record, author)


def revocation(created_ms: int = NOW) -> Verified[Revocation]:
    return sign(Revocation(manifest=bytes(32), reason="", created_ms=created_ms, author=ANNA.public_key), ANNA)


@dataclass
class Sim:
    """A gate and a clock."""

    gate: Gate = field(default_factory=Gate)
    now: float = 0.0
    here: set[bytes] = field(default_factory=set)
    authors: set[bytes] = field(default_factory=set)

    def hear(self, record: Verified[Record], neighbour: str = "n", topic: str = TOPIC) -> Verdict:
        """As the node does it."""
        message = Message(topic, neighbour, sha256(record.envelope))
        verdict = self.gate.message(message, len(record.envelope), self.now)
        if verdict is Verdict.PASS:
            author = record.record.author
            verdict = self.gate.record(
                message,
                record.record,
                record.digest,
                known=record.digest in self.here,
                heard_of=author in self.authors,
                now=self.now,
                now_ms=NOW,
            )
            if verdict is Verdict.PASS:
                self.here.add(record.digest)
                self.authors.add(author)
        return verdict


def test_a_new_record_passes_once() -> None:
    sim = Sim()
    one = announcement()
    assert sim.hear(one) is Verdict.PASS
    assert sim.hear(one) is Verdict.KNOWN
    assert sim.hear(one, "another") is Verdict.KNOWN


def test_the_same_record_with_another_signature_beside_is_known() -> None:
    sim = Sim()
    assert sim.hear(announcement()) is Verdict.PASS
    cosigned = sign(announcement().record, ANNA, BERT)
    assert cosigned.envelope != announcement().envelope
    assert sim.hear(cosigned) is Verdict.KNOWN


def test_under_each_of_its_topics_it_is_passed_on_once() -> None:
    sim = Sim()
    both = announcement(topics=(TOPIC, "other"))
    assert sim.hear(both) is Verdict.PASS
    assert sim.hear(both, topic="other") is Verdict.AGAIN, "the mesh of the other topic needs us too"
    assert sim.hear(both, topic="other") is Verdict.KNOWN
    assert sim.hear(both) is Verdict.KNOWN


def test_what_just_came_straight_is_passed_on_and_what_came_long_ago_is_not() -> None:
    for age, verdict in ((gossip.NEWS_S, Verdict.AGAIN), (gossip.NEWS_S + 1, Verdict.KNOWN)):
        sim = Sim()
        one = announcement()
        sim.gate.met(one.digest, sim.now)
        sim.here.add(one.digest)
        sim.now += age
        assert sim.hear(one) is verdict


def test_a_burst_of_one_author_passes_and_a_flood_does_not() -> None:
    sim = Sim()
    verdicts = []
    for seq in range(1000):
        sim.now += 0.05  # 20 a second
        verdicts.append(sim.hear(announcement(seq=seq)))
    assert verdicts[:60] == [Verdict.PASS] * 60
    passed = verdicts.count(Verdict.PASS)
    assert passed <= gossip.AUTHOR_BURST + 50 * gossip.AUTHOR_RATE + 1
    assert set(verdicts) == {Verdict.PASS, Verdict.AUTHOR_LIMIT}
    assert sim.hear(announcement(BERT)) is Verdict.PASS, "others are not touched"


def test_a_neighbour_has_a_limit_whatever_it_brings() -> None:
    sim = Sim()
    one = announcement()
    verdicts = [sim.hear(one, "loud") for _ in range(1000)]
    assert verdicts.count(Verdict.NEIGHBOUR_LIMIT) == 1000 - gossip.NEIGHBOUR_BURST
    assert sim.hear(one, "quiet") is Verdict.KNOWN
    sim.now += 1.0
    assert sim.hear(one, "loud") is Verdict.KNOWN


def test_a_flood_under_new_keys_is_that_of_the_neighbour() -> None:
    sim = Sim()
    crowd = [announcement(Identity.from_seed(number.to_bytes(32))) for number in range(100)]
    verdicts = [sim.hear(one, "sybil") for one in crowd]
    assert verdicts.count(Verdict.PASS) == gossip.NEWCOMER_BURST
    assert verdicts[-1] is Verdict.NEWCOMER_LIMIT
    assert sim.hear(crowd[-1], "honest") is Verdict.PASS, "nor is the record lost"
    assert sim.hear(announcement(Identity.from_seed((0).to_bytes(32)), seq=9), "sybil") is Verdict.PASS, "heard of"


def test_replays_cost_the_author_nothing() -> None:
    sim = Sim()
    old = [announcement(seq=seq) for seq in range(100)]
    sim.here = {one.digest for one in old}
    sim.authors = {ANNA.public_key}
    assert {sim.hear(one, "replayer") for one in old * 4} == {Verdict.KNOWN}
    twice = announcement(seq=5000, topics=(TOPIC, "other"))
    sim.here.add(twice.digest)
    assert [sim.hear(twice, topic=topic) for topic in twice.record.topics] == [Verdict.KNOWN] * 2
    assert all(sim.hear(announcement(seq=1000 + seq)) is Verdict.PASS for seq in range(100))


@pytest.mark.parametrize(
    ("record", "under", "fits"),
    [
        (announcement().record, TOPIC, True),
        (announcement().record, "other", False),
        (revocation().record, "any", True),
        (
            KeyRotation(old=ANNA.public_key, new=BERT.public_key, created_ms=NOW),
            "any",
            True,
        ),
    ],
)
def test_under_which_topic_a_record_travels(record: Record, under: str, fits: bool) -> None:
    assert belongs(record, under) == fits


def test_under_another_topic_it_is_misplaced() -> None:
    assert Sim().hear(announcement(), topic="other") is Verdict.MISPLACED


def test_what_comes_from_the_future() -> None:
    assert not is_early(announcement().record, NOW - gossip.CLOCK_WINDOW_MS)
    assert is_early(announcement().record, NOW - gossip.CLOCK_WINDOW_MS - 1)
    assert not is_early(revocation(NOW * 2).record, NOW), "a revocation counts however it is dated"


def test_a_message_that_is_too_large() -> None:
    message = Message(TOPIC, "n", bytes(32))
    assert Gate().message(message, gossip.MESSAGE_LIMIT + 1, 0.0) is Verdict.MALFORMED
    assert Gate().message(message, gossip.MESSAGE_LIMIT, 0.0) is Verdict.PASS


def test_room_for_announcements_is_bounded_and_revocations_always_come_in() -> None:
    one = announcement().record
    assert gossip.may_keep(one, gossip.KEPT_OF_ONE - 1, gossip.KEPT_IN_ALL - 1, trusted=False)
    assert not gossip.may_keep(one, gossip.KEPT_OF_ONE, 10, trusted=False)
    assert not gossip.may_keep(one, 0, gossip.KEPT_IN_ALL, trusted=False)
    assert gossip.may_keep(one, gossip.KEPT_OF_ONE, gossip.KEPT_IN_ALL, trusted=True)
    assert gossip.may_keep(revocation().record, gossip.KEPT_OF_ONE, gossip.KEPT_IN_ALL, trusted=False)


def test_memory_is_bounded() -> None:
    recent: Recent[int] = Recent(10)
    assert [recent.add(number % 20, 0.0) for number in (*range(20), 19, 0)] == [True] * 20 + [False, True]
    assert len(recent) == 10
    assert 0 in recent
    assert 10 not in recent
    shares: Shares[int] = Shares(1.0, 1.0)
    for number in range(gossip.SHARES + 5):
        assert shares.take(number, 0.0)
    assert len(shares) == gossip.SHARES


# ---- whom to tell ------------------------------------------------------------------------------------------------

CLOSED = "private/club/" + "a" * 26


def test_what_is_gossiped() -> None:
    joined = {TOPIC, "other", CLOSED, "lan/home"}
    assert to_gossip([TOPIC, "other", CLOSED, "lan/home", "not joined"], joined) == [TOPIC, "other"]
    assert to_gossip([TOPIC, "other"], joined, came_under=TOPIC) == ["other"]


def test_who_is_told_straight() -> None:
    members = {"a": {TOPIC}, "b": {TOPIC, CLOSED}, "c": {CLOSED}, "d": {"other"}}
    rng = random.Random(0)
    assert to_push([TOPIC], members, rng, reached={"a", "b"}) == []
    assert to_push([TOPIC], members, rng, reached={"a"}) == ["b"], "gossip does not reach it yet"
    assert to_push([CLOSED], members, rng, reached={"a", "b", "c"}) == ["b", "c"]
    assert to_push([CLOSED], members, rng, source="b") == ["c"]
    assert to_push(["other", CLOSED], members, rng, reached={"d"}) == ["b", "c"]


def test_who_was_told_tells_some() -> None:
    members = {number: {CLOSED} for number in range(50)}
    assert to_push([CLOSED], members, random.Random(0)) == list(members), "its own news it tells to all"
    told = [to_push([CLOSED], members, random.Random(seed), source=7) for seed in range(40)]
    assert {len(set(found)) for found in told} == {PASSED_TO}
    assert set().union(*told) == set(members) - {7}, "by chance: nobody is always left out"
