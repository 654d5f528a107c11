"""A Llama of a few thousand random weights with a real byte-level BPE tokenizer, and LoRA adapters for it.

Made with numpy in milliseconds: 2 layers, 4 heads over 2 key-value heads, hidden 64, MLP 96, chat template with
`{% generation %}` tags. Random weights are a hard test of parity: no answer is likely, so small errors show.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN, MLP, LAYERS, HEADS, KEY_HEADS, CONTEXT = 64, 96, 2, 4, 2, 2048
SPECIAL = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
CORPUS = ["copy: cat sun key", "the quick brown fox jumps over the lazy dog", "naïve café, 12 €"] * 5
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MATRICES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // HEADS * KEY_HEADS, HIDDEN),
    "self_attn.v_proj": (HIDDEN // HEADS * KEY_HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (MLP, HIDDEN),
    "mlp.up_proj": (MLP, HIDDEN),
    "mlp.down_proj": (HIDDEN, MLP),
}
Array = NDArray[np.float32]


def make_base(folder: Path, **config: Any) -> Path:
    """A Hugging Face folder in BF16; `config` replaces fields of config.json."""
    folder.mkdir(parents=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    _write_json(folder / "config.json", _config(size) | config)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "chat_template": TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    weights = dict(_weights(size))
    if not config.get("tie_word_embeddings", True):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"][::-1].copy()
    write_safetensors(folder / "model.safetensors", weights, "BF16")
    return folder


def make_adapter(
    folder: Path, *, rank: int = 4, ranks: Mapping[str, int] | None = None, seed: int = 1, **config: Any
) -> Path:
    """A PEFT folder for all matrices, large enough to change every answer. `ranks`: by the end of a module's name."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in MATRICES.items():
            r = next((r for end, r in (ranks or {}).items() if name.endswith(end)), rank)
            place = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{place}.lora_A.weight"] = _normal(random, r, columns, scale=0.1)
            tensors[f"{place}.lora_B.weight"] = _normal(random, rows, r, scale=0.1)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 8,
        "target_modules": sorted(name.partition(".")[2] for name in MATRICES),
        "bias": "none",
    }
    _write_json(folder / "adapter_config.json", settings | config)
    write_safetensors(folder / "adapter_model.safetensors", tensors, "F32")
    return folder


def write_safetensors(path: Path, tensors: Mapping[str, Array], dtype: str) -> None:
    """Eight bytes of length, a JSON header, the bytes. BF16 by cutting the lower half off."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    place = 0
    for name, values in tensors.items():
        bits = values.view(np.uint32)
        data = (bits >> 16).astype("<u2").tobytes() if dtype == "BF16" else values.tobytes()
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [place, place + len(data)]}
        parts.append(data)
        place += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _config(vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "vocab_size": vocabulary,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": None,
        "eos_token_id": SPECIAL.index("<|end|>"),
        "pad_token_id": SPECIAL.index("<|pad|>"),
        "dtype": "bfloat16",
    }


def _weights(vocabulary: int) -> Iterator[tuple[str, Array]]:
    random = np.random.default_rng(0)
    yield "model.embed_tokens.weight", _normal(random, vocabulary, HIDDEN, scale=0.25)
    for layer in range(LAYERS):
        for name, (rows, columns) in MATRICES.items():
            yield f"model.layers.{layer}.{name}.weight", _normal(random, rows, columns, scale=0.2)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{name}.weight", 1 + _normal(random, HIDDEN, scale=0.1)
    yield "model.norm.weight", 1 + _normal(random, HIDDEN, scale=0.1)


def _normal(random: np.random.Generator, *shape: int, scale: float) -> Array:
    return (random.standard_normal(shape) * scale).astype(np.float32)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
