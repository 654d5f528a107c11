"""An adapter for another base, under the fingerprint of ours: loading it would fail, or train on noise."""

from __future__ import annotations

import numpy as np

from orchd.errors import TensorsRefused
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import HIDDEN, MODULES, RANK, Lab, lora_tensors


def test_wider_layers(lab: Lab) -> None:
    tensors = {
        name: np.zeros((RANK, 2 * HIDDEN) if ".lora_A." in name else (2 * HIDDEN, RANK), np.float32)
        for name in lora_tensors()
    }
    folder = lab.folder(tensors=tensors)
    assert "the base is" in assert_refused(lab, TensorsRefused, signed_by_alice(lab.claim(folder)), folder)


def test_more_layers(lab: Lab) -> None:
    tensors = lora_tensors(modules=[*MODULES, "model.layers.99.self_attn.q_proj"])
    folder = lab.folder(tensors=tensors)
    assert "no such module" in assert_refused(lab, TensorsRefused, signed_by_alice(lab.claim(folder)), folder)
