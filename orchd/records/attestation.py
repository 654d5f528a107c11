"""The attestation: somebody else measured an adapter on held-out data of their own, which nobody else sees."""

from __future__ import annotations

from typing import Any

import msgspec

from orchd.records.manifest import Count, Digest, Key, Label

ATTESTATION_TYPE = "application/vnd.orchd.attestation.v1+msgpack"
ATTESTATION_LIMIT = 8 << 10  # bytes of an envelope


class Attestation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `evaluator` measured on `examples` examples, in the units of `Metric`.

    `base_value` is the base without the adapter, `interval` the half width of the 95 % interval of `value`, in its
    unit.
    """

    manifest: Digest
    evaluator: Key
    metric: Label
    value: Count
    base_value: Count | None
    examples: Count
    interval: Count
    created_ms: Count
    extra: dict[str, Any] = {}

    @property
    def author(self) -> bytes:
        """Who signs it."""
        return self.evaluator
