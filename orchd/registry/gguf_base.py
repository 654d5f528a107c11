"""A base as one GGUF file: its fingerprint, and the shapes of its weights under the names that adapters use.

`gguf_layout` reads where everything lies. A GGUF file has another fingerprint than the Hugging Face folder it was made
from, since its numbers are rounded and its vocabulary is written differently; the user says that the two are one base
with `orchctl base link`.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import re
from pathlib import Path

import numpy as np

from orchd.errors import BaseUnknown
from orchd.registry.bases import FORMS, GGUF, Base, canonical, part_digests
from orchd.registry.gguf_layout import MAGIC, Tensor, read_mapped

SAMPLE = 256  # bytes a tensor, evenly spread
#: Keys that say how the file was made, and nothing of what it computes.
ABOUT = re.compile(r"\Ageneral\.(?!architecture\Z)")
#: Names of weights in a GGUF file of the Llama family, and those that Hugging Face gives them.
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"\Ablk\.([0-9]{1,4})\.([a-z_]+)\.(weight|bias)\Z")
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}


def load(name: str, path: Path) -> Base:
    """The base in a GGUF file. Raises `BaseUnknown` for another file, `TensorsRefused` for a damaged one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise BaseUnknown(f"{path} is no GGUF file", hint=FORMS)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            layout = read_mapped(path, data)
            keys, tensors = layout.keys, sorted(layout.tensors, key=lambda tensor: tensor.name)
            samples = b"".join(_sample(data, tensor) for tensor in tensors)
    kept = {key: value for key, value in keys.items() if not ABOUT.match(key)}
    template = kept.pop("tokenizer.chat_template", "")
    tokenizer = {key: value for key, value in kept.items() if key.startswith("tokenizer.")}
    fields = canonical({key: value for key, value in kept.items() if key not in tokenizer})
    names = canonical([[tensor.name, tensor.type, *tensor.shape] for tensor in tensors])
    parts = (fields, names, samples, canonical(tokenizer), canonical(template))
    architecture = str(keys.get("general.architecture", "unknown"))[:100]
    return Base(
        name=name,
        digest=hashlib.sha256(b"orchd base fingerprint 1 gguf\n" + b"".join(map(_with_length, parts))).digest(),
        path=path,
        architecture=_ARCHITECTURES.get(architecture, architecture),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        size=size,
        licence=str(keys.get("general.license", "unknown"))[:100],
        shapes={_hub_name(tensor.name): tensor.shape for tensor in tensors},
        form=GGUF,
        parts=part_digests(
            **dict(zip(("architecture", "tensors", "weights", "tokenizer", "template"), parts, strict=True))
        ),
        sampled=len(samples),
    )


def _with_length(part: bytes) -> bytes:
    return b"%d\n" % len(part) + part


def _hub_name(name: str) -> str:
    """`blk.3.attn_q.weight` as `model.layers.3.self_attn.q_proj.weight`; other names as they are."""
    if match := _BLOCK.match(name):
        inner = _NAMES.get(match[2])
        return f"model.layers.{match[1]}.{inner}.{match[3]}" if inner else name
    stem, _, kind = name.rpartition(".")
    return f"{_NAMES[stem]}.{kind}" if stem in _NAMES else name


def _sample(data: mmap.mmap, tensor: Tensor) -> bytes:
    places = np.unique(np.linspace(0, max(tensor.size - 1, 0), min(SAMPLE, tensor.size)).astype(np.int64))
    return bytes(data[tensor.start + int(place)] for place in places)
