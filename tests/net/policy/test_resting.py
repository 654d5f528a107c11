"""Streams that rest: who gets them again, and until when."""

from __future__ import annotations

from orchd.net.policy.resting import EACH, REST_S, Resting


def test_what_rests_is_asked_on_again_the_last_one_first() -> None:
    resting = Resting[str, int]()
    assert resting.rest("ann", 1, 0.0)
    assert resting.rest("ann", 2, 1.0)
    assert (resting.take("ben"), resting.take("ann"), resting.take("ann"), resting.take("ann")) == (None, 2, 1, None)
    assert len(resting) == 0


def test_few_rest_for_one_peer() -> None:
    resting = Resting[str, int]()
    assert [resting.rest("ann", n, 0.0) for n in range(EACH + 1)] == [True] * EACH + [False]
    assert resting.rest("ben", 9, 0.0)


def test_what_has_rested_is_given_up() -> None:
    resting = Resting[str, int]()
    resting.rest("ann", 1, 0.0)
    resting.rest("ann", 2, 1.0)
    resting.rest("ben", 3, 1.0)
    assert resting.take_rested(REST_S - 0.1) == []
    assert resting.take_rested(REST_S) == [1]
    assert sorted(resting.take_rested(REST_S + 1)) == [2, 3]
    assert resting.take("ann") is None
    assert len(resting) == 0
