"""An invitation is a secret: it need not stand on the command line."""

from __future__ import annotations

import io

import pytest

from orchd.cli.run import parser


def test_an_invitation_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("orchd-topic-1.AAAA\nmore\n"))
    assert parser("topic").parse_args(["join", "-"]).topic == "orchd-topic-1.AAAA"
    assert parser("topic").parse_args(["join", "our-group"]).topic == "our-group"
