"""Ten thousand lists in one another, to overflow the stack of whoever decodes them."""

from __future__ import annotations

import pytest

from orchd.errors import RecordMalformed
from tests.attacks.door import assert_refused
from tests.helpers import ALICE, Lab, envelope, pack, plain


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"], ids=["lists", "maps"])
def test_depth_has_an_end(lab: Lab, opening: bytes) -> None:
    folder = lab.folder()
    honest = pack(plain(lab.claim(folder)))
    deep = honest.replace(b"\xa5extra\x80", b"\xa5extra\x81\xa1a" + opening * 10_000 + b"\xc0")
    assert_refused(lab, RecordMalformed, envelope(deep, ALICE), folder)
    assert_refused(lab, RecordMalformed, opening * 10_000 + b"\xc0", folder)
