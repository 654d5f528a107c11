from __future__ import annotations

from pathlib import Path

import pytest

from orchd.demo import examples
from orchd.demo.examples import Examples
from orchd.demo.node import Sentence
from orchd.errors import ExamplesMissing

ROWS = [
    Sentence(split="train", prompt="translate: sun cat key", answer="zavo zulat mufor"),
    Sentence(split="test", prompt="translate: fire sun", answer="zonvun zavo"),
]


def test_instruction_is_what_all_prompts_begin_with() -> None:
    assert examples.instruction(ROWS) == "translate: "
    assert examples.instruction([Sentence(split="train", prompt="sun", answer="zavo"), *ROWS]) == ""


def test_words_leave_the_instruction_out() -> None:
    assert examples.words(ROWS) == ("cat", "fire", "key", "sun")


def test_texts_are_both_sides_without_the_instruction() -> None:
    assert examples.texts(ROWS) == ["sun cat key", "zavo zulat mufor", "fire sun", "zonvun zavo"]


def test_texts_too_short_to_tell_are_searched_as_written() -> None:
    rows = [*ROWS, Sentence(split="train", prompt="translate: cat", answer="zulat")]
    assert examples.texts(rows)[-1] == "translate: cat"


def test_questions_depend_on_the_seed_alone() -> None:
    many = [Sentence(split="test", prompt=f"translate: {n}", answer=str(n)) for n in range(50)]
    assert examples.questions(many, 3, seed=1) == examples.questions(many, 3, seed=1)
    assert examples.questions(many, 3, seed=1) != examples.questions(many, 3, seed=2)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExamplesMissing, match=r"conversations\.json"):
        Examples.find(tmp_path)


def test_the_checkout_has_them() -> None:
    found = Examples.find(None)
    assert found.exam.name == "exam-mixed.jsonl"
