"""Fixtures that several rooms use."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import Lab


def pytest_configure() -> None:
    """Processes that the tests start feel Ctrl-C, also where a shell that put pytest in the background ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """An empty registry that knows one tiny base."""
    made = Lab(tmp_path)
    yield made
    made.registry.close()
