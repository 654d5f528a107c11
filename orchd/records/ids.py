"""Ids as people see them: a prefix that tells the kind, then base32 in lower case without padding."""

from __future__ import annotations

import base64
import binascii
import hashlib
from functools import lru_cache

from orchd.errors import ParamsInvalid

ADAPTER, ANNOUNCEMENT, DATASET, BASE = "adp_", "ann_", "dst_", "base_"
REVOCATION, ATTESTATION, ROTATION, FEDERATION = "rev_", "att_", "rot_", "fed_"
DIGEST_SIZE = 32


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@lru_cache(maxsize=8_192)  # one id is asked for several times while its record is handled
def text_id(prefix: str, digest: bytes) -> str:
    """`adp_…` for 32 digest bytes."""
    return prefix + base64.b32encode(digest).decode().lower().rstrip("=")


SHORTEST = 4
"""Characters after the `adp_` (and so on) of a shortened id."""


def too_short(text: str, prefix: str, shortest: int = SHORTEST) -> str:
    """What is said of a beginning that would fit too much."""
    return f"{text[:80]!r} is too short: {shortest} characters after `{prefix}` are the least"


def parse_id(text: str, prefix: str) -> bytes:
    """The 32 digest bytes of a whole id. Raises `ParamsInvalid` naming the text."""
    body = text.removeprefix(prefix)
    try:
        digest = base64.b32decode(body.upper() + "=" * (-len(body) % 8))
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != DIGEST_SIZE or text_id(prefix, digest) != text:
        raise ParamsInvalid(
            f"{text[:80]!r} is no id: `{prefix}` and 52 letters or digits are wanted",
            hint="Copy the whole id from where it was shown; every `list` and `show` with --json gives it whole.",
        )
    return digest
