"""Factors of 160 kB whose product is small, and whose Gram matrices would take 12 GB: their rank is 40,000."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchd.errors import TensorsRefused
from orchd.registry import admission, bounds, grams, peft_config
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import HONEST_INFO, MODULES, Lab, lora_config, lora_tensors

RANK = 40_000
SHAPES = {
    f"base_model.model.{MODULES[0]}.lora_{half}.weight": shape for half, shape in (("A", (RANK, 1)), ("B", (1, RANK)))
}
HUGE = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of the Gram matrices that are made; every module is looked at closely, as if any strength were too much."""
    made, gram = list[int](), grams.gram

    def watched(view: memoryview, tensor: Any, room: Any) -> Any:
        made.append(tensor.shape[0 if "lora_A" in tensor.name else 1])
        assert made[-1] <= peft_config.MAX_RANK
        return gram(view, tensor, room)

    monkeypatch.setattr(grams, "gram", watched)
    monkeypatch.setattr(bounds, "perhaps_outside", lambda known, base, at_most: list(at_most))
    return made


def test_it_is_refused_before_any_matrix_is_made(lab: Lab, ranks: list[int]) -> None:
    folder = lab.folder(tensors=lora_tensors() | HUGE)
    envelope = signed_by_alice(lab.claim(folder, HONEST_INFO))
    assert f"[{RANK}, 1]" in assert_refused(lab, TensorsRefused, envelope, folder)
    assert ranks == []


def test_no_matrix_is_made_of_it_whoever_asks(lab: Lab, ranks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """`adapter verify` goes on after a check that fails."""
    kept = tuple(check for check in admission.CONTENT_CHECKS if check is not admission.check_tensors)
    monkeypatch.setattr(admission, "CONTENT_CHECKS", kept)
    folder = lab.folder(tensors=lora_tensors() | HUGE, config=lora_config())
    lab.admit(folder)
    assert ranks
