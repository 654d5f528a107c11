"""A tiny random model of each family that orchd writes as GGUF, and adapters for it.

Made with transformers: hidden 256, grouped queries, a byte-level BPE with the family's own split. Random weights are a
hard test: no answer is likely, so small errors show.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from orchd.serve.weights import Weights
from tests.serve import tiny

HIDDEN, MLP, HEADS, KEY_HEADS, CONTEXT, VOCABULARY = 256, 512, 8, 4, 512, 600
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_hidden_layers": 3, "rope_parameters": _ROPE},
    "mistral": {"model_type": "mistral", "num_hidden_layers": 3, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "num_hidden_layers": 3, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "num_hidden_layers": 3, "head_dim": 64},
    "gemma2": {
        "model_type": "gemma2", "num_hidden_layers": 4, "head_dim": 32, "query_pre_attn_scalar": 32,
        "sliding_window": 16, "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma3": {
        "model_type": "gemma3_text", "num_hidden_layers": 6, "head_dim": 32, "query_pre_attn_scalar": 32,
        "sliding_window": 16, "hidden_activation": "gelu_pytorch_tanh",
    },
}  # fmt: skip
"""By name of the family: what its config.json has besides the common sizes."""

REGEXES = {"llama": LLAMA3, "qwen2": QWEN2, "qwen3": QWEN2}


def make_base(folder: Path, family: str, **config: Any) -> Path:
    """A Hugging Face folder in float32 (so that nothing is rounded before the comparison)."""
    folder.mkdir(parents=True)
    tokenizer = _tokenizer(REGEXES.get(family))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "chat_template": tiny.TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    common = {
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.03 if family.startswith("gemma") else 0.05,  # llama.cpp's GELU: parity.GELU_TOLERANCE
        "bos_token_id": None,
        "eos_token_id": tiny.SPECIAL.index("<|end|>"),
        "pad_token_id": tiny.SPECIAL.index("<|pad|>"),
    }
    settings = common | FAMILIES[family] | config
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(CONFIG_MAPPING[settings.pop("model_type")](**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith(".bias"):  # all alike when they are new, which would hide a mistake
                parameter += 0.1 * torch.randn_like(parameter)
    model.float().save_pretrained(folder)
    return folder


def make_adapter(folder: Path, base: Path, *, rank: int = 8, seed: int = 1, **config: Any) -> Path:
    """A PEFT folder for all matrices of the layers: ranks and alphas differ from module to module, with rsLoRA."""
    folder.mkdir(parents=True)
    random, tensors = np.random.default_rng(seed), {}
    for name, shape in _matrices(base).items():
        own = rank // 2 if name.endswith("v_proj") else rank
        place = f"base_model.model.{name}"
        tensors[f"{place}.lora_A.weight"] = _normal(random, (own, shape[1]), 0.04)
        tensors[f"{place}.lora_B.weight"] = _normal(random, (shape[0], own), 0.04)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 16,
        "use_rslora": True,
        "rank_pattern": {"v_proj": rank // 2},
        "alpha_pattern": {"mlp.up_proj": 4, "layers.1.self_attn.q_proj": 9},
        "target_modules": sorted({name.rpartition(".")[2] for name in _matrices(base)}),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    tiny.write_safetensors(folder / "adapter_model.safetensors", tensors, "F32")
    return folder


def _matrices(base: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of the linear maps of the layers."""
    with (base / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {
        name.removesuffix(".weight"): tuple(tensor["shape"])
        for name, tensor in header.items()
        if ".layers." in name and name.endswith("_proj.weight")
    }


def _tokenizer(regex: str | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=regex == LLAMA3))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    split = [] if regex is None else [pre_tokenizers.Split(Regex(regex), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, plain]) if split else plain
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=tiny.SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*tiny.CORPUS, __doc__ or "", "It's 1234567 o'clock,\n\n  isn't it?"] * 5, trainer)
    return tokenizer


def _normal(random: np.random.Generator, shape: tuple[int, ...], scale: float) -> tiny.Array:
    return (random.standard_normal(shape) * scale).astype(np.float32)


def only(adapter: Path, ends: tuple[str, ...]) -> Path:
    """Leave out of a PEFT folder all matrices but those whose names end so."""
    weights = Weights([adapter / "adapter_model.safetensors"])
    kept = {name: weights.read(name) for name in weights if name.partition(".lora_")[0].endswith(ends)}
    tiny.write_safetensors(adapter / "adapter_model.safetensors", kept, "F32")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": sorted(ends)}))
    return adapter
