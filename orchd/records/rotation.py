"""The key rotation: an old key names the new one, and both sign."""

from __future__ import annotations

from typing import Any

import msgspec

from orchd.records.manifest import Count, Key

ROTATION_TYPE = "application/vnd.orchd.rotation.v1+msgpack"
ROTATION_LIMIT = 8 << 10  # bytes of an envelope


class KeyRotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From now on `old`'s owner signs with `new`. The new key signs too: nobody is made the heir of a stranger."""

    old: Key
    new: Key
    created_ms: Count
    extra: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.old == self.new:
            raise ValueError("the old key and the new one are the same")

    @property
    def author(self) -> bytes:
        """Who speaks: the old key."""
        return self.old
