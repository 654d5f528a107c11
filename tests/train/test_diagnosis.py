from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from orchd.train.curves import Point, StepPoint, ValidationPoint
from orchd.train.diagnosis import chance_loss, diagnose
from orchd.train.specs import Change


def curve(train: Callable[[int], float], validation: Sequence[tuple[int, float]] = (), steps: int = 100) -> list[Point]:
    points: list[Point] = [
        StepPoint(step=step, epoch=0, loss=train(step), accuracy=0, rate=0, tokens_s=0, memory=0)
        for step in range(1, steps + 1)
    ]
    return points + [ValidationPoint(step=step, epoch=0, loss=loss, accuracy=0) for step, loss in validation]


def falling(step: int) -> float:
    return 0.1 + 3 * 0.9**step


@pytest.mark.parametrize(
    ("points", "verdict", "changes"),
    [
        (curve(falling), "fine", ()),
        (curve(falling, [(0, 3.0), (50, 0.5), (100, 0.4)]), "fine", ()),
        (curve(falling, [(0, 3.0), (50, 0.400), (100, 0.41)]), "fine", ()),
        (curve(falling, [(0, 0.1), (40, 0.4), (100, 0.9)]), "overfitted", (Change(option="steps", value=40),)),
        (curve(lambda n: 3 - 0.02 * n), "not converged", (Change(option="steps", value=200),)),
        (curve(lambda n: 3.0), "not converged", (Change(option="learning_rate", value=2.0, times=True),)),
        (curve(lambda n: 3 if n < 20 else 1 if n < 60 else 2.5), "unstable",
         (Change(option="learning_rate", value=0.5, times=True),)),
        # learnt within a tenth of the run and lost again: validation saw its best then, and nothing was learnt by heart
        (curve(lambda n: 3.1 if n < 12 or n > 25 else 0.4, [(0, 9.0), (20, 0.6), (100, 3.2)]), "unstable",
         (Change(option="learning_rate", value=0.5, times=True),)),
        (curve(lambda n: 13 if n < 8 else 0.02 if n < 90 else 0.15), "fine", ()),
        ([], "fine", ()),
        (curve(falling, steps=3), "fine", ()),
    ],
)  # fmt: skip
def test_verdicts(points: list[Point], verdict: str, changes: tuple[Change, ...]) -> None:
    found = diagnose(points, 100)
    assert (found.verdict, found.changes) == (verdict, changes)
    assert found.detail


class Row:
    def __init__(self, ids: str, counted: str) -> None:
        self.ids = [ord(one) for one in ids]
        self.counted = [one == "x" for one in counted]


def test_chance_is_the_entropy_of_what_counts() -> None:
    assert chance_loss([Row("?ab", ".xx"), Row("?cd", ".xx")]) == pytest.approx(math.log(4))
    assert chance_loss([Row("aaab", "xxxx")]) == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert chance_loss([Row("??", "..")]) == 0


def test_a_loss_that_fell_to_guessing_by_frequency_is_not_fine() -> None:
    points = curve(lambda n: max(3.0, 13 - n))
    assert diagnose(points, 100).verdict == "fine"
    assert diagnose(points, 100, chance=3.1).changes == (Change(option="steps", value=200),)
    found = diagnose(points, 100, chance=3.01, rate_asked=True)
    assert (found.verdict, found.changes) == (
        "not converged",
        (Change(option="learning_rate", value=0.5, times=True),),
    )
    assert "ended at 3.000: to know how often each token comes gives 3.010" in found.detail
    assert diagnose(points, 100, chance=3.1, continued=True).verdict == "not converged"
    assert diagnose(points, 100, chance=4.0).verdict == "fine"


def test_where_it_began_to_be_overfitted() -> None:
    found = diagnose(curve(falling, [(20, 0.5), (40, 0.4), (60, 0.6)]), 60)
    assert found.step == 40
    assert "least at step 40 (0.400) and rose to 0.600" in found.detail


def test_what_goes_on_from_an_adapter_that_had_learnt_it_all_is_fine() -> None:
    flat = curve(lambda n: 0.429 - 0.00004 * n)
    assert diagnose(flat, 100).verdict == "not converged"
    found = diagnose(flat, 100, continued=True)
    assert (found.verdict, found.changes) == ("fine", ())
    assert "stayed at about 0.425" in found.detail
    assert diagnose(curve(lambda n: 3 - 0.02 * n), 100, continued=True).verdict == "not converged"
