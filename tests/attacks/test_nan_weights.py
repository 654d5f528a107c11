"""One number that is none: averaged with a thousand others, it makes all of them so."""

from __future__ import annotations

import numpy as np
import pytest

from orchd.errors import TensorsRefused
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import Lab, lora_tensors


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_number_is_one(lab: Lab, dtype: str, bad: float) -> None:
    tensors = lora_tensors()
    name = list(tensors)[-1]
    tensors[name].flat[-1] = bad
    folder = lab.folder(tensors=tensors, dtype=dtype)
    assert name in assert_refused(lab, TensorsRefused, signed_by_alice(lab.claim(folder)), folder)
