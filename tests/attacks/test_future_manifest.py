"""A manifest dated next year is "the newest version" until then, whatever its author publishes meanwhile."""

from __future__ import annotations

from orchd.errors import FromTheFuture
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import Lab

YEAR_MS = 365 * 24 * 3600 * 1000


def test_tomorrow_is_not_taken_today(lab: Lab) -> None:
    folder = lab.folder()
    envelope = signed_by_alice(lab.claim(folder, created_ms=lab.now_ms + YEAR_MS))
    assert "in the future" in assert_refused(lab, FromTheFuture, envelope, folder)
    lab.now_ms += YEAR_MS
    assert lab.registry.admit(envelope, {path.name: path for path in folder.iterdir()}, origin="fetched")
