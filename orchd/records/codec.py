"""Deterministic msgpack: one value, one sequence of bytes.

Map keys sorted, smallest integer form, no floats, no extension types, UTF-8 NFC strings without control characters,
depth at most 16. A reader decodes strictly and then asks that encoding the result gives the very bytes it was handed,
so duplicate keys, non-minimal integers, reordered maps, missing fields and trailing bytes are all refused by one
comparison.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any, TypeVar

import msgspec

from orchd.errors import RecordMalformed, RecordNotDeterministic

MAX_DEPTH = 16
#: The hashes of the 16,384 chunks of 4 GiB and two routing vectors fit; a megabyte of empty maps does not.
MAX_VALUES = 65_536
#: Names of strangers are shown on terminals, so no text may hold an escape sequence. Tab and line feed are taken.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SINGLE = frozenset({int, bool, bytes, type(None)})
T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder(order="deterministic")


def encode(value: Any) -> bytes:
    """The bytes of a struct or plain value. Raises `RecordMalformed` for what the format can't hold."""
    try:
        plain = msgspec.to_builtins(value, builtin_types=(bytes,))
        _check_plain(plain)
        return _encoder.encode(plain)
    except RecursionError:
        raise RecordMalformed(f"nested deeper than {MAX_DEPTH}") from None
    except (TypeError, OverflowError, UnicodeEncodeError) as error:
        raise RecordMalformed(f"a record can't hold this: {error}") from None


def decode(data: bytes, wanted: type[T]) -> T:
    """The value of deterministic bytes. Raises `RecordMalformed` or `RecordNotDeterministic`."""
    try:
        value = msgspec.msgpack.decode(data, type=wanted)
        again = encode(value)
    except RecursionError:
        raise RecordMalformed("the record is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError, ValueError) as error:
        raise RecordMalformed(f"not a {wanted.__name__.lower()}: {error}") from None
    if again != data:
        raise RecordNotDeterministic(
            f"these {len(data)} bytes are not the deterministic form of the {wanted.__name__.lower()} in them"
        )
    return value


def _check_plain(record: Any) -> None:
    """Whether the format can hold this, and no more of it than an honest record needs. One level after another."""
    level, texts, seen = [record], list[str](), 0
    for _ in range(MAX_DEPTH + 1):
        seen += len(level)
        if seen > MAX_VALUES:
            raise RecordMalformed(f"a record holds at most {MAX_VALUES} values")
        level = _inside(level, texts)
        if not level:
            return _check_texts(texts)
    raise RecordMalformed(f"nested deeper than {MAX_DEPTH}")


def _inside(level: list[Any], texts: list[str]) -> list[Any]:
    """What the maps and lists among these values hold; their texts and keys are added to `texts`."""
    below: list[Any] = []
    for value in level:
        kind = type(value)
        if kind is str:
            texts.append(value)
        elif kind is dict:
            texts.extend(value)
            below.extend(value.values())
        elif kind is list or kind is tuple:
            below.extend(value)
        elif kind not in _SINGLE:
            raise RecordMalformed(f"a record can't hold a {kind.__name__}")
    return below


def _check_texts(texts: list[str]) -> None:
    for text in texts:
        if type(text) is not str:
            raise RecordMalformed(f"the map key {str(text)[:80]!r} is no text")
    whole = "".join(texts)
    if not whole.isascii() or _CONTROL.search(whole):
        for text in texts:
            _check_text(text)


def _check_text(text: str) -> None:
    if not unicodedata.is_normalized("NFC", text):
        raise RecordMalformed(f"the text {text[:40]!r} is not in Unicode form NFC")
    if _CONTROL.search(text):
        raise RecordMalformed(f"the text {text[:40]!r} holds control characters")
