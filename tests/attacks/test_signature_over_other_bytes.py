"""Alice signed one adapter; Mallory puts her signature under another."""

from __future__ import annotations

from orchd.errors import SignatureInvalid
from tests.attacks.door import assert_refused
from tests.helpers import ALICE, Lab, envelope, lora_tensors, pack, plain


def test_a_signature_is_for_one_record(lab: Lab) -> None:
    signed, other = lab.folder("signed"), lab.folder("other", tensors=lora_tensors(seed=1))
    moved = envelope(pack(plain(lab.claim(other))), ALICE, signed=pack(plain(lab.claim(signed))))
    assert_refused(lab, SignatureInvalid, moved, other)
