"""What people are told about averages and measurements."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orchd.cli.nouns.adapter import human_row, human_scores
from orchd.cli.nouns.average import human
from orchd.cli.nouns.deploy import COMMANDS as DEPLOY
from orchd.registry import AdapterRow
from orchd.serve.specs import QUANTIZE_NAMES
from tests.cli.test_shown import example

FIRST, SECOND = "adp_" + "a" * 52, "adp_" + "b" * 52
ROW = example(msgspec.inspect.type_info(AdapterRow), False)


def score(id: str | None, loss: float, interval: float) -> dict[str, Any]:
    name = None if id is None else "words"
    return {"id": id, "name": name, "loss": loss, "loss_interval": interval, "exact_match": 0.5, "examples": 20}


@pytest.mark.parametrize(
    ("loss", "said"), [(4.0, "is better than"), (8.0, "is worse than"), (5.8, "can't be told from")]
)
def test_a_measurement_ends_in_a_verdict_with_its_intervals(loss: float, said: str) -> None:
    shown = human_scores({"rows": [score(None, 6.0, 0.3), score(FIRST, loss, 0.2)]})
    assert f"words {said} the base on these rows" in shown
    assert f"{loss:.3f} ± 0.200" in shown


def test_without_the_base_there_is_no_verdict() -> None:
    assert "the base on" not in human_scores({"rows": [score(FIRST, 4.0, 0.2)]})


def test_an_average_names_its_leaves_and_says_what_the_rank_cut_off() -> None:
    lineage = {"recipe": "ab", "leaves": [{"id": FIRST, "weight": 0.5}, {"id": SECOND, "weight": 0.5}]}
    row = {**ROW, "lineage": lineage, "rank": 16}
    leaves = [{"id": FIRST, "name": "north"}, {"id": SECOND, "name": "south"}]
    shown = human({"adapter": row, "residual_ppm": 125_000, "cosines": [[1.0, 0.25], [0.25, 1.0]], "leaves": leaves})
    assert "rank 16 has no room for 12.5 % of the exact average's length" in shown
    assert f"0.500  north  {FIRST}" in shown
    lines = shown.splitlines()
    assert lines[-3].split() == ["LEAF", "1", "2"]
    assert lines[-2].split() == ["1", "north", "adp_aaaaaaaaaa", "1.000", "0.250"]


def test_a_base_has_its_name_beside_the_fingerprint() -> None:
    own = {**ROW, "base": "base_x", "base_hint": "demo", "trust": "self"}
    assert "base_x (demo)" in human_row(own)
    assert "base_x (its author calls it 'demo')" in human_row({**own, "trust": "stranger"})


def test_the_help_of_deploy_lists_what_a_file_can_be() -> None:
    (quantize,) = [one for one in DEPLOY[0].arguments if "--quantize" in one.names]
    assert all(name in quantize.options["help"] for name in QUANTIZE_NAMES)
