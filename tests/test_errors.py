"""Error numbers are unique, stand in their group, and each is explained in docs/errors.md."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from orchd.errors import OrchdError, ParamsInvalid, did_you_mean, error_classes, from_wire

ROOT = Path(__file__).resolve().parent.parent


def all_classes() -> list[type[OrchdError]]:
    found, waiting = [], [OrchdError]
    while waiting:
        cls = waiting.pop()
        found.append(cls)
        waiting += cls.__subclasses__()
    return [cls for cls in found if "code" in vars(cls) and cls.__module__ == "orchd.errors"]


def test_no_number_is_used_twice() -> None:
    assert [code for code, times in Counter(cls.code for cls in all_classes()).items() if times > 1] == []


def test_each_error_has_a_next_step_of_its_own() -> None:
    hints = Counter(cls.default_hint for cls in all_classes())
    assert [hint for hint, times in hints.items() if times > 1] == []
    assert [cls.__name__ for cls in all_classes() if not cls.default_hint.endswith(".")] == []


def test_each_error_says_what_happened() -> None:
    assert [cls.__name__ for cls in all_classes() if not vars(cls).get("__doc__")] == []


@pytest.mark.parametrize("cls", all_classes(), ids=lambda cls: cls.__name__)
def test_an_error_comes_back_over_a_wire(cls: type[OrchdError]) -> None:
    error = from_wire(cls.code, "what happened", "what to do", "field")
    assert type(error) is cls is error_classes()[cls.code]
    assert (str(error), error.hint, error.field) == ("what happened", "what to do", "field")


def test_a_wrong_parameter_is_named_in_the_next_step() -> None:
    assert ParamsInvalid("rank 0 is not from 1 to 256", field="rank").hint.startswith("Change `rank`")
    assert ParamsInvalid("no such file", field="source", hint="Check the path.").hint == "Check the path."
    assert ParamsInvalid("not an object").hint == ParamsInvalid.default_hint


def test_only_a_near_word_is_suggested() -> None:
    assert did_you_mean("trian", ["train", "chat"]) == "Did you mean `train`?"
    assert did_you_mean("jobs", ["job"], before="orchctl ") == "Did you mean `orchctl job`?"
    assert did_you_mean("stop", ["topic", "status"]) is None
    assert did_you_mean("connect", ["net", "config"]) is None


def test_the_page_of_errors_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "error_pages.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
