"""Bytes → text, in whatever encoding people's files really are: UTF-8, UTF-16 as Windows writes it, Windows-1252."""

from __future__ import annotations

import codecs
import re
from typing import IO, Final, cast

SAMPLE_BYTES: Final = 1 << 16
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

#: Half of a character outside the first plane, in UTF-8 by itself.
_HALF: Final = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")


def encoding_of(sample: bytes) -> str | None:
    """The encoding of a file by its beginning: a Python codec's name, or None where it is no text.

    A zero byte at every other place is UTF-16 without its mark; any other one means binary. What is not UTF-8 is taken
    for Windows-1252, unless nearly all of it that is not ASCII is valid UTF-8 (then only a few bytes are damaged).
    """
    for mark, name in _MARKS:
        if sample.startswith(mark):
            return name
    zeros = sample.count(0)
    if zeros:
        for offset, name in ((1, "utf-16-le"), (0, "utf-16-be")):
            high, low = sample[offset::2], sample[1 - offset :: 2]
            if high.count(0) > 0.6 * len(high) and not low.count(0) and not _has_controls(low):
                return name
        return None
    if _has_controls(sample):
        return None
    return "utf-8" if _mostly_utf8(sample) else "cp1252"


def as_text(data: bytes) -> str:
    """One record's bytes as text; what no encoding explains becomes U+FFFD.

    Halves of a character that were written each by itself (CESU-8: Java, Oracle, MySQL's utf8) stay as surrogates,
    for `clean` to join."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8" if _mostly_utf8(data) else "cp1252", "replace")


def as_utf8(source: IO[bytes], encoding: str) -> IO[bytes]:
    """A reader of the same text as UTF-8."""
    if encoding.startswith(("utf-16", "utf-32")):
        return cast(IO[bytes], codecs.EncodedFile(source, "utf-8", encoding, errors="replace"))
    return source


def _mostly_utf8(data: bytes) -> bool:
    data = _HALF.sub(b"", data)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)  # a sample may end inside a character
        return True
    except UnicodeDecodeError as error:
        text = data.decode("utf-8", "replace")
        if text.count("\ufffd") * 4 < sum(character > "\x7f" for character in text):
            return True
        cut_character = error.end - error.start > 1
        return cut_character or data[error.start] == 0xFF


def _has_controls(sample: bytes) -> bool:
    """More than a hundredth are control characters that no text has."""
    odd = sum(sample.count(code) for code in (*range(1, 7), *range(14, 27), 28, 29, 30, 31, 127))
    return odd * 100 > len(sample)
