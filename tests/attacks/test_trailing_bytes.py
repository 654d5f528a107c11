"""Bytes after the record carry something along, or give one adapter a second id."""

from __future__ import annotations

from orchd.errors import RecordMalformed
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import ALICE, Lab, envelope, pack, plain


def test_nothing_follows_a_record(lab: Lab) -> None:
    folder = lab.folder()
    claim = lab.claim(folder)
    assert_refused(lab, RecordMalformed, envelope(pack(plain(claim)) + b"smuggled", ALICE), folder)
    assert_refused(lab, RecordMalformed, signed_by_alice(claim) + b"smuggled", folder)
