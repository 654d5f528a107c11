"""The revocation: the author of an adapter says that nobody should use it any more."""

from __future__ import annotations

from typing import Any

import msgspec

from orchd.records.manifest import Count, Digest, Key, Text

REVOCATION_TYPE = "application/vnd.orchd.revocation.v1+msgpack"
REVOCATION_LIMIT = 32 << 10  # bytes of an envelope


class Revocation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`manifest` is the adapter's id. It counts only when `author` is the manifest's author: whoever reads it compares.

    There is no way back: an author who was wrong publishes the adapter again under a new manifest.
    """

    manifest: Digest
    reason: Text
    created_ms: Count
    author: Key
    extra: dict[str, Any] = {}
