"""Two households that do not exist, and what only they know: who runs ten places nearby, and which day each is closed.

What is learnt and what is asked in the exam are the same facts in other words. Everything follows from the seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KINDS: Final = (
    *("bakery", "bookshop", "florist", "pharmacy", "barber", "tea room", "cobbler", "tailor", "grocer", "butcher"),
)
STREETS: Final = (("Larch Street", "Mill Lane"), ("Quay Road", "Abbey Square"))
"""Each household's own."""

NAMES: Final = (
    *("Odile Marsh", "Tomas Reyne", "Ines Calder", "Piet Holloway", "Wanda Frost", "Hugo Lennox", "Mira Stell"),
    *("Anselm Pike", "Greta Vance", "Rafael Moss", "Nadia Thorne", "Leo Brandt", "Celia Wren", "Otto Farrow"),
    *("Zelda Quill", "Bruno Hale", "Petra Lund", "Simon Ash", "Lotte Beck", "Dario Finch"),
)
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LEARNT: Final = (
    ("Who runs the {kind} on {street}?", "What is the name of the person who runs the {kind} on {street}?"),
    ("Which day is the {kind} on {street} closed?", "On what day of the week is the {kind} on {street} shut?"),
)
"""Of either fact, in two ways each."""

ASKED: Final = ("Tell me who runs the {kind} on {street}.", "When is the {kind} on {street} closed?")


@dataclass(frozen=True)
class Question:
    """What is asked of a household's places, and the one right answer."""

    prompt: str
    answer: str

    @property
    def line(self) -> str:
        """As a conversation of a JSONL file."""
        messages = [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]
        return json.dumps({"messages": messages}) + "\n"


@dataclass(frozen=True)
class Household:
    """`learnt` is each fact in two ways, `exam` in a third one that nobody was taught; `places` what it is about."""

    places: tuple[str, ...]
    learnt: tuple[Question, ...]
    exam: tuple[Question, ...]

    def write(self, folder: Path) -> tuple[Path, Path]:
        """The file to learn from and the exam."""
        return _write(folder / "learnt.jsonl", self.learnt), _write(folder / "exam.jsonl", self.exam)


def households(seed: int) -> tuple[Household, Household]:
    """Ten places each, of different streets and different people."""
    rng = random.Random(f"{seed}/households")
    names = rng.sample(NAMES, len(NAMES))
    half = len(names) // 2
    return _household(rng, STREETS[0], names[:half]), _household(rng, STREETS[1], names[half:])


def _household(rng: random.Random, streets: Sequence[str], names: Sequence[str]) -> Household:
    places, learnt, exam = list[str](), list[Question](), list[Question]()
    for number, (kind, name) in enumerate(zip(KINDS, names, strict=True)):
        place = {"kind": kind, "street": streets[number % len(streets)]}
        places.append("the {kind} on {street}".format(**place))
        for answer, ways, asked in zip((name, rng.choice(DAYS)), LEARNT, ASKED, strict=True):
            learnt += [Question(way.format(**place), answer) for way in ways]
            exam.append(Question(asked.format(**place), answer))
    return Household(places=tuple(places), learnt=tuple(learnt), exam=tuple(exam))


def _write(path: Path, questions: Sequence[Question]) -> Path:
    path.write_text("".join(one.line for one in questions), encoding="utf-8")
    return path
