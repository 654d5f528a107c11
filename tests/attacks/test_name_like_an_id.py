"""Alice's adapter is announced but not fetched yet. Mallory publishes one whose *name* is the id of Alice's.

Whoever then types the id, or copies the beginning of it, would deploy Mallory's.
"""

from __future__ import annotations

import pytest

from orchd.errors import AdapterUnknown
from orchd.records import sign
from tests.helpers import ALICE, MALLORY, Lab, lora_tensors


def test_an_id_is_never_a_name(lab: Lab) -> None:
    wanted = sign(lab.claim(lab.folder("alice")), ALICE)
    hostile = lab.folder("mallory", tensors=lora_tensors(seed=1))
    claim = lab.claim(hostile, name=wanted.id, author=MALLORY.public_key)
    lab.admit_signed(sign(claim, MALLORY), hostile)
    for text in (wanted.id, wanted.id[:12]):
        with pytest.raises(AdapterUnknown):
            lab.registry.resolve(text)
    lab.admit_signed(wanted, lab.root / "made" / "alice")
    assert lab.registry.resolve(wanted.id) == lab.registry.resolve(wanted.id[:12]) == wanted.id
