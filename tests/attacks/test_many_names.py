"""Settings with thousands of names for thousands of modules: each with each is a node that is busy for minutes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchd.errors import TensorsRefused
from orchd.registry import parts
from orchd.registry.peft_config import PeftConfig
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import HONEST_INFO, Lab, lora_config, lora_tensors


class Walked(dict[str, Any]):
    """A map that counts how often somebody went over all of it."""

    walks = 0

    def __iter__(self) -> Any:
        self.walks += 1
        return super().__iter__()

    def items(self) -> Any:
        self.walks += 1
        return super().items()


def test_patterns_are_walked_once_whatever_the_number_of_modules() -> None:
    """The two keys that fit stand at the end."""
    keys = [f"x{number}" for number in range(3_000)] + ["q", "a.q"]
    ranks, alphas = Walked.fromkeys(keys, 2), Walked.fromkeys(keys, 4.0)
    config = PeftConfig(1, 1.0, False, ("q",), ranks, alphas)
    for number in range(3_000):
        assert config.scale_of(f"m{number}.a.q") == 2.0
    assert (ranks.walks, alphas.walks) == (1, 1)


def test_saved_modules_are_looked_up_not_tried_one_by_one(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"n{number}" for number in range(3_000)]
    more = {f"base_model.model.{name}.weight": np.ones(1, np.float32) for name in reversed(names)}
    folder = lab.folder(tensors=lora_tensors() | more, config=lora_config(modules_to_save=names))
    looked, above = list[str](), parts._saved_above
    monkeypatch.setattr(parts, "_saved_above", lambda name, saved: looked.append(name) or above(name, saved))
    envelope = signed_by_alice(lab.claim(folder, HONEST_INFO))
    assert "no such module" in assert_refused(lab, TensorsRefused, envelope, folder)
    assert len(looked) <= 2 * len(names)


def test_a_name_of_eighty_parts_is_none(lab: Lab) -> None:
    more = {f"base_model.model.{'a.' * 80}weight": np.ones(1, np.float32)}
    folder = lab.folder(tensors=lora_tensors() | more, config=lora_config(modules_to_save=["a"]))
    envelope = signed_by_alice(lab.claim(folder, HONEST_INFO))
    assert "no part of a LoRA" in assert_refused(lab, TensorsRefused, envelope, folder)
