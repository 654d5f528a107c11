"""The federation: an invitation to train one adapter together, in rounds, under a topic."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from orchd.records.manifest import Count, Digest, Key, Label, Name

FEDERATION_TYPE = "application/vnd.orchd.federation.v1+msgpack"
FEDERATION_LIMIT = 8 << 10  # bytes of an envelope


class Federation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`rounds` rounds, one each `cadence_s` seconds, each averaged by `method` from at least `min_members` members.

    `base` is the fingerprint of the base, `rank` that of the shared adapter.
    """

    topic: Name
    base: Digest
    rounds: Annotated[int, Meta(ge=1, le=2**32)]
    cadence_s: Count
    min_members: Annotated[int, Meta(ge=1, le=2**32)]
    method: Label
    rank: Annotated[int, Meta(ge=1, le=1024)]
    created_ms: Count
    author: Key
    extra: dict[str, Any] = {}
