"""Does a signature never say no to a text that holds the word, and mostly no to one that does not?"""

from __future__ import annotations

import random

import duckdb
from hypothesis import given
from hypothesis import strategies as st

from orchd.registry import trigrams


@given(before=st.text(max_size=40), word=st.text(max_size=20), after=st.text(max_size=40))
def test_a_text_has_all_bits_of_every_part_of_it(before: str, word: str, after: str) -> None:
    text = trigrams.signature(before + word + after)
    assert all(mine & theirs == mine for mine, theirs in zip(trigrams.signature(word), text, strict=True))


def test_most_texts_without_a_word_lack_a_bit_of_it() -> None:
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = [" ".join("".join(rng.choices(letters, k=7)) for _ in range(20)) for _ in range(500)]
    wanted = trigrams.signature("morning")
    passed = [text for text in texts if all(w & t == w for w, t in zip(wanted, trigrams.signature(text), strict=True))]
    assert len(passed) <= 5


def test_a_blank_parts_words_and_a_short_word_says_nothing() -> None:
    assert trigrams.signature("ab cd") == trigrams.signature("") == [0] * len(trigrams.COLUMNS)
    assert trigrams.condition("ab") == ""


def test_the_condition_is_what_duckdb_takes_for_all_bits() -> None:
    columns = ", ".join(f"{value}::UBIGINT AS {name}" for name, value in zip(
        trigrams.COLUMNS, trigrams.signature("good morning, süße"), strict=True))  # fmt: skip
    for word, found in (("morning", True), ("süß", True), ("evening", False)):
        sql = f"SELECT {trigrams.condition(word)} FROM (SELECT {columns})"
        assert duckdb.connect(":memory:").execute(sql).fetchall() == [(found,)], word
