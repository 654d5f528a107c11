"""HACKING.md tells how to do by hand what the demo does. Its commands are executed here, in its order, in one shell."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 400


def commands() -> str:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "HACKING.md").read_text(), re.MULTILINE | re.DOTALL)
    venv = f"export PATH={Path(sys.executable).parent}:$PATH\n"
    return venv + "set -euo pipefail\n" + "".join(block.replace(". .venv/bin/activate\n", "") for block in blocks)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("bash") is None, reason="the commands are for bash")
def test_every_command_of_hacking_md_works() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ORCHD_")}
    process = subprocess.Popen(
        ["bash", "-c", commands()],
        env={**environ, "STEPS": "3"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        told, _ = process.communicate(timeout=SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, told
    assert "[E2112]" in told, "the tampered copy was not refused"
    assert "same answers  yes" in told
    assert "Traceback" not in told
