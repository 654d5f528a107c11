"""What people are told about averages and measurements."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orchd.cli.nouns.adapter import human_row
from orchd.cli.nouns.adapter_scores import human_scores
from orchd.cli.nouns.average import human
from orchd.cli.nouns.deploy import COMMANDS as DEPLOY
from orchd.registry import AdapterRow
from orchd.serve.specs import QUANTIZE_NAMES
from tests.cli.test_shown import example

FIRST, SECOND = "adp_" + "a" * 52, "adp_" + "b" * 52
ROW = example(msgspec.inspect.type_info(AdapterRow), False)


def score(id: str | None, loss: float) -> dict[str, Any]:
    measures = [{"metric": "loss", "value": loss, "low": loss - 0.2, "high": loss + 0.2, "examples": 20}]
    measures.append({"metric": "exact_match", "value": 0.5, "low": None, "high": None, "examples": 15})
    speed = {"first_token_ms": 12.5, "tokens_s": 80.0, "memory": 2_000_000}
    return {
        "id": id,
        "name": None if id is None else "words",
        "examples": 20,
        "measures": measures,
        "labels": [],
        **speed,
    }


def result(loss: float, verdict: str, p: float = 0.01) -> dict[str, Any]:
    beside = {"adapter": FIRST, "against": None, "metric": "loss", "value": loss, "against_value": 6.0}
    compared = {**beside, "low": loss - 6.3, "high": loss - 5.7, "p": p, "examples": 20, "verdict": verdict}
    rows = [score(None, 6.0), score(FIRST, loss)]
    return {"rows": rows, "split": "test", "comparisons": [compared], "answers": [], "asked": 15}


@pytest.mark.parametrize(
    ("loss", "verdict", "said"),
    [
        (4.0, "better", "is better than"),
        (8.0, "worse", "is worse than"),
        (5.8, "not told apart", "can't be told from"),
    ],
)
def test_a_measurement_ends_in_a_verdict_with_its_test(loss: float, verdict: str, said: str) -> None:
    shown = human_scores(result(loss, verdict))
    assert f"words {said} the base on these rows: loss {loss:.3f}, there 6.000" in shown
    assert f"{loss:.3f} ({loss - 0.2:.3f} to {loss + 0.2:.3f})" in shown
    assert "20 rows of the test part, 15 of them asked" in shown
    assert "12.5 ms" in shown


def test_what_may_be_chance_is_said_to_be() -> None:
    shown = human_scores(result(5.8, "not told apart", p=0.4))
    assert "difference -0.500 to +0.100, p = .400 (may be chance)" in shown
    assert "p < .001" in human_scores(result(2.0, "better", p=0.0001))


def test_where_no_verdict_is_possible_that_is_said() -> None:
    made = result(4.0, "too few rows", p=0.125)
    made["comparisons"][0] |= {"units": 4, "low": None, "high": None}
    shown = human_scores(made)
    assert "can't be told from the base on these rows (4 independent rows are too few for any verdict" in shown
    assert "chance" not in shown


def test_without_the_base_there_is_no_verdict() -> None:
    shown = human_scores({**result(4.0, "better"), "comparisons": []})
    assert "the base on" not in shown


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
