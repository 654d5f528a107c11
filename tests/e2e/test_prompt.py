"""On a terminal the demo ends at a prompt: typed words are answered by A, B and the average, side by side."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.demo_runs import environment
from tests.e2e.helpers import processes_with

SECONDS = 400


class Keyboard:
    """The person before the terminal: reads until something is there, then types."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.seen = ""

    def wait_for(self, pattern: str) -> str:
        """What was shown since the last wait, up to and with the pattern."""
        deadline = time.monotonic() + SECONDS
        shown = ""
        while not re.search(pattern, shown):
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} was never shown: {self.seen[-2000:]}"
            data = os.read(self._descriptor, 65_536).decode(errors="replace")
            shown += data
            self.seen += data
        return shown

    def types(self, text: str) -> None:
        os.write(self._descriptor, text.encode())


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Keyboard, Path]]:
    temporary = tmp_path / "t"
    temporary.mkdir()
    master, slave = pty.openpty()
    environ = environment(temporary) | {"TERM": "xterm", "COLUMNS": "110"}
    del environ["NO_COLOR"]
    process = subprocess.Popen(
        [sys.executable, "-m", "orchd.cli.main", "demo", "--rounds", "1"],
        env=environ,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    yield process, Keyboard(master), temporary
    process.kill()
    process.wait()
    os.close(master)


@pytest.mark.long
def test_prompt_on_a_terminal(terminal: tuple[subprocess.Popen[bytes], Keyboard, Path]) -> None:
    process, keyboard, temporary = terminal
    story = keyboard.wait_for(r"\n  > ")
    assert re.search(r"A trains [█ ▏▎▍▌▋▊▉]+ +\d+/100 steps", story), "no progress was drawn"
    assert "\x1b[1m" in story, "no colours on a terminal"
    assert "Now you." in story
    keyboard.types("fly me to the moon\n")
    assert "not in the language" in keyboard.wait_for(r"\n  > ")
    keyboard.types("sun cat\n")
    answers = keyboard.wait_for(r"\n  > ")
    assert re.search(r"A\S* +\S+.*\n.*B\S* +\S+.*\n.*average\S* +\S+", answers)
    keyboard.types("\x04")
    assert process.wait(30) == 1, "after one round the average knows nothing, and the exit code says so"
    assert processes_with(str(temporary)) == {}
