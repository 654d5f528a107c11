"""The embedded base, loaded once; adapters put on it are taken off again by the tests that put them on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from orchd.lm.base import Base, load_base

DEMO_BASE = Path(__file__).parents[2] / "orchd/train/base/demo"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def base() -> Base:
    return load_base(DEMO_BASE)
