"""Which language a text is in, by its script and its commonest words. Good enough to count and to filter by."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

UNKNOWN: Final = "?"
LOOKED_AT: Final = 4_000  # characters

_COMMON: Final = {
    "en": "the of and to in is that for it you with are this be as on not have what how can i my was but your",
    "pt": "de que e o a não um uma para com os do da em se por mais como mas você isso eu meu foi está são ao",
    "es": "de que y el la no un una para con los del en se por más como pero usted eso yo mi fue está son las",
    "fr": "de que et le la ne pas un une pour avec les des en se par plus comme mais vous ce je est sont dans",
    "de": "der die das und ist nicht ein eine für mit von zu den auf dem wie ich sie es was war sind im auch",
    "it": "di che e il la non un una per con i del in si da più come ma questo io mio è sono le della gli",
}
_SCRIPTS: Final = (
    ("ja", "\u3040", "\u30ff"),
    ("ko", "\uac00", "\ud7a3"),
    ("zh", "\u4e00", "\u9fff"),
    ("ru", "\u0400", "\u04ff"),
    ("ar", "\u0600", "\u06ff"),
    ("el", "\u0370", "\u03ff"),
    ("he", "\u0590", "\u05ff"),
    ("hi", "\u0900", "\u097f"),
)
_WORDS: Final = {language: frozenset(words.split()) for language, words in _COMMON.items()}
_WORD: Final = re.compile(r"[^\W\d_]+")
MIN_HITS: Final = 2
MIN_SHARE: Final = 0.08


def language_of(text: str) -> str:
    """ISO 639-1 of one of a dozen languages, or `UNKNOWN` (code, word lists, others)."""
    begin = text[:LOOKED_AT]
    letters = [one for one in begin if one.isalpha()]
    for language, low, high in _SCRIPTS:
        if letters and sum(low <= one <= high for one in letters) > 0.2 * len(letters):
            return language
    words = [word.lower() for word in _WORD.findall(begin)]
    hits = Counter({language: sum(word in common for word in words) for language, common in _WORDS.items()})
    (best, most), (_, second) = hits.most_common(2)
    enough = most >= MIN_HITS and most >= MIN_SHARE * len(words) and most > second
    return best if enough else UNKNOWN
