"""Averages without the leaves that nobody gives."""

from __future__ import annotations

import pytest

from orchd.average.recipe import Expanded
from orchd.errors import AverageSpecInvalid
from orchd.records import text_id
from orchd.records.ids import ADAPTER
from orchd.rpc.leaves import left_out, unknown

A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))
IDS = {leaf: text_id(ADAPTER, leaf) for leaf in (A, B, C)}


def test_the_others_weights_grow_to_fill_the_gap() -> None:
    whole = Expanded(((A, 500_000), (B, 300_000), (C, 200_000)), 1_200_000)
    assert left_out(whole, [IDS[A]]) == Expanded(((B, 600_000), (C, 400_000)), 1_200_000)
    assert left_out(whole, []) is whole


def test_one_leaf_is_no_average() -> None:
    whole = Expanded(((A, 500_000), (B, 300_000), (C, 200_000)), 1_000_000)
    with pytest.raises(AverageSpecInvalid, match="1 of 3 leaves are left"):
        left_out(whole, [IDS[A], IDS[B]])


def test_who_can_not_be_had_is_named_with_the_reason() -> None:
    error = unknown({IDS[A]: "nobody has it", IDS[B]: "it was revoked"})
    assert error.message == f"2 leaves can't be had: {IDS[A]} (nobody has it); {IDS[B]} (it was revoked)"
    assert "--allow-partial" in error.hint
