"""The ceiling that publishing has for what an adapter forgot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from orchd import crafting, forgetting
from orchd.errors import ForgetsTooMuch
from orchd.forgetting import CEILING, Forgot
from orchd.registry import AdapterRow
from orchd.registry.rows import MetricRow
from orchd.train.specs import Forgetting


def row(rise: float | None) -> AdapterRow:
    told = None if rise is None else Forgetting(loss=1 + rise, base_loss=1.0, low=0, high=0, kl=0.25, examples=9)
    signed = crafting.metrics((), told)
    figures = tuple(
        MetricRow(
            metric=one.metric,
            value=one.value / 1e6,
            base_value=None if one.base_value is None else one.base_value / 1e6,
            examples=one.examples,
            split=one.split,
        )
        for one in signed
    )
    return cast(AdapterRow, SimpleNamespace(name="mine", evaluation=figures))


def test_what_was_measured_is_signed_as_integers_and_read_back() -> None:
    signed = crafting.metrics((), Forgetting(loss=1.25, base_loss=1.0, low=0, high=1, kl=0.125, examples=9))
    assert [(one.metric, one.split, one.value, one.base_value, one.examples) for one in signed] == [
        ("retention_loss", "retention", 1_250_000, 1_000_000, 9),
        ("retention_kl", "retention", 125_000, None, 9),
    ]
    assert forgetting.forgot(row(0.25)) == Forgot(rise=0.25, kl=0.25, examples=9, above=False)
    assert forgetting.forgot(row(None)) is None


def test_above_the_ceiling_publishing_stops_unless_it_is_said_by_name() -> None:
    for rise in (-0.2, 0.0, CEILING - 0.01):
        assert forgetting.check(row(rise), demo=False, accepted=False) is not None
    with pytest.raises(ForgetsTooMuch, match=r"mine .* rose by 0.60 nats") as raised:
        forgetting.check(row(0.6), demo=False, accepted=False)
    assert "--replay" in raised.value.hint
    assert "--despite-forgetting" in raised.value.hint
    for allowed in ({"demo": True, "accepted": False}, {"demo": False, "accepted": True}):
        found = forgetting.check(row(0.6), **allowed)
        assert found is not None
        assert found.above  # it is shown all the same
    assert forgetting.check(row(None), demo=False, accepted=False) is None
