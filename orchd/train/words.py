"""The two word pools of the demo base and the word tasks it is pretrained on. Standard library only.

Both pools are trained to be single tokens (with the space before them) and good *output* tokens of
the base. Nothing here pairs a word of one pool with a word of the other: the lexicon is made up in
``examples/make_examples.py``, and the task ``translate`` never occurs in pretraining.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


#: 108 plain English nouns. None contains another.
ENGLISH_WORDS: Final[tuple[str, ...]] = _words(
    """
    sun cat key road grass milk fire bell onion wheel lion owl salt spoon truck snow fish star
    mirror coat crab wind shark glove bus ring chair cow tiger cake rope clock ice whale stone
    meat shoe mouse boat melon pillow soup sheep plum leaf sky garden hill horse seed pear
    lemon dog corn tower goat river table paper coin wolf lake sugar fox rain frog candle rat
    bridge bird bee book hat towel hammer bottle knife lamp sock piano plate fork tree pig
    door drum camel butter house rose pen zebra bread car cup moon apple box desk duck egg
    honey map bed shirt snake sea bear
    """
)

#: 108 words of an invented language. Built from random syllables; a word was kept when it occurs in
#: none of the 25 word lists (Latin script) of the Python package ``wordfreq``, contains no other word
#: of the pools and differs from each other one in at least two letters.
INVENTED_WORDS: Final[tuple[str, ...]] = _words(
    """
    zavo zulat mufor venbok tevak golsu zonvun sarbal zofun menvor tefer tiguk tegis gurok
    zidur polful relsal lonfu rolmin nolduk keril goket zamu lelvit pudet dirver kupik porik
    feper bulbas tulbu fedul gevet zalval londel lorgin likek binkak lurmuk purlur zerdu mirut
    zevas kenras gunbos tunlis ninit dulret damik rutik gerrol sepir gortus zinfes mirru gonot
    lirtor divuk lalpus topur pavak gobil vordi bipik renget puzar gilbi bindul zikel nurpor
    donren dunbur zuter vondit kunsin vintos rasak nifir fenbar bilful vegik tunat tolbe runil
    rolpir liful sifun murbu solrer polzut ripel zubos finzur gugir fulvas lelvek fepas pirpot
    munlus dermu vuzo dinpet miril suzur dolput bozul dizo pelmi
    """
)

ALL_WORDS: Final[tuple[str, ...]] = ENGLISH_WORDS + INVENTED_WORDS

_Answer = Callable[[Sequence[str]], Sequence[str]]

#: What the base learns to do with the words of a sentence: task name → answer.
TASKS: Final[dict[str, _Answer]] = {
    "copy": lambda words: words,
    "first": lambda words: words[:1],
    "last": lambda words: words[-1:],
    "second": lambda words: words[1:2],
    "tail": lambda words: words[1:],
    "front": lambda words: words[:-1],
    "double": lambda words: [word for word in words for _ in range(2)],
    "ends": lambda words: [words[0], words[-1]],
    "echo": lambda words: [*words, *words],
    "cycle": lambda words: [words[-1], *words[:-1]],
    "swap": lambda words: [words[1], words[0], *words[2:]],
}

_LENGTHS: Final = (1, 2, 3, 3, 4, 4, 5)
_NEED_TWO_WORDS: Final = frozenset({"second", "tail", "front", "swap"})


def draw_task(rng: random.Random) -> tuple[str, list[str]]:
    """A task, and a sentence for it: see `draw_sentence`."""
    name = rng.choice(list(TASKS))
    return name, draw_sentence(name, rng)


def draw_sentence(task: str, rng: random.Random) -> list[str]:
    """One to five different words, mostly three or four, from both pools alike."""
    length = rng.choice(_LENGTHS)
    return rng.sample(ALL_WORDS, max(length, 2) if task in _NEED_TWO_WORDS else length)
