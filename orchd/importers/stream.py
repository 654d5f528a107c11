"""Records out of a stream of JSON bytes, one at a time, so that one bad record costs only itself.

Whole-file parsers need five times the file in memory and give up on the first lone surrogate; this
splitter finds where each record ends and lets each be decoded by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any, Final

import msgspec

from orchd.importers.encoding import as_text

CHUNK_BYTES: Final = 1 << 18
MAX_RECORD_BYTES: Final = 64 << 20
_BOM: Final = b"\xef\xbb\xbf"

#: A complete string, the start of one that ends in a later chunk, or a bracket.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+("?)|[{}\[\]]', re.DOTALL)


class BadRecord(Exception):
    """One record could not be read; the message says why. The ones after it are not affected."""


class Truncated(BadRecord):
    """The input ended inside a record."""


def records(source: IO[bytes], lines: bool = False) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    """The JSON objects in ``source`` with the line where each begins (from 1): of a top-level array, one after
    the other, or one a line.

    ``lines`` forces one record a line; else the first line decides. A record that is not valid is
    yielded as a `BadRecord`.
    """
    head = _head(source)
    if lines or _is_one_object(head.lstrip().partition(b"\n")[0]):
        pieces = _lines(head, source)
    else:
        depth = 1 if head.lstrip()[:1] == b"[" else 0
        pieces = _values(head, source, depth)
    for line, piece in pieces:
        yield line, piece if isinstance(piece, BadRecord) else _decode_object(piece)


def decode(data: bytes) -> Any:
    """JSON as exports really are: lone surrogates, NaN, raw control characters and bad UTF-8 pass.

    Raises `BadRecord`.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return json.loads(as_text(data), strict=False)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"no valid JSON: {error}"[:200]) from None


def _head(source: IO[bytes]) -> bytes:
    """Enough of the start to see how the records are laid out: where that is one a line, a whole line."""
    head = source.read(max(CHUNK_BYTES, len(_BOM))).removeprefix(_BOM)
    while len(head) < MAX_RECORD_BYTES:
        begun = head.lstrip()
        if begun and (begun[:1] != b"{" or b"\n" in begun):
            break
        more = source.read(CHUNK_BYTES)
        if not more:
            break
        head += more
    return head


def _decode_object(data: bytes) -> dict[str, Any] | BadRecord:
    try:
        value = decode(data)
    except BadRecord as error:
        return error
    return value if isinstance(value, dict) else BadRecord(f"a {type(value).__name__}, no object")


def _is_one_object(line: bytes) -> bool:
    if not line.startswith(b"{") or not line.rstrip().endswith(b"}"):
        return False
    try:
        return isinstance(decode(line), dict)
    except BadRecord:
        return False


def _lines(head: bytes, source: IO[bytes]) -> Iterator[tuple[int, bytes | BadRecord]]:
    rest, number = head, 0
    while True:
        *whole, rest = rest.split(b"\n")
        for line in whole:
            number += 1
            if line.strip():
                yield number, line
        if len(rest) > MAX_RECORD_BYTES:
            yield number + 1, BadRecord(f"a line of more than {MAX_RECORD_BYTES >> 20} MiB")
            return
        more = source.read(CHUNK_BYTES)
        if not more:
            break
        rest += more
    if rest.strip():
        yield number + 1, rest


def _values(head: bytes, source: IO[bytes], wanted: int) -> Iterator[tuple[int, bytes | BadRecord]]:
    """The objects and arrays that open at nesting depth ``wanted`` (0: top level, 1: in an array).

    ``line`` is the line of ``buffer[counted]``: where a value begins, or where the next token is looked for.
    """
    buffer, position, depth, start = head, 0, 0, -1
    line, counted = 1, 0
    while True:
        for token in _TOKEN.finditer(buffer, position):
            symbol = token[0]
            if symbol[:1] == b'"':
                if not token[1]:  # the string goes on in the next chunk
                    position = token.start()
                    break
            elif symbol in b"{[":
                if depth == wanted:
                    start = token.start()
                    line, counted = line + buffer.count(b"\n", counted, start), start
                depth += 1
            else:
                depth -= 1
                if depth == wanted and start >= 0:
                    yield line, buffer[start : token.end()]
                    start = -1
            position = token.end()
        else:
            position = len(buffer)
        more = source.read(CHUNK_BYTES)
        if not more:
            break
        keep = start if start >= 0 else position
        line, counted = line + buffer.count(b"\n", counted, keep), 0
        buffer, position, start = buffer[keep:] + more, position - keep, 0 if start >= 0 else -1
        if len(buffer) > MAX_RECORD_BYTES + CHUNK_BYTES:
            yield line, BadRecord(f"a record of more than {MAX_RECORD_BYTES >> 20} MiB")
            return
    if start >= 0 or depth > 0:
        yield line, Truncated("the file ends in the middle; what came before was read")
