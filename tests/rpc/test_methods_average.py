"""An average of averages: what is taken of their leaves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchd.average.recipe import Parent
from orchd.errors import AverageNotExpandable
from orchd.records import Manifest, Verified
from orchd.rpc.methods_average import coefficients, parent_of

A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))


def average(method: str, extra: dict[str, Any] | None = None, rank: int = 16) -> Verified[Manifest]:
    leaves = tuple(SimpleNamespace(id=id, weight_ppm=ppm) for id, ppm in ((A, 333_334), (B, 333_333), (C, 333_333)))
    lineage = SimpleNamespace(method=method, rank=rank, leaves=leaves, strength_ppm=1_200_000)
    record = SimpleNamespace(name="ours", lineage=lineage, extra=extra or {})
    return cast(Verified[Manifest], SimpleNamespace(record=record, id="adp_x"))


def taken(*ppm: object) -> dict[str, Any]:
    return {"average": {"version": 1, "coefficients_ppm": list(ppm)}}


@pytest.mark.parametrize("method", ["mean", "mean/stacked", "mean/energy:0.9"])
def test_a_mean_is_its_weights(method: str) -> None:
    found = parent_of(average(method, taken(0, 0, 1_000_000)))
    assert found == Parent([(A, 333_334), (B, 333_333), (C, 333_333)], 1_200_000)


@pytest.mark.parametrize("method", ["krum", "clip/budget:8"])
def test_who_was_thrown_out_does_not_come_back(method: str) -> None:
    found = parent_of(average(method, taken(250_000, 0, 500_000)))
    assert found == Parent([(A, 250_000), (C, 500_000)], 1_200_000)


@pytest.mark.parametrize("method", ["tsv", "median/stacked", "trimmed-mean", "slerp", "mean/all"])
def test_what_is_no_weighted_sum_is_refused(method: str) -> None:
    with pytest.raises(AverageNotExpandable, match=f"ours \\(adp_x\\), an average by {method}"):
        parent_of(average(method, taken(1, 1, 1)))


@pytest.mark.parametrize(
    "extra", [{}, taken(), taken(1, 2), taken(1, 2, -3), taken(0, 0, 0), taken("a", 1, 2), {"average": 3}]
)
def test_an_average_that_does_not_say_what_it_took_is_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(AverageNotExpandable, match="does not say"):
        parent_of(average("clip", extra))


def test_what_a_newer_orchd_adds_is_read_over() -> None:
    told = taken(1, 2, 3)
    told["average"]["also"] = "more"
    assert coefficients(average("clip", told).record) == (1, 2, 3)
