"""An adapter that its author has taken back is announced again, by whoever gains from it, and offered at the door."""

from __future__ import annotations

from pathlib import Path

from orchd.errors import AdapterRevoked
from orchd.records import Revocation, Verified, sign
from orchd.registry.news import receive
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import ALICE, MALLORY, Identity, Lab


def _revocation(lab: Lab, adapter: bytes, by: Identity = ALICE, created_ms: int | None = None) -> Verified[Revocation]:
    when = lab.now_ms if created_ms is None else created_ms
    record = Revocation(manifest=adapter, reason="it learned names", created_ms=when, author=by.public_key)
    return sign(record, by)


def _knock(lab: Lab, folder: Path, envelope: bytes) -> str:
    return lab.registry.admit(envelope, {p.name: p for p in folder.iterdir()}, origin="fetched").verdict


def test_it_stays_out_also_after_a_restart(lab: Lab) -> None:
    folder = lab.folder()
    envelope = signed_by_alice(lab.claim(folder))
    signed = sign(lab.claim(folder), ALICE)
    receive(lab.registry, signed)  # a peer has shown whose it is
    receive(lab.registry, _revocation(lab, signed.digest))
    assert "it learned names" in assert_refused(lab, AdapterRevoked, envelope, folder)
    lab.registry.close()
    lab.open()
    assert_refused(lab, AdapterRevoked, envelope, folder)


def test_it_stays_out_when_the_revocation_came_before_anything_else(lab: Lab) -> None:
    folder = lab.folder()
    signed = sign(lab.claim(folder), ALICE)
    receive(lab.registry, _revocation(lab, signed.digest))
    assert_refused(lab, AdapterRevoked, signed.envelope, folder)


def test_a_clock_set_back_does_not_weaken_a_revocation(lab: Lab) -> None:
    """It is dated before the adapter that it takes back."""
    folder = lab.folder()
    signed = sign(lab.claim(folder), ALICE)
    receive(lab.registry, _revocation(lab, signed.digest, created_ms=0))
    assert_refused(lab, AdapterRevoked, signed.envelope, folder)


def test_nobody_else_can_take_it_back(lab: Lab) -> None:
    folder = lab.folder()
    signed = sign(lab.claim(folder), ALICE)
    receive(lab.registry, _revocation(lab, signed.digest, by=MALLORY))
    assert _knock(lab, folder, signed.envelope) == "admitted"
