"""Factors of 160 kB whose product is small, and whose Gram matrices would take 12 GB: their rank is 40,000."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchd.errors import TensorsRefused
from orchd.registry import grams, peft_config
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import HONEST_INFO, MODULES, Lab, lora_tensors

RANK = 40_000


def test_no_matrix_is_made_for_a_rank_that_no_adapter_may_have(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks, gram = list[int](), grams.gram

    def watched(view: memoryview, tensor: Any, *rest: Any) -> Any:
        ranks.append(tensor.shape[0 if "lora_A" in tensor.name else 1])
        assert ranks[-1] <= peft_config.MAX_RANK
        return gram(view, tensor, *rest)

    monkeypatch.setattr(grams, "gram", watched)
    module = f"base_model.model.{MODULES[0]}"
    shapes = {f"{module}.lora_A.weight": (RANK, 1), f"{module}.lora_B.weight": (1, RANK)}
    tensors = lora_tensors() | {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    folder = lab.folder(tensors=tensors)
    envelope = signed_by_alice(lab.claim(folder, HONEST_INFO))
    assert f"[{RANK}, 1]" in assert_refused(lab, TensorsRefused, envelope, folder)
    assert ranks  # the others were looked at
