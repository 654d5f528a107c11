"""Attack: the disk is full while a training writes. Each write fails in the one way that the loop goes on from.

The kernel's limit on a file's size stands for the full disk: it is this process's alone.
"""

from __future__ import annotations

import errno
import itertools
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from orchd.lm.tensors import write_tensors
from orchd.train.curves import Curves, StepPoint, read_points

POINT = StepPoint(step=1, epoch=0.1, loss=1.0, accuracy=0.5, rate=0.01, tokens_s=9.0, memory=1)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_tensors_fail_as_every_write_does(tmp_path: Path) -> None:
    with files_of_at_most(4096), pytest.raises(OSError, match="too large") as told:
        write_tensors({"a": torch.zeros(100_000)}, tmp_path / "a.safetensors")
    assert told.value.errno == errno.EFBIG


def test_curves_lose_their_points_and_not_the_training(tmp_path: Path) -> None:
    seconds = itertools.count(step=60)
    with files_of_at_most(4096), Curves(tmp_path / "curves", monotonic=lambda: float(next(seconds))) as curves:
        for _ in range(1000):
            curves.add(POINT)
        with pytest.raises(OSError, match="too large"):
            curves.sync()
    found = read_points(tmp_path / "curves")
    assert 10 < len(found) < 1000
