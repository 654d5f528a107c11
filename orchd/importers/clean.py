"""Text and numbers as exports really hold them → values that every later step accepts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from orchd.importers.conversation import Message, Part

MAX_TEXT_BYTES: Final = 2_000_000
MAX_NUMBER: Final = 1e100
_PARTS: Final[dict[str, Part]] = {"train": "train", "validation": "validation", "test": "test"}


def clean(value: object) -> str:
    """A string without surrogates, NULs and outer white space, of at most `MAX_TEXT_BYTES`.

    Surrogate pairs that were escaped one by one are joined; a lone one (an emoji cut by a length
    limit) becomes U+FFFD. A number becomes its text (labels are often 0 and 1); anything else becomes "".
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER:
        return str(value)
    if not isinstance(value, str):
        return ""
    data = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "")
    if len(data) > MAX_TEXT_BYTES // 4:
        data = data.encode()[:MAX_TEXT_BYTES].decode(errors="ignore")
    return data.strip()


def milliseconds(value: object) -> int:
    """Unix milliseconds from seconds (a number) or an ISO 8601 text; 0 for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e11:
        return int(value * 1000)
    if isinstance(value, str):
        try:
            return int(datetime.fromisoformat(value).timestamp() * 1000)
        except (ValueError, OverflowError, OSError):
            return 0
    return 0


def objects(value: object) -> list[dict[str, Any]]:
    """The JSON objects of a list; everything else is left out."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def object_at(record: object, key: str) -> dict[str, Any]:
    """The JSON object under ``key``, or an empty one."""
    found = record.get(key) if isinstance(record, dict) else None
    return found if isinstance(found, dict) else {}


def part_of(record: dict[str, Any]) -> Part:
    """The part that a row of an exported data set says it was in (``split``); else empty."""
    return _PARTS.get(str(record.get("split")), "")


def content_id(messages: Iterable[Message]) -> str:
    """A stable id for a conversation that came without one; it is the digest of what can be learnt from it."""
    return digest_of(
        *(part for message in messages for part in (message.role + ("" if message.counts else " 0"), message.content))
    )


def digest_of(*parts: str) -> str:
    """128 bits of SHA-256 over texts and their lengths, hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]
