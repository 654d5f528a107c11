"""Mallory signs a manifest that names Alice as its author."""

from __future__ import annotations

from orchd.errors import SignatureInvalid
from tests.attacks.door import assert_refused
from tests.helpers import ALICE, MALLORY, Lab, envelope, pack, plain


def test_the_author_has_not_signed(lab: Lab) -> None:
    folder = lab.folder()
    claim = lab.claim(folder)
    assert claim.author == ALICE.public_key
    forged = envelope(pack(plain(claim)), MALLORY)
    assert "has not signed" in assert_refused(lab, SignatureInvalid, forged, folder)
