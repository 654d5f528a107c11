"""Benches for tests that average."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="session")
def fresh_bench() -> Iterator[Any]:
    """A function that gives an empty bench: for Hypothesis, whose examples must not share a folder."""
    with tempfile.TemporaryDirectory() as root:
        yield lambda: Bench(Path(tempfile.mkdtemp(dir=root)))
