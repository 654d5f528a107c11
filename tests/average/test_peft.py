"""PEFT loads the average, and its logits are those of a model with the dense sum added to its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from orchd.average.adapter import Adapter
from orchd.average.recipe import weights_ppm

from .bench import Bench
from .peft_folders import Array, dense_mean, truncated

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
    wanted = logits_with(dense_mean(folders, [ppm / 1e6 * 1.5 for ppm in result.weights_ppm]))
    assert (logits_of(average) - wanted).abs().max() <= 1e-5
    assert (wanted - tiny_llama()(TOKENS).logits).abs().max() > 0.1


@pytest.mark.parametrize("rank", ["energy:.7", "budget:3", "stacked"])
def test_peft_computes_modules_of_different_ranks_as_they_are(bench: Bench, rank: str) -> None:
    folders = [
        random_adapter(settings, seed, bench.folder / f"peft-{seed}", torch.float32)
        for seed, settings in enumerate(SETTINGS)
    ]
    average, _ = bench.average(folders, rank=rank)
    with Adapter(average) as written:
        rank_of = {name: module.rank for name, module in written.modules.items()}
    best = {name: truncated(delta, rank_of[name]) for name, delta in exact(folders).items() if name in rank_of}
    assert len(set(rank_of.values())) > 1
    assert (logits_of(average) - logits_with(best)).abs().max() <= 1e-5


TOKENS = torch.arange(40).reshape(2, 20) % 50


def exact(folders: list[Path]) -> dict[str, Array]:
    ppm = weights_ppm([(folder.name, 1.0) for folder in folders])
    return dense_mean(folders, [ppm[folder.name] / 1e6 for folder in folders])


def logits_with(changes: dict[str, Array]) -> torch.Tensor:
    """Of the base with the changes added to its weights."""
    reference = tiny_llama()
    with torch.no_grad():
        for name, delta in changes.items():
            weight = reference.get_submodule(name).weight
            weight += torch.from_numpy(delta).to(weight.dtype)
        return reference(TOKENS).logits


def logits_of(adapter: Path) -> torch.Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(tiny_llama(), str(adapter)).eval()(TOKENS).logits
