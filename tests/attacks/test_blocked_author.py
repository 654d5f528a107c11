"""Somebody whom the user has blocked knocks again, with another adapter."""

from __future__ import annotations

from orchd.errors import AuthorBlocked
from orchd.registry.local import put
from orchd.registry.local_rows import Trust
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import ALICE, BOB, Lab


def _block(lab: Lab, subject: str) -> None:
    row = Trust(subject=subject, kind="author", verdict="block", note="spam", auto_update=False, since=lab.now_ms)
    lab.registry.local.act("trust.block", put(row))
    lab.registry.people.forget()


def test_the_door_stays_shut_also_after_a_restart(lab: Lab) -> None:
    lab.author = BOB
    lab.registry.close()
    lab.open()
    _block(lab, ALICE.author)
    folder = lab.folder()
    envelope = signed_by_alice(lab.claim(folder))
    assert "blocked" in assert_refused(lab, AuthorBlocked, envelope, folder)
    lab.registry.close()
    lab.open()
    assert_refused(lab, AuthorBlocked, envelope, folder)
