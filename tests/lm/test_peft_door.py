"""Does the door take what PEFT itself saves, and say rightly what can be done with it?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from orchd.errors import AdapterConfigRefused, AdapterUnfit, TensorsRefused
from orchd.lm.adapter import read_config
from orchd.records import sign
from orchd.registry import peft_config
from orchd.registry.admission import CHECKS, CONFIG, Candidate, judge
from orchd.registry.bases import Base
from orchd.registry.describe import adapter_info, file_entries
from tests.helpers import ALICE, manifest

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 20,
}
BASES: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "qwen": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),  # its q, k and v have biases
}
PLAIN, MORE = ("averageable", "servable_as_lora"), ()


def _saved(folder: Path, base: str, **settings: Any) -> tuple[Path, dict[str, tuple[int, ...]]]:
    """What PEFT writes, and the shapes in the base's own files."""
    torch.manual_seed(0)
    model = BASES[base]()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    targets = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    get_peft_model(model, LoraConfig(**(targets | settings))).save_pretrained(folder)
    return folder, shapes


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    ("settings", "capabilities"),
    [
        ({}, PLAIN),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 4}}, PLAIN),
        ({"target_modules": ["q_proj", "up_proj"]}, PLAIN),
        ({"use_dora": True}, MORE),
        ({"bias": "all"}, MORE),
        ({"bias": "lora_only"}, MORE),
        ({"lora_bias": True}, MORE),
        ({"modules_to_save": ["lm_head"]}, MORE),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, MORE),
        ({"modules_to_save": ["input_layernorm"], "use_dora": True}, MORE),
        ({"modules_to_save": ["mlp"]}, MORE),
    ],
    ids=str,
)
def test_what_peft_saves_fits_its_base(
    tmp_path: Path, base: str, settings: dict[str, Any], capabilities: tuple[str, ...]
) -> None:
    folder, shapes = _saved(tmp_path, base, **settings)
    candidate = _at_the_door(folder, shapes)
    assert judge(candidate, CHECKS) == []
    assert candidate.manifest.record.adapter.capabilities == capabilities
    narrow = {name: (*shape[:-1], shape[-1] + 1) for name, shape in shapes.items()}
    with pytest.raises(TensorsRefused, match="the base is"):
        judge(_at_the_door(folder, narrow), CHECKS)


def _at_the_door(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Candidate:
    claim = manifest(adapter=adapter_info(folder), files=file_entries(folder))
    base = Base(
        name="tiny",
        digest=claim.base.fingerprint,
        path=folder,
        architecture="",
        parameters=0,
        size=0,
        licence="",
        shapes=shapes,
    )
    files = {entry.path: folder / entry.path for entry in claim.files}
    return Candidate(sign(claim, ALICE), files, base, claim.created_ms)


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}], ids=str
)
def test_what_is_more_than_a_product_is_refused_by_name_where_only_products_are_known(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder, _ = _saved(tmp_path, "qwen", **settings)
    (key,) = settings
    with pytest.raises(AdapterConfigRefused, match=key):
        peft_config.read_plain(folder / CONFIG)
    with pytest.raises(AdapterUnfit, match=key):
        read_config(folder)
