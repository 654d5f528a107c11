"""Set reconciliation, when to repair, and whether what is known is recent: pure."""

from __future__ import annotations

import random
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchd.errors import PeerMisbehaved
from orchd.net.policy import repair
from orchd.net.policy.repair import (
    END,
    Differs,
    Freshness,
    Ids,
    Listed,
    Part,
    Parts,
    Reconciliation,
    Same,
    Schedule,
    Sum,
    respond,
)

_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Parts)


def some(count: int, seed: int = 0) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(32) for _ in range(count)]


def reconcile(mine: Ids, theirs: Ids) -> tuple[set[bytes], set[bytes], int, int]:
    """What is found (needed here, needed there), round trips and bytes; every message goes through the wire's form."""
    asking = Reconciliation(mine)
    question, rounds, size = asking.first(), 0, 0
    while question:
        sent = _encoder.encode(question)
        answered = _encoder.encode(respond(theirs, _decoder.decode(sent)))
        question = asking.next(_decoder.decode(answered))
        rounds, size = rounds + 1, size + len(sent) + len(answered)
    return set(asking.need), set(asking.have), rounds, size


def test_equal_sets_cost_one_small_round_trip() -> None:
    ids = some(10_000)
    need, have, rounds, size = reconcile(Ids(ids), Ids(reversed(ids)))
    assert (need, have, rounds) == (set(), set(), 1)
    assert size < 40


@pytest.mark.parametrize("count", [0, 1, 31, 33, 700, 10_000])
@pytest.mark.parametrize(("only_here", "only_there"), [(0, 1), (1, 0), (5, 7), (60, 0), (0, 60), (400, 300)])
def test_every_difference_is_found_exactly(count: int, only_here: int, only_there: int) -> None:
    both, here, there = some(count, 1), some(only_here, 2), some(only_there, 3)
    need, have, rounds, _ = reconcile(Ids(both + here), Ids(both + there))
    assert need == set(there)
    assert have == set(here)
    assert rounds <= 5


def test_bytes_grow_with_the_difference_not_with_the_set() -> None:
    for count in (1_000, 20_000):
        ids, new = some(count, 1), some(10, 2)
        *_, size = reconcile(Ids(ids), Ids(ids + new))
        assert size < 10 * 1_600, f"{size} bytes for ten new ones among {count}"


@given(
    st.sets(st.binary(min_size=1, max_size=1), max_size=200),
    st.sets(st.binary(min_size=1, max_size=1), max_size=200),
    st.sampled_from([b"", b"\x00" * 31, b"\xff" * 31]),
)
@settings(max_examples=200, deadline=None)
def test_any_two_sets(here: set[bytes], there: set[bytes], prefix: bytes) -> None:
    """Also ids that agree in all bytes but the last, as somebody might grind them."""
    mine, theirs = ({(prefix + one).ljust(32, b"\0") for one in some} for some in (here, there))
    need, have, _, _ = reconcile(Ids(mine), Ids(theirs))
    assert need == theirs - mine
    assert have == mine - theirs


@pytest.mark.parametrize(("parts", "ids"), [(24, 8192), (2048, 1024), (24, 1100)])
def test_a_large_difference_in_small_messages(monkeypatch: pytest.MonkeyPatch, parts: int, ids: int) -> None:
    """What does not fit is asked for again: nothing is lost, nothing found twice."""
    monkeypatch.setattr(repair, "PARTS_LIMIT", parts)
    monkeypatch.setattr(repair, "IDS_LIMIT", ids)
    monkeypatch.setattr(repair, "ROUNDS_LIMIT", 500)
    both, there = some(2_000, 1), some(3_000, 2)
    asking, theirs = Reconciliation(Ids(both)), Ids(both + there)
    question = asking.first()
    while question:
        answer = respond(theirs, question)
        assert len(answer) <= parts
        assert sum(map(repair._ids_in, answer)) <= ids
        question = asking.next(answer)
        assert len(question) <= parts
    assert sorted(asking.need) == sorted(there)
    assert asking.have == []


def test_a_new_node_takes_what_one_conversation_finds_and_the_rest_in_the_next() -> None:
    theirs, mine = Ids(some(10_000)), Ids()
    rounds = 0
    while len(mine) < len(theirs):
        need, have, more, _ = reconcile(mine, theirs)
        assert len(need) <= repair.FOUND_LIMIT
        assert not have
        for id in need:
            mine.add(id)
        rounds += more
    assert rounds <= 12


# ---- liars -------------------------------------------------------------------------------------------------------


def test_a_liar_who_never_agrees_is_left_after_some_rounds() -> None:
    rng = random.Random(0)
    asking = Reconciliation(Ids(some(5_000)))
    question, rounds = asking.first(), 0
    while question:
        rounds += 1
        question = asking.next([Sum(END, rng.randbytes(16))])
    assert rounds == repair.ROUNDS_LIMIT


def test_a_liar_who_names_a_million_is_cut_off() -> None:
    asking = Reconciliation(Ids())
    question, lies = asking.first(), 0
    while question:
        names = sorted(some(repair.IDS_LIMIT, lies))
        lies += 1
        question = asking.next([Differs(END, (), tuple(names)), Sum(END, bytes(16))][:1])
    assert len(asking.need) <= repair.FOUND_LIMIT


@pytest.mark.parametrize(
    "parts",
    [
        [Same(b"\x05"), Same(b"\x05")],
        [Same(b"\x05"), Same(b"\x04")],
        [Same(END), Same(b"\x04")],
        [Listed(b"\x05", (b"\x06" * 32,))],
        [Same(b"\x05"), Listed(END, (b"\x04" * 32,))],
        [Listed(END, (b"\x04" * 32, b"\x03" * 32))],
        [Listed(END, (b"\x04" * 32, b"\x04" * 32))],
    ],
)
def test_parts_that_make_no_sense(parts: list[Part]) -> None:
    with pytest.raises(PeerMisbehaved):
        respond(Ids(some(10)), parts)
    with pytest.raises(PeerMisbehaved):
        Reconciliation(Ids(some(10))).next(parts)


