from __future__ import annotations

import pytest

from orchd.train.schedule import Schedule


def test_rounds_read_one_schedule() -> None:
    whole = Schedule(1e-2, 300)
    rounds = [Schedule(1e-2, 300, offset=100 * number).rate(step) for number in range(3) for step in range(100)]
    assert rounds == [whole.rate(step) for step in range(300)]


def test_it_rises_stays_and_falls() -> None:
    rates = [Schedule(1.0, 100).rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:51] == pytest.approx([1.0] * 41)
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert 0.02 < rates[-1] < 0.04
    assert Schedule(1.0, 1).rate(0) == 1.0


def test_a_warm_up_of_so_many_steps() -> None:
    rates = [Schedule(1.0, 100, warm_up=20).rate(step) for step in range(20)]
    assert (rates[0], rates[-1]) == pytest.approx((0.05, 1.0))
    assert Schedule(1.0, 100, warm_up=0).rate(0) == 1.0
