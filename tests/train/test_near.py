"""Near duplicates: what is found among many, and what is left alone."""

from __future__ import annotations

import random

import pytest

from orchd.train.datasets.near import RELATED, SAME, Groups, find_near

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]


def text(rng: random.Random, words: int = 120) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def changed(rng: random.Random, said: str, share: float) -> str:
    return " ".join(rng.choice(WORDS) if rng.random() < share else word for word in said.split())


def alike(one: str, other: str) -> float:
    """Jaccard similarity of the word triples."""
    pair = [set(zip(words, words[1:], words[2:], strict=False)) for words in (one.split(), other.split())]
    return len(pair[0] & pair[1]) / len(pair[0] | pair[1])


def found(texts: list[str]) -> tuple[list[int], Groups]:
    groups = Groups(len(texts))
    return find_near(len(texts), texts.__getitem__, groups), groups


def test_planted_copies_are_found_and_nothing_else() -> None:
    rng = random.Random(1)
    plain = [text(rng) for _ in range(400)]
    copies = [changed(rng, one, 0.02) for one in plain[:100]]
    same = {400 + number for number in range(100) if alike(plain[number], copies[number]) >= SAME}
    assert len(same) > 80
    assert set(found(plain + copies)[0]) == same, "the first of two stays"


def test_related_rows_are_grouped_and_stay() -> None:
    rng = random.Random(2)
    plain = [text(rng) for _ in range(200)]
    related = [changed(rng, one, 0.07) for one in plain[:50]]
    kin = {number for number in range(50) if alike(plain[number], related[number]) >= RELATED}
    gone, groups = found(plain + related)
    together = {number for number in range(50) if groups.find(200 + number) == groups.find(number)}
    assert together <= kin
    assert len(kin) > 35
    assert len(together) >= 0.9 * len(kin)
    assert len(gone) < 10
    assert len({groups.find(number) for number in range(200)}) == 200


def test_short_rows_are_the_same_only_when_they_are_equal() -> None:
    texts = [f"translate: {' '.join(WORDS[:20])} {word}" for word in WORDS[50:80]]
    gone, groups = found(texts)
    assert gone == []
    assert len({groups.find(number) for number in range(30)}) == 30


def test_a_template_that_all_share_makes_no_duplicates() -> None:
    rng = random.Random(3)
    instruction = text(rng, 150)
    gone, groups = found([f"{instruction} {text(rng, 40)}" for _ in range(100)])
    assert gone == []
    assert len({groups.find(number) for number in range(100)}) == 100


def test_case_and_punctuation_do_not_matter() -> None:
    said = text(random.Random(4))
    assert found([said, said.upper().replace(" ", ", ") + "!"])[0] == [1]


def test_it_can_be_stopped() -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        find_near(2, lambda _: "x", Groups(2), stop)
