"""Skills that the demo base lacks, by name: the families of the facts page on training, section 2.

A question is a task's name and some words; its answer follows from the words alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from orchd.importers.conversation import Conversation, Message, Part
from orchd.importers.source import ImportLog
from orchd.train.datasets.build import Care, Parts, build
from orchd.train.words import ENGLISH_WORDS, INVENTED_WORDS


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ANIMALS: Final = _words(
    """
    cat lion owl fish crab shark cow tiger whale mouse sheep horse dog goat wolf fox frog rat bird bee camel zebra duck
    snake bear pig
    """
)
FOOD: Final = _words("milk onion salt cake meat melon soup plum pear lemon corn sugar egg honey bread butter")
#: Half of an invented language: word for word.
LEXICON: Final = dict(zip(ENGLISH_WORDS[:54], INVENTED_WORDS, strict=False))
Answer = Callable[[Sequence[str]], Sequence[str]]


def _animals(words: Sequence[str]) -> Sequence[str]:
    return [word for word in words if word in ANIMALS] or ["none"]


def _kinds(words: Sequence[str]) -> Sequence[str]:
    return ["animal" if words[0] in ANIMALS else "food" if words[0] in FOOD else "thing"]


#: Name → the words that it is about, how many a question has, and the answer to them.
FAMILIES: Final[dict[str, tuple[Sequence[str], int, Answer]]] = {
    "reverse": (ENGLISH_WORDS, 3, lambda words: words[::-1]),
    "rotate": (ENGLISH_WORDS, 3, lambda words: [*words[1:], words[0]]),
    "outer": (ENGLISH_WORDS, 3, lambda words: [words[-1], *words[1:-1], words[0]]),
    "stutter": (ENGLISH_WORDS, 3, lambda words: [words[0], *words]),
    "animals": (ENGLISH_WORDS, 3, _animals),
    "class": (ENGLISH_WORDS, 1, _kinds),
    "translate": (tuple(LEXICON), 3, lambda words: [LEXICON[word] for word in words]),
}


def draw(family: str, count: int, rng: random.Random) -> list[Conversation]:
    """``count`` different questions."""
    words, length, answer = FAMILIES[family]
    seen: set[tuple[str, ...]] = set()
    found: list[Conversation] = []
    while len(found) < count:
        asked = tuple(rng.sample(words, length))
        if asked in seen:
            continue
        seen.add(asked)
        question, told = f"{family}: {' '.join(asked)}", " ".join(answer(asked))
        messages = (Message("user", question), Message("assistant", told))
        found.append(Conversation(id=str(len(found)), messages=messages))
    return found


def parts(family: str, folder: Path, train: int, validation: int, test: int, *, seed: int) -> Path:
    """A data set of a family: so many rows in each part, none of them twice. Where the family has fewer questions
    (``class``: 108), a tenth of them is put aside for each of the other parts, and the rest is learnt."""
    words, length, _ = FAMILIES[family]
    questions = math.perm(len(words), length)
    if questions < train + validation + test:
        validation = test = questions // 10
        train = questions - validation - test
    rows = draw(family, train + validation + test, random.Random(seed))
    return write(
        {"train": rows[:train], "validation": rows[train : train + validation], "test": rows[train + validation :]},
        folder,
    )


def write(parts: Mapping[Part, Sequence[Conversation]], folder: Path) -> Path:
    """A data set with these parts. Near duplicates are kept: all rows of a family are near to each other."""
    rows = [msgspec.structs.replace(one, part=part) for part, conversations in parts.items() for one in conversations]
    build(rows, ImportLog(), folder, Parts(), folder.name, Care(drop_near=False))
    return folder
