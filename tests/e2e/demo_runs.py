"""Running the demo as a person does, in a process of its own, and looking at what it leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.helpers import processes_with

SPY = Path(__file__).parent / "spy"
#: A user name and home that cannot be in the traffic by chance.
USER, HOME_NAME = "zebulon-quokka", "home-of-zebulon-quokka"
SECONDS = 600


@dataclass
class Run:
    """A demo that runs. Its temporary directory is its own, so that everything of it can be told from the rest."""

    process: subprocess.Popen[str]
    temporary: Path

    def wait_for(self, words: str) -> None:
        """Read the story until these words are told."""
        assert self.process.stdout is not None
        told = ""
        for line in self.process.stdout:
            told += line
            if words in line:
                return
        raise AssertionError(f"{words!r} was never told:\n{told}")

    def rest(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def family(self) -> dict[int, str]:
        """Every process of the demo: what it started knows its temporary directory."""
        return processes_with(str(self.temporary))


@contextmanager
def demo(*arguments: str, **environ: str) -> Iterator[Run]:
    """`orchctl demo` with these arguments; its story on `stdout`, without a terminal."""
    with tempfile.TemporaryDirectory(prefix="odt-", dir="/tmp") as folder:
        temporary = Path(folder)
        process = subprocess.Popen(
            [sys.executable, "-m", "orchd.cli.main", "demo", *arguments],
            env=environment(temporary) | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        run = Run(process, temporary)
        try:
            yield run
        finally:
            for pid in run.family():
                os.kill(pid, signal.SIGKILL)
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def environment(temporary: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not re.match(r"ORCHD_|XDG_", name)}
    home = temporary / HOME_NAME
    home.mkdir()
    return clean | {"TMPDIR": str(temporary), "HOME": str(home), "USER": USER, "LOGNAME": USER, "NO_COLOR": "1"}
