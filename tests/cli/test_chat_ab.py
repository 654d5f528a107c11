"""`orchctl chat --ab`: nobody sees who is who before the end, and the sides change."""

from __future__ import annotations

import builtins
import io
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from orchd.cli.context import Context
from orchd.cli.nouns.chat_ab import compare
from orchd.errors import PromptRefused, UsageInvalid

PLAIN = {"adapter": None, "base": "demo", "target": "embedded", "quantize": "F16"}


class Daemon:
    """Counts picks; x and y answer with words of their own, alike to `same`, and refuse `long`."""

    json = quiet = False

    def __init__(self) -> None:
        self.out, self.notes = io.StringIO(), []
        self.picked = {"first": 0, "second": 0, "neither": 0}
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def note(self, text: str, *, always: bool = False) -> None:
        self.notes.append(text)

    def show_error(self, error: Any) -> None:
        self.notes.append(error.message)

    def show(self, result: Any, human: Callable[[Any], str] = str) -> None:
        self.out.write(human(result) + "\n")

    def follow(self, job: str) -> None:
        self.notes.append(f"followed {job}")

    def call(self, method: str, /, **params: Any) -> Any:
        self.calls.append((method, params))
        if method == "deployment.show":
            name = params["deployment"]
            return {**PLAIN, "name": name, "adapter": {"id": "adp_y", "name": "mine"} if name == "y" else None}
        if method == "chat.complete":
            text = params["messages"][-1]["content"]
            if text == "long":
                raise PromptRefused("too long")
            return {"text": "same" if text == "same" else {"x": "red", "y": "blue"}[params["deployment"]]}
        if method == "deploy.start":
            return {"job": "job_1"}
        if method == "chat.pick":
            self.picked[params["picked"]] += 1
        first, second = self.picked["first"], self.picked["second"]
        rate = second / (first + second) if first + second else None
        return {
            "first": "x", "second": "y", "first_picked": first, "second_picked": second,
            "neither": self.picked["neither"], "rate": rate, "low": rate, "high": rate, "better": "",
        }  # fmt: skip


def asked(monkeypatch: pytest.MonkeyPatch, daemon: Daemon, lines: Iterator[str | Callable[[str], str]]) -> list[str]:
    """What was shown before each line was given."""
    shown: list[str] = []

    def give(prompt: str) -> str:
        shown.append(daemon.out.getvalue())
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line(shown[-1]) if callable(line) else line

    monkeypatch.setattr(builtins, "input", give)
    return shown


def blue(shown: str) -> str:
    """The side on which y answers."""
    return next(line[0] for line in reversed(shown.splitlines()) if line.endswith(": blue"))


def test_picks_count_for_whoever_answered_there(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon()
    lines = ["hello", blue] * 12
    shown = asked(monkeypatch, daemon, iter([*lines, "n"]))
    compare(cast(Context, daemon), "x", "y", 12, {"before": [], "given": {}})
    assert daemon.picked == {"first": 0, "second": 12, "neither": 0}
    assert not any(name in text for text in shown[:-1] for name in ("x was", "y was", "mine")), "blind to the end"
    sides = {line[0] for line in shown[-1].splitlines() if line.endswith(": blue")}
    assert sides == {"1", "2"}, "once in 2048 runs one side has it twelve times"
    assert "y wins 100.0 %" in daemon.out.getvalue()
    assert "deploy.start" not in dict(daemon.calls)


def test_the_switch_is_made_when_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon()
    asked(monkeypatch, daemon, iter(["hello", blue, "y"]))
    compare(cast(Context, daemon), "x", "y", 1, {"before": [], "given": {}})
    wanted = {"name": "x", "target": "embedded", "quantize": "F16", "adapter": "adp_y"}
    assert ("deploy.start", wanted) in daemon.calls
    assert "followed job_1" in daemon.notes


def test_what_is_no_pick(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon()
    asked(monkeypatch, daemon, iter(["", "same", "long", "hello", "3", "s", "hello", "=", "hello", "q"]))
    compare(cast(Context, daemon), "x", "y", 5, {"before": [], "given": {}})
    assert daemon.picked == {"first": 0, "second": 0, "neither": 1}
    assert "both say: same" in daemon.out.getvalue()


def test_the_end_of_the_input_and_a_wrong_number(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon()
    asked(monkeypatch, daemon, iter([]))
    compare(cast(Context, daemon), "x", "y", 5, {"before": [], "given": {}})
    assert "x was picked 0 times" in daemon.out.getvalue()
    with pytest.raises(UsageInvalid):
        compare(cast(Context, daemon), "x", "y", 0, {"before": [], "given": {}})
