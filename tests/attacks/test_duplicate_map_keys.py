"""A manifest with two names: one reader takes the first, another the last, and both say that the signature holds."""

from __future__ import annotations

import msgpack  # type: ignore[import-untyped]

from orchd.errors import RecordNotDeterministic
from tests.attacks.door import assert_refused
from tests.helpers import ALICE, Lab, envelope, pack, plain


def test_two_names_are_none(lab: Lab) -> None:
    folder = lab.folder()
    honest = pack(plain(lab.claim(folder, name="harmless")))
    fields = msgpack.unpackb(honest)
    twice = b"\xde" + (len(fields) + 1).to_bytes(2, "big") + honest[3:] + pack("name") + pack("other")
    assert msgpack.unpackb(twice)["name"] == "other"
    assert_refused(lab, RecordNotDeterministic, envelope(twice, ALICE), folder)
