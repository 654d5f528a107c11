from __future__ import annotations

import itertools

import pytest

from orchd.train.prepare import validate_every
from orchd.train.schedule import Schedule, schedule_of
from orchd.train.specs import TrainSpec


def spec(**given: int) -> TrainSpec:
    return TrainSpec(base="", dataset="", learning_rate=1.0, schedule_total=given.get("total", 0))


def test_rounds_read_one_schedule() -> None:
    whole = Schedule(1e-2, 300)
    rounds = [Schedule(1e-2, 300, offset=100 * number).rate(step) for number in range(3) for step in range(100)]
    assert rounds == [whole.rate(step) for step in range(300)]


def test_one_training_rises_and_falls() -> None:
    schedule = schedule_of(spec(), 100)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:11] == [1.0, 1.0]
    assert rates[:10] == sorted(rates[:10])
    falls = [before - after for before, after in itertools.pairwise(rates[10:])]
    assert falls == pytest.approx([0.98 / 90] * 89)
    assert 0.02 < rates[-1] < 0.04
    assert Schedule(1.0, 1).rate(0) == 1.0


@pytest.mark.parametrize(
    "schedule", [schedule_of(spec(total=100), 30), schedule_of(spec(), 100, preferences=True)], ids=["rounds", "dpo"]
)
def test_rounds_and_preferences_stay_before_they_fall(schedule: Schedule) -> None:
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[10:51] == pytest.approx([1.0] * 41)
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert 0.02 < rates[-1] < 0.04


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_a_warm_up_of_so_many_steps(decay: float) -> None:
    rates = [Schedule(1.0, 100, warm_up=20, decay=decay).rate(step) for step in range(20)]
    assert (rates[0], rates[-1]) == pytest.approx((0.05, 1.0))
    assert Schedule(1.0, 100, warm_up=0, decay=decay).rate(0) == 1.0
    late = Schedule(1.0, 100, warm_up=80, decay=decay)
    assert [late.rate(79), late.rate(80)] == [1.0, 1.0]
    assert late.rate(99) < 0.1
    assert Schedule(1.0, 100, warm_up=100, decay=decay).rate(99) == 1.0


@pytest.mark.parametrize(
    ("steps", "batch", "examples", "validation", "every"),
    [
        (1000, 8, 8, 10, 50),  # no more than `VALIDATIONS`
        (2000, 8, 3200, 10, 400),  # no more than one an epoch
        (400, 8, 80, 40, 34),  # at the share of the time that they may take
        (112, 8, 20, 100, 12),  # `LEAST_VALIDATIONS`, at more than that share
        (3, 8, 20, 100, 3),
    ],
)
def test_how_often_a_run_is_validated(steps: int, batch: int, examples: int, validation: int, every: int) -> None:
    assert validate_every(steps, batch, examples, validation) == every
