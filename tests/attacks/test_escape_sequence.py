"""A name that clears the screen of whoever lists adapters, and writes "verified" there."""

from __future__ import annotations

import pytest

from orchd.errors import RecordMalformed
from tests.attacks.door import assert_refused
from tests.helpers import ALICE, Lab, envelope, pack, plain


@pytest.mark.parametrize("text", ["\x1b[2J\x1b[32mverified", "\x9b2J", "safe\rmalicious", "a\x08b", "\x7f", "\0"])
@pytest.mark.parametrize("field", ["name", "description", "licence"])
def test_no_text_can_drive_a_terminal(lab: Lab, field: str, text: str) -> None:
    folder = lab.folder()
    fields = plain(lab.claim(folder)) | {field: text}
    said = assert_refused(lab, RecordMalformed, envelope(pack(fields), ALICE), folder)
    assert not [letter for letter in said if letter < " "]
