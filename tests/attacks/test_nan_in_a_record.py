"""A figure that is no number: it compares as false with everything, so that no threshold stops it."""

from __future__ import annotations

import math

import pytest

from orchd.errors import RecordMalformed
from tests.attacks.door import assert_refused
from tests.helpers import ALICE, Lab, envelope, pack, plain


@pytest.mark.parametrize("figure", [math.nan, math.inf, 0.5])
def test_a_record_holds_no_floats(lab: Lab, figure: float) -> None:
    folder = lab.folder()
    fields = plain(lab.claim(folder))
    for change in (
        {"evaluation": [dict(fields["evaluation"][0], value=figure)]},
        {"extra": {"a": figure}},
        {"created_ms": figure},
    ):
        assert_refused(lab, RecordMalformed, envelope(pack(fields | change), ALICE), folder)
