"""Attack: a data set of a million rows. Reading it takes minutes, in which a training can still be stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchd.errors import JobCancelled
from orchd.importers.source import ImportLog
from orchd.lm.base import load_base
from orchd.train.datasets.build import Parts, build
from orchd.train.prepare import read_data
from orchd.train.specs import TrainSpec
from tests.train.conftest import DEMO_BASE, pair


def test_the_reading_stops_when_it_is_asked_to(tmp_path: Path) -> None:
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 5:
            raise JobCancelled("the job was cancelled")

    build([pair(f"q {n}", f"a {n}") for n in range(20)], ImportLog(), tmp_path / "rows", Parts(), "rows")
    spec = TrainSpec(base=str(DEMO_BASE), dataset=str(tmp_path / "rows"))
    with pytest.raises(JobCancelled):
        read_data(load_base(DEMO_BASE), spec, check=check)
    assert asked == 5
