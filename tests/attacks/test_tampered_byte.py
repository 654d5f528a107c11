"""A relay changes one letter of a name while it passes a manifest on."""

from __future__ import annotations

from orchd.errors import SignatureInvalid
from orchd.records import sign
from tests.attacks.door import assert_refused
from tests.helpers import ALICE, Lab


def test_the_signature_no_longer_holds(lab: Lab) -> None:
    folder = lab.folder()
    honest = sign(lab.claim(folder, name="safe-to-use"), ALICE).envelope
    tampered = honest.replace(b"safe-to-use", b"best-to-use")
    assert "does not hold" in assert_refused(lab, SignatureInvalid, tampered, folder)
