"""Buckets, paces, quotas and turns, on a clock of their own."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from orchd.net.policy.rates import BURST_S, REMEMBERED, Bucket, Pace, Quotas, Turns


def test_a_bucket_fills_again() -> None:
    bucket = Bucket(rate=2.0, burst=3.0, now=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(1.0) for _ in range(3)] == [True, True, False]
    assert not bucket.is_full(2.0)
    assert bucket.is_full(100.0)
    assert bucket.take(100.0, 3)
    assert not bucket.take(100.0)
    assert not bucket.take(50.0), "a clock that goes back gives nothing"


@given(st.lists(st.tuples(st.integers(1, 100_000), st.floats(0.0, 0.5)), min_size=1, max_size=60))
def test_a_pace_is_never_exceeded(asked: list[tuple[int, float]]) -> None:
    """Up to any moment no more has passed than the rate allows, a burst and the last portion."""
    pace, now, passed = Pace(10_000), 0.0, 0
    for count, pause in asked:
        now += pause
        begin = now + pace.reserve(now, count)
        assert passed <= (begin + BURST_S) * 10_000 + 1
        passed += count


def test_a_pace_is_used_to_the_full() -> None:
    pace, now = Pace(1000), 0.0
    for _ in range(100):
        now += pace.reserve(now, 100)
    assert abs(now - 10.0) <= 2 * BURST_S


def test_those_who_wait_at_one_pace_wait_in_turn() -> None:
    pace = Pace(1000)
    waits = [pace.reserve(0.0, 500) for _ in range(4)]
    assert waits == sorted(waits)
    assert waits[3] - waits[2] == 0.5
    assert not pace.is_free(1.0)
    assert pace.is_free(2.0)


def test_no_rate_is_no_wait() -> None:
    pace = Pace(0)
    assert pace.reserve(0.0, 1 << 40) == 0.0
    assert pace.portion(1 << 20, 1.0) == 1 << 20
    assert Pace(1000).portion(1 << 20, 0.5) == 500
    assert Pace(1).portion(1 << 20, 0.001) == 1


def test_a_quota_is_for_each_and_comes_back() -> None:
    quotas: Quotas[str] = Quotas(1000, 3600.0)
    assert quotas.take("a", 0.0, 900)
    assert not quotas.take("a", 1.0, 200)
    assert quotas.take("b", 1.0, 1000)
    assert 0 < quotas.wait("a", 1.0, 200) < 360
    assert quotas.wait("a", 1.0, 1001) == math.inf, "more than it ever has"
    assert (quotas.wait("b", 1.0, 1000), quotas.wait("new", 1.0, 1000)) == (3600.0, 0.0)
    assert quotas.take("a", 1800.0, 500)
    assert Quotas[str](0, 3600.0).take("a", 0.0, 1 << 60)


def test_quotas_have_a_bound() -> None:
    quotas: Quotas[int] = Quotas(10, 1.0)
    for key in range(3 * REMEMBERED):
        quotas.take(key, 0.0, 1)
    assert len(quotas) == REMEMBERED


def test_a_greedy_peer_waits_behind_others() -> None:
    turns: Turns[str, str] = Turns(slots=2, each=8)
    for number in range(8):
        assert turns.enter("greedy", f"g{number}")
    assert not turns.enter("greedy", "one too many")
    assert (turns.next(), turns.next(), turns.next()) == ("g0", "g1", None)
    turns.enter("modest", "m0")
    turns.enter("shy", "s0")
    turns.give_back("greedy")
    assert turns.next() == "m0"
    turns.give_back("greedy")
    assert turns.next() == "s0"
    turns.give_back("modest")
    turns.give_back("shy")
    assert (turns.next(), turns.next()) == ("g2", "g3")
    assert turns.waiting == 4


def test_equals_are_served_in_turn() -> None:
    turns: Turns[str, str] = Turns(slots=1, each=3)
    for key in "abc":
        for number in range(3):
            turns.enter(key, f"{key}{number}")
    order = []
    while (waiter := turns.next()) is not None:
        order.append(waiter)
        turns.give_back(waiter[0])
    assert order == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]
    assert turns.free == 1


def test_who_gives_up_leaves_no_trace() -> None:
    turns: Turns[str, str] = Turns(slots=0, each=2)
    turns.enter("a", "x")
    assert turns.give_up("a", "x")
    assert not turns.give_up("a", "x")
    assert turns.waiting == 0
