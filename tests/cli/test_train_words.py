"""What `orchctl train` says of a result, and of what can't be read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from orchd.cli.nouns import train, train_plan
from orchd.forgetting import CEILING

RESULT: dict[str, Any] = {
    "adapter": {"name": "mine"},
    "leak": {"stops": False, "verdict": "no telling"},
    "forgetting": {"loss": 1.0, "base_loss": 0.9},
}


def test_publishing_is_not_recommended_where_it_would_be_refused() -> None:
    assert "adapter publish" in train._then(RESULT)
    refused = {**RESULT, "leak": {"stops": True, "verdict": "gives away"}}
    assert "publish" not in train._then(refused)
    assert "what it gives away" in train._then(refused)


def test_a_good_curve_does_not_hide_what_else_happened() -> None:
    assert train.FORGETTING == CEILING
    assert train._beside_the_curve(RESULT) == []
    bad = {**RESULT, "leak": {"stops": True, "verdict": "gives away"}, "forgetting": {"loss": 4.9, "base_loss": 0.9}}
    forgot, leaks = train._beside_the_curve(bad)
    assert "4.000 nats" in forgot
    assert leaks.endswith("gives away")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "is not there; check the path"), ("{bad", "not JSON (line 1"), ("[]", "JSON object")],
)
def test_a_configuration_that_can_not_be_read(content: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        train_plan._config(str(file))
    assert said in str(refused.value)
    assert "Errno" not in str(refused.value)


@pytest.mark.parametrize("text", ["0", "-3", "many"])
def test_no_steps_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        train._positive(text)
    assert train._positive("43") == 43
