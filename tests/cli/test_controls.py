"""What others wrote is shown, and moves no cursor."""

from __future__ import annotations

import io
import json

import pytest

from orchd.cli.context import Context
from orchd.cli.nouns.net import hours
from orchd.cli.text import printable
from orchd.errors import AddressInvalid

TITLE = "a\x1b]0;t\x07\nline \u202e\x9b31m \tnaïve 😀"


def test_control_characters_are_shown_as_what_they_are() -> None:
    assert printable(TITLE) == "a\\x1b]0;t\\x07\nline \\u202e\\x9b31m \tnaïve 😀"


@pytest.mark.parametrize("as_json", [False, True])
def test_none_reaches_the_terminal(as_json: bool) -> None:
    out, err = io.StringIO(), io.StringIO()
    context = Context(json=as_json, quiet=False, out=out, err=err, environ={})
    context.show({"reason": TITLE}, lambda shown: str(shown["reason"]))
    context.show_error(AddressInvalid(f"{TITLE} is no address"))
    told = out.getvalue() + err.getvalue()
    assert "\x1b" not in told
    assert "\x07" not in told
    if as_json:
        assert json.loads(out.getvalue().splitlines()[0]) == {"reason": TITLE}, "programs get it whole"


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "long"])
def test_a_ban_lasts_a_number_of_hours(text: str) -> None:
    assert hours("1.5") == 1.5
    with pytest.raises(ValueError, match=r".+"):
        hours(text)
