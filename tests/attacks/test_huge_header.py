"""A safetensors file of a few bytes whose header claims a gigabyte, to be allocated by whoever opens it."""

from __future__ import annotations

import tracemalloc

import pytest

from orchd.errors import TensorsRefused
from orchd.registry.admission import WEIGHTS
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import HONEST_INFO, Lab


@pytest.mark.parametrize("length", [1 << 30, 1 << 63, (1 << 64) - 1])
def test_nothing_is_allocated_for_it(lab: Lab, length: int) -> None:
    folder = lab.folder()
    (folder / WEIGHTS).write_bytes(length.to_bytes(8, "little") + b"{" + b" " * 1000)
    envelope = signed_by_alice(lab.claim(folder, HONEST_INFO))
    tracemalloc.start()
    assert str(length) in assert_refused(lab, TensorsRefused, envelope, folder)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
