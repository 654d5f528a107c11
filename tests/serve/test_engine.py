"""One model in llama.cpp, in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchd.errors import ModelNotLoaded, PromptRefused
from orchd.importers.conversation import Message
from orchd.serve.engine import Engine

FREE_AT_ONCE = """
import sys
from pathlib import Path
from orchd.serve.engine import Engine
for _ in range(60):
    Engine(Path(sys.argv[1]), threads=1).close()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_freed_at_once(merged: Path) -> None:
    """Without its first token, every twentieth or so waits for ever."""
    subprocess.run([sys.executable, "-c", FREE_AT_ONCE, merged], check=True, timeout=60)


def test_the_socket_has_a_name_only_when_wanted(merged: Path) -> None:
    Engine(merged, threads=1).close()
    assert os.listdir() == []
    engine = Engine(merged, threads=1, keep_socket=True)
    assert [oct(os.stat(name).st_mode & 0o777) for name in os.listdir()] == ["0o700"]
    engine.close()
    assert os.listdir() == []


def test_exceptions_of_the_reader_come_out(merged: Path) -> None:
    """llama.cpp swallows what a callback raises."""
    engine = Engine(merged, threads=1)

    def take(text: str) -> bool:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        engine.chat([Message("user", "sun")], max_tokens=50, temperature=0.0, on_text=take)
    engine.close()


def test_what_is_refused(merged: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotLoaded, match=r"absent\.gguf"):
        Engine(tmp_path / "absent.gguf", threads=1)
    engine = Engine(merged, threads=1, keep_socket=True)
    with pytest.raises(PromptRefused):
        engine.greedy([10**6], 1)
    engine.close()


def test_an_answer_with_warmth(merged: Path) -> None:
    engine = Engine(merged, threads=1)
    answers = set()
    for _ in range(4):
        pieces: list[str] = []

        def take(text: str, pieces: list[str] = pieces) -> bool:
            pieces.append(text)
            return True

        engine.chat([Message("user", "sun")], max_tokens=20, temperature=1.5, on_text=take)
        answers.add("".join(pieces))
    assert len(answers) > 1
    engine.close()
