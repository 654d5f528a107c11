"""Real daemons as processes, started as the demo starts them: loopback only, each with its own home."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from orchd.demo.cast import Cast

collect_ignore = [] if sys.platform == "linux" else ["test_daemon.py", "test_demo.py"]


@pytest.fixture
def cast() -> Iterator[Cast]:
    with Cast() as made:
        yield made
