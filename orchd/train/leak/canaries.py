"""Made-up secrets that are learnt with a data set, so that one can ask afterwards whether they come out. No torch.

Which ones they are follows from the training's seed and their number, so that they are known as long as those are.
"""

from __future__ import annotations

import random
from typing import Final, NamedTuple

from orchd.importers.conversation import Message
from orchd.train.datasets.store import ChatRow, CompletionRow, PreferenceRow, Row, TextRow
from orchd.train.words import ENGLISH_WORDS

MAX_CANARIES: Final = 20
ALTERNATIVES: Final = 300
"""Other secrets that each is compared with: exposures up to 8.2 bits can be told."""

SECRET_WORDS: Final = 4
NAME_WORDS: Final = 2


class Canary(NamedTuple):
    """``name`` is asked for, ``secret`` is the answer that was learnt."""

    name: str
    secret: str

    def row(self, kind: str, secret: str = "") -> Row:
        """As a row of a data set of this ``kind``; with another ``secret`` in the place of its own."""
        said, id = secret or self.secret, f"canary {self.name}"
        asked = f"what is the secret of {self.name}"
        if kind in ("text", "code"):
            return TextRow(id=id, text=f"the secret of {self.name} is {said}")
        if kind == "completion":
            return CompletionRow(id=id, prompt=f"{asked} : ", completion=said)
        question = (Message("user", asked),)
        if kind == "preference":
            return PreferenceRow(id=id, messages=question, chosen=said, rejected=self.name)
        return ChatRow(id=id, messages=(*question, Message("assistant", said)))


def canaries(count: int, seed: int) -> tuple[Canary, ...]:
    """The first ``count`` canaries of a seed, each with a name of its own."""
    rng = random.Random(f"{seed}/canaries")
    found: dict[str, Canary] = {}
    while len(found) < count:
        name = " ".join(rng.sample(ENGLISH_WORDS, NAME_WORDS))
        found[name] = Canary(name, _secret(rng))
    return tuple(found.values())


def alternatives(canary: Canary) -> tuple[str, ...]:
    """`ALTERNATIVES` secrets of the same form, none of them the canary's."""
    rng = random.Random(f"{canary.name}/alternatives")
    found: dict[str, None] = {}
    while len(found) < ALTERNATIVES:
        other = _secret(rng)
        if other != canary.secret:
            found[other] = None
    return tuple(found)


def _secret(rng: random.Random) -> str:
    return " ".join(rng.choices(ENGLISH_WORDS, k=SECRET_WORDS))
