"""PEFT loads the average, and its logits are those of a model with the dense sum added to its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from .bench import Bench
from .peft_folders import dense_mean

SETTINGS = [
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "up_proj"], "use_rslora": True},
    {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "k_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 5},
        "alpha_pattern": {"k_proj": 1},
    },
]


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def random_adapter(settings: dict[str, object], seed: int, folder: Path, dtype: torch.dtype) -> Path:
    model = get_peft_model(tiny_llama(), LoraConfig(task_type="CAUSAL_LM", **settings))
    model.save_pretrained(str(folder))
    weights = folder / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: (0.2 * torch.randn(tensor.shape, generator=generator)).to(dtype)
        for name, tensor in load_file(weights).items()
    }
    save_file(drawn, weights, metadata={"format": "pt"})
    (folder / "README.md").unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_peft_loads_the_average_and_its_logits_are_the_dense_ones(bench: Bench, dtype: torch.dtype) -> None:
    folders = [
        random_adapter(settings, seed, bench.folder / f"peft-{seed}", dtype) for seed, settings in enumerate(SETTINGS)
    ]
    average, result = bench.average(folders, [1, 2, 3], rank=64, strength=1.5)
    tokens = torch.arange(40).reshape(2, 20) % 50
    reference = tiny_llama()
    with torch.no_grad():
        for name, delta in dense_mean(folders, [ppm / 1e6 * 1.5 for ppm in result.weights_ppm]).items():
            weight = reference.get_submodule(name).weight
            weight += torch.from_numpy(delta).to(weight.dtype)
        wanted = reference(tokens).logits
        got = PeftModel.from_pretrained(tiny_llama(), str(average)).eval()(tokens).logits
    assert (got - wanted).abs().max() <= 1e-5
    assert (wanted - tiny_llama()(tokens).logits).abs().max() > 0.1
