"""The announcement: this adapter exists, under these topics, and I have it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from orchd.records.manifest import Count, Digest, Key, Name

ANNOUNCEMENT_TYPE = "application/vnd.orchd.announcement.v1+msgpack"
ANNOUNCEMENT_LIMIT = 8 << 10  # bytes of an envelope


class Announcement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`manifest` is the adapter's id, `size` the bytes of its files, `author` who announces it.

    `seq` grows with each announcement of one author, so that a replayed one is recognised.
    """

    manifest: Digest
    topics: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=16)]
    size: Count
    created_ms: Count
    base: Digest
    author: Key
    seq: Count
    extra: dict[str, Any] = {}
