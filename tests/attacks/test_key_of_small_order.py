"""A key with which one and the same signature holds over every text, without any secret.

With the neutral point of the curve as public key A, the equation [S]B = R + [h]A is true for R the neutral point and
S = 0, whatever h, the hash of the text, is. OpenSSL accepts it. An "author" that anybody can sign for could be
followed, allowed, or counted as a witness.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from orchd.errors import SignatureInvalid
from orchd.records.envelope import pre_authentication
from orchd.records.manifest import MANIFEST_TYPE
from tests.attacks.door import assert_refused
from tests.helpers import Lab, pack, plain

NEUTRAL = b"\x01" + bytes(31)
SIGNATURE = NEUTRAL + bytes(32)


def test_nobody_is_no_author(lab: Lab) -> None:
    folder = lab.folder()
    payload = pack(plain(lab.claim(folder, author=NEUTRAL)))
    Ed25519PublicKey.from_public_bytes(NEUTRAL).verify(SIGNATURE, pre_authentication(MANIFEST_TYPE, payload))
    forged = pack({"payload": payload, "type": MANIFEST_TYPE, "signatures": [{"key": NEUTRAL, "sig": SIGNATURE}]})
    assert_refused(lab, SignatureInvalid, forged, folder)
