"""How near an answer is to the one that was wanted: chrF, ROUGE-L, and precision, recall and F1 of labels. No torch.

Own code because sacrebleu and rouge-score bring lxml, nltk and absl for these few lines; the tests hold their values.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

CHRF_ORDER: Final = 6
CHRF_BETA: Final = 2
"""Recall counts twice as much as precision, as in sacrebleu's `chrF2`."""

MAX_LABELS: Final = 20
LABEL_LENGTH: Final = 64  # characters
MIN_LABELLED: Final = 10
PER_LABEL: Final = 3
"""Answers are labels when there are so few different ones, so short, and each so often on average."""

_WORDS: Final = re.compile(r"\w+")


class LabelScore(msgspec.Struct, frozen=True, kw_only=True):
    """How well one label is found, as shares from 0 to 1. ``examples`` of the wanted answers are it."""

    label: str
    precision: float
    recall: float
    f1: float
    examples: int


def chrf(answer: str, wanted: str) -> float:
    """Character n-gram F2 of one answer, from 0 to 1, without white space (Popović 2015, as sacrebleu computes it)."""
    said, meant = "".join(answer.split()), "".join(wanted.split())
    precisions, recalls = [], []
    for size in range(1, CHRF_ORDER + 1):
        one, other = _grams(said, size), _grams(meant, size)
        if one and other:
            shared = (one & other).total()
            precisions.append(shared / one.total())
            recalls.append(shared / other.total())
    if not precisions:
        return float(said == meant)
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    factor = CHRF_BETA**2
    return (1 + factor) * precision * recall / (factor * precision + recall) if precision + recall else 0.0


def _grams(text: str, size: int) -> Counter[str]:
    return Counter(text[at : at + size] for at in range(len(text) - size + 1))


def rouge_l(answer: str, wanted: str) -> float:
    """F1 of the longest common subsequence of words in small letters, from 0 to 1 (Lin 2004)."""
    said, meant = _WORDS.findall(answer.lower()), _WORDS.findall(wanted.lower())
    if not said or not meant:
        return float(said == meant)
    common = longest_common(said, meant)
    return 2 * common / (len(said) + len(meant))


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a bit a word (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    state = (1 << len(one)) - 1
    for word in other:
        found = state & places.get(word, 0)
        state = (state + found) | (state - found)
    return len(one) - (state & ((1 << len(one)) - 1)).bit_count()


def labels_of(wanted: Sequence[str]) -> tuple[str, ...]:
    """The labels that the wanted answers are, sorted; none where they are free text."""
    found = sorted(set(wanted))
    few = len(wanted) >= MIN_LABELLED and 2 <= len(found) <= MAX_LABELS and len(wanted) >= PER_LABEL * len(found)
    return tuple(found) if few and all(0 < len(one) <= LABEL_LENGTH for one in found) else ()


def label_scores(labels: Sequence[str], answers: Sequence[str], wanted: Sequence[str]) -> tuple[LabelScore, ...]:
    """Precision, recall and F1 of each label. An answer that is no label is wrong, and nobody's."""
    right = Counter(one for one, other in zip(answers, wanted, strict=True) if one == other)
    said, meant = Counter(answers), Counter(wanted)
    return tuple(
        LabelScore(
            label=label,
            precision=right[label] / said[label] if said[label] else 0.0,
            recall=right[label] / meant[label] if meant[label] else 0.0,
            f1=2 * right[label] / max(1, said[label] + meant[label]),
            examples=meant[label],
        )
        for label in labels
    )
