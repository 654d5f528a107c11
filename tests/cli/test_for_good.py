"""What nothing takes back is asked for, at a terminal only."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from orchd.cli.context import Context
from orchd.cli.run import run
from orchd.errors import EXIT_INTERRUPTED


class Typed(io.StringIO):
    def __init__(self, text: str, terminal: bool) -> None:
        super().__init__(text)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


ROTATE, REVOKE = ["identity", "rotate"], ["adapter", "revoke", "mine"]


@pytest.mark.parametrize(
    ("words", "typed", "terminal", "done"),
    [
        (ROTATE, "n\n", True, False),
        (ROTATE, "", True, False),
        (ROTATE, "y\n", True, True),
        (ROTATE, "", False, True),
        ([*ROTATE, "--yes"], "", True, True),
        ([*ROTATE, "--json"], "", True, True),
        (REVOKE, "no\n", True, False),
        (REVOKE, "yes\n", True, True),
        ([*REVOKE, "--dry-run"], "", True, True),
    ],
)
def test_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    typed: str,
    terminal: bool,
    done: bool,
) -> None:
    called: list[str] = []
    shown = {
        "author": "",
        "peer_id": "",
        "old": "",
        "rotation": "",
        "affected": [],
        "deployments": [],
        "revocation": "",
    }

    def call(self: Context, method: str, **params: Any) -> Any:
        called.append(method)
        return shown | {"adapter": {"name": "mine", "id": "adp_x"}, "preview": params.get("preview", False)}

    monkeypatch.setattr(Context, "call", call)
    monkeypatch.setattr(sys, "stdin", Typed(typed, terminal))
    assert run(words) == (0 if done else EXIT_INTERRUPTED)
    assert called == ([f"{words[0]}.{words[1]}"] if done else [])
    assert ("nothing was done" in capsys.readouterr().err) is not done
