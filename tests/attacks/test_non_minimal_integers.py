"""One manifest in two forms has two ids: the second escapes a block or a revocation of the first."""

from __future__ import annotations

from orchd.errors import RecordNotDeterministic
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import ALICE, RANK, Lab, envelope, pack, plain


def test_a_record_has_one_form(lab: Lab) -> None:
    folder = lab.folder()
    claim = lab.claim(folder)
    honest = pack(plain(claim))
    short, long = b"\xa4rank" + bytes([RANK]), b"\xa4rank\xcc" + bytes([RANK])
    assert honest.count(short) == 1
    assert_refused(lab, RecordNotDeterministic, envelope(honest.replace(short, long), ALICE), folder)
    assert lab.registry.admit(signed_by_alice(claim), {p.name: p for p in folder.iterdir()}, origin="fetched")
