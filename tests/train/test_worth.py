"""What speaks against a training is said before it begins, as far as its rows tell."""

from __future__ import annotations

import io
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from orchd.cli.context import Context
from orchd.cli.nouns import train
from orchd.errors import EXIT_INTERRUPTED
from orchd.importers.conversation import Conversation, Message, Passage
from orchd.train.worth import doubts

from .conftest import MakeDataset


def asked(number: int, answer: str) -> Conversation:
    return Conversation(id=f"c{number}", messages=(Message("user", f"word {number}?"), Message("assistant", answer)))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([asked(n, f"drow {n}") for n in range(5)], "5 different examples: below 20"),
        ([asked(n, "yes") for n in range(40)], "every example has the same answer"),
        ([asked(n, f"drow {n}") for n in range(40)], ""),
        ([Passage(id="p", text=" ".join(map(str, range(4000))))], ""),
    ],
)
def test_what_the_rows_tell(dataset: MakeDataset, rows: list[Any], said: str) -> None:
    kind = "text" if isinstance(rows[0], Passage) else ""
    found = doubts(Path(dataset(rows, kind, split="train")))
    assert ("; ".join(found)).startswith(said)
    assert bool(found) == bool(said)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "yes", "code", "started"),
    [("n\n", False, EXIT_INTERRUPTED, []), ("y\n", False, 0, ["half"]), ("", True, 0, ["half"])],
)
def test_at_a_terminal_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, answer: str, yes: bool, code: int, started: list[str]
) -> None:
    begun: list[str] = []
    err = io.StringIO()
    context = Context(json=False, quiet=False, out=io.StringIO(), err=err, environ={})

    def run_job(command: Any, params: dict[str, Any], *, detach: bool) -> int:
        begun.append(params["dataset"])
        return 0

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    monkeypatch.setattr(context, "call", lambda method, **params: {"doubts": ["2 examples"]})
    monkeypatch.setattr(context, "run_job", run_job)
    options = Namespace(yes=yes, detach=False, command=None)
    assert train.start(context, options, {"dataset": "half"}) == code
    assert begun == started
    assert "not worth it:\n- 2 examples" in err.getvalue()
