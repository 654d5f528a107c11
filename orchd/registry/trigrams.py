"""Which three bytes stand beside each other in a text, in 512 bits: a quick no for most texts without a word.

Each run of three bytes within a word sets one bit of the text's signature. A text can hold a word only if it has all
the word's bits, so a few whole numbers decide about most texts, and only the others are searched. Superimposed coding,
after Faloutsos and Christodoulakis, "Signature files" (ACM TOIS 2(4), 1984). Measured on 100,000 texts of 245 bytes: 5
to 12 ms instead of 17 for a word.
"""

from __future__ import annotations

import numpy as np

BITS = 512
#: The columns of `adapter` with the signature of `words`, 64 bits each.
COLUMNS = tuple(f"trigrams{number}" for number in range(BITS // 64))
_SHIFT = np.uint32(32 - (BITS - 1).bit_length())
_SPACE = 32


def signature(text: str) -> list[int]:
    """`BITS` bits in whole numbers of 64, the first bits first. A blank parts words."""
    bytes_ = np.frombuffer(text.encode(), np.uint8)
    bits = np.zeros(BITS, np.uint8)
    if len(bytes_) >= 3:
        first, second, third = bytes_[:-2], bytes_[1:-1], bytes_[2:]
        whole = (first != _SPACE) & (second != _SPACE) & (third != _SPACE)
        numbers = first * np.uint32(961) + second * np.uint32(31) + third
        bits[((numbers * np.uint32(2_654_435_761)) >> _SHIFT)[whole]] = 1
    return [int(word) for word in np.packbits(bits, bitorder="little").view("<u8")]


def condition(word: str) -> str:
    """SQL that is false for most rows without `word` in `words`, true for all with it; empty for a short word."""
    bits = zip(COLUMNS, signature(word), strict=True)
    return " AND ".join(f"{column} & {wanted}::UBIGINT = {wanted}::UBIGINT" for column, wanted in bits if wanted)