def test_only_an_answer_tells_differences() -> None:
    with pytest.raises(PeerMisbehaved):
        respond(Ids(), [Differs(END, (), ())])


def test_a_liar_can_not_make_us_believe_that_we_have_or_lack_what_we_do_not() -> None:
    mine = sorted(some(4))
    asking = Reconciliation(Ids(mine))
    asking.next([Differs(END, tuple(sorted([mine[0], bytes(32)])), tuple(sorted([mine[1], b"\xff" * 32])))])
    assert asking.have == [mine[0]]
    assert asking.need == [b"\xff" * 32]


@given(st.binary(max_size=120))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_parts_or_refused(data: bytes) -> None:
    with suppress(msgspec.MsgspecError, PeerMisbehaved):
        respond(Ids(some(40)), _decoder.decode(data))


def test_ids_as_a_set() -> None:
    one, two = some(2)
    ids = Ids([one])
    before = ids.fingerprint()
    assert ids.add(two)
    assert not ids.add(two)
    assert (len(ids), list(ids)) == (2, sorted([one, two]))
    assert ids.fingerprint() == Ids([two, one]).fingerprint() != before
    ids.discard(two)
    ids.discard(two)
    assert ids.fingerprint() == before
    assert two not in ids
    assert Ids().fingerprint() != Ids([bytes(32)]).fingerprint(), "an id of zero counts"


# ---- when --------------------------------------------------------------------------------------------------------


def schedule() -> Schedule:
    return Schedule(random.Random(0))


def test_whoever_dials_begins_at_once() -> None:
    plan = schedule()
    assert plan.next_at() == float("inf")
    plan.met("ours", 100.0, ours=True)
    plan.met("theirs", 100.0, ours=False)
    assert plan.take_due(100.0) == ["ours"]
    assert plan.take_due(100.0) == []
    plan.done("theirs", 101.0, found=False)  # they have begun
    assert plan.take_due(100.0 + repair.EXPECTED_S) == []


def test_the_pause_grows_while_nothing_is_found() -> None:
    plan, now = schedule(), 0.0
    plan.met("a", now, ours=True)
    pauses = []
    for found in (False, False, False, False, False, True, False):
        now = plan.next_at()
        assert plan.take_due(now) == ["a"]
        plan.done("a", now, found=found)
        pauses.append(plan.next_at() - now)
    assert 90 < pauses[0] < 150
    assert 480 <= pauses[4] <= 720, "the longest"
    assert 45 < pauses[5] < 75, "something was found"
    assert 90 < pauses[6] < 150


def test_news_that_came_by_repair_spreads() -> None:
    plan = schedule()
    for number in range(6):
        plan.met(f"p{number}", 0.0, ours=True)
    assert len(plan.take_due(0.0)) == 6
    later = repair.EVERY_MAX_S / 2
    for number in range(6):
        plan.done(f"p{number}", later, found=False)
    plan.spread("p0", later + 5.0)
    due = plan.take_due(later + 5.0)
    assert len(due) == repair.SPREAD
    assert "p0" not in due


def test_many_peers_are_no_more_work_than_some() -> None:
    plan, now, begun = schedule(), 0.0, 0
    for number in range(200):
        plan.met(f"p{number}", 0.0, ours=True)
    assert len(plan.take_due(now)) == repair.AT_ONCE
    assert plan.take_due(now) == []
    while (now := plan.next_at()) < 3600.0:
        for peer in plan.take_due(now):
            begun += 1
            plan.done(peer, now, found=False)
    assert begun == pytest.approx(3600 / repair.EVERY_S, abs=repair.AT_ONCE)


def test_the_topic_that_was_repaired_the_longest_ago_comes_first() -> None:
    plan = schedule()
    for number in range(100):
        plan.met(f"p{number}", 0.0, ours=True, topics=[b"one"])
    plan.met("rare", 1.0, ours=True, topics=[b"one", b"other"])
    plan.met("none", 0.0, ours=True)
    begun = plan.take_due(1.0)
    assert "rare" in begun[:2]
    assert "none" not in begun


def test_a_node_that_was_away_waits_before_it_serves() -> None:
    week = 7 * 24 * 3600 * 1000
    fresh = Freshness(repaired_ms=1_000)
    assert fresh.wait_ms(2_000) == 0, "it was away for a second"
    assert fresh.wait_ms(week) == repair.CATCH_UP_S * 1000
    assert fresh.wait_ms(week + 5_000) == (repair.CATCH_UP_S - 5) * 1000
    fresh.repaired(week + 6_000)
    assert fresh.wait_ms(week + 6_001) == 0
    assert fresh.wait_ms(2 * week) == repair.CATCH_UP_S * 1000, "away again, asleep"


def test_it_does_not_wait_for_ever_and_not_again_at_once() -> None:
    week, patience = 7 * 24 * 3600 * 1000, round(repair.CATCH_UP_S * 1000)
    fresh = Freshness(repaired_ms=0)
    assert fresh.wait_ms(week) == patience
    assert fresh.wait_ms(week + patience) == 0
    assert fresh.wait_ms(week + patience + 60_000) == 0
    assert fresh.wait_ms(2 * week) == patience


def test_a_clock_that_was_set_back_is_not_taken_for_recent() -> None:
    assert Freshness(repaired_ms=10_000_000).wait_ms(5_000) > 0
