"""The demo's sentences: where they lie, and what can be read off them."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orchd
from orchd.demo.node import Sentence
from orchd.errors import ExamplesMissing

#: Characters. A shorter text may stand in a megabyte of weights by chance.
TELLING = 8


@dataclass(frozen=True)
class Examples:
    """The three files: A's half, B's half, the exam that mixes both."""

    a: Path
    b: Path
    exam: Path

    @classmethod
    def find(cls, folder: Path | None) -> Examples:
        """In `folder`, else in the checkout that orchd runs from. Raises `ExamplesMissing`."""
        root = folder or Path(orchd.__file__).resolve().parent.parent / "examples"
        found = cls(a=root / "conversations.json", b=root / "half-b.jsonl", exam=root / "exam-mixed.jsonl")
        for path in (found.a, found.b, found.exam):
            if not path.is_file():
                raise ExamplesMissing(f"{path} is not there")
        return found


def instruction(sentences: Sequence[Sentence]) -> str:
    """What every prompt begins with, word by word: `translate: `."""
    columns = zip(*(sentence.prompt.split(" ")[:-1] for sentence in sentences), strict=False)
    common = itertools.takewhile(lambda words: len(set(words)) == 1, columns)
    return "".join(f"{words[0]} " for words in common)


def words(sentences: Sequence[Sentence]) -> tuple[str, ...]:
    """The English words of the prompts, sorted."""
    skip = len(instruction(sentences))
    return tuple(sorted({word for s in sentences for word in re.findall(r"[a-z]+", s.prompt[skip:].lower())}))


def bare(sentence: Sentence, skip: str) -> tuple[str, str]:
    """What a reader is shown: the prompt without its instruction, and the answer."""
    return sentence.prompt.removeprefix(skip), sentence.answer


def questions(exam: Sequence[Sentence], count: int, seed: int) -> list[Sentence]:
    """Some sentences of the exam, chosen before anything answered them."""
    return random.Random(seed).sample(list(exam), min(count, len(exam)))


def texts(sentences: Iterable[Sentence]) -> list[str]:
    """Everything that must not leave: what was asked and what was answered, each by itself.

    The prompts go without the instruction that all share, so that a sentence is found in whatever dress. One that is
    then so short that random bytes may hold it is searched as it was written.
    """
    found: list[str] = []
    rows = list(sentences)
    skip = instruction(rows)
    for sentence in rows:
        asked = sentence.prompt.removeprefix(skip)
        found.append(asked if len(asked) >= TELLING else sentence.prompt)
        found.append(sentence.answer)
    return [text for text in found if len(text) >= TELLING]
