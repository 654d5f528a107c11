"""An `adapter_config.json` that makes PEFT import a module, change the base, or load a class by name."""

from __future__ import annotations

from typing import Any

import pytest

from orchd.errors import AdapterConfigRefused
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import HONEST_INFO, Lab, lora_config


@pytest.mark.parametrize(
    "setting",
    [
        {"auto_mapping": {"base_model_class": "Popen", "parent_library": "subprocess"}},
        {"megatron_core": "antigravity", "megatron_config": {"x": 1}},
        {"megatron_core": "antigravity"},
        {"init_lora_weights": "pissa_niter_9999"},
        {"init_lora_weights": "olora"},
        {"loftq_config": {"loftq_bits": 4}},
        {"trust_remote_code": True},
        {"target_modules": "(a+)+$"},
        {"rank_pattern": {"(a+)+$": 4}},
        {"base_model_name_or_path": "/home/alice/models/secret-project"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_only_plain_lora_settings_are_taken(lab: Lab, setting: dict[str, Any]) -> None:
    folder = lab.folder(config=lora_config(**setting))
    assert_refused(lab, AdapterConfigRefused, signed_by_alice(lab.claim(folder, HONEST_INFO)), folder)
