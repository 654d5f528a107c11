"""The families of models that orchd writes as GGUF: what their tensors are called there and in Hugging Face folders.

Mistral is `llama` in GGUF. Sources: gguf-py `tensor_mapping.py`; llama.cpp `conversion/` for what is done to the
numbers (rows of queries and keys of `llama` go into another order, Gemma's norms are written plus one).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from orchd.serve.weights import FloatArray

QUERY, KEY = "query", "key"

_LINEAR = (
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
)
"""The matrices of a layer, which are the same in all families: (Hugging Face, GGUF)."""

_NORMS = (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"))
_HEAD_NORMS = (("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm"))
_FOUR_NORMS = (
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
)
EMBEDDINGS, HEAD, LAST_NORM = "model.embed_tokens", "lm_head", "model.norm"
_OUTSIDE = {EMBEDDINGS: "token_embd", LAST_NORM: "output_norm", HEAD: "output"}
_IN_LAYER = re.compile(r"model\.layers\.([0-9]{1,4})\.(.+)")


class Family(NamedTuple):
    """`architecture` is GGUF's name. `permutes`: rows of queries and keys stand in another order there. `norm_offset`
    is added to the weights of norms. `query_bias`: queries, keys and values have biases. `windows` is after how many
    layers one looks at everything, where the others see a window only (0: none does); `large` the number of layers
    of the one size that llama.cpp scales its queries otherwise for."""

    model_type: str
    architecture: str
    norms: tuple[tuple[str, str], ...]
    permutes: bool = False
    norm_offset: float = 0.0
    query_bias: bool = False
    windows: int = 0
    large: int = 0

    @property
    def activation(self) -> str:
        return "gelu_pytorch_tanh" if self.windows else "silu"


FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "llama", _NORMS, permutes=True),
        Family("mistral", "llama", _NORMS, permutes=True),
        Family("qwen2", "qwen2", _NORMS, query_bias=True),
        Family("qwen3", "qwen3", _NORMS + _HEAD_NORMS),
        Family("gemma2", "gemma2", _FOUR_NORMS, norm_offset=1.0, windows=2, large=46),
        Family("gemma3_text", "gemma3", _FOUR_NORMS + _HEAD_NORMS, norm_offset=1.0, windows=6, large=62),
    )
}
"""By `model_type` of config.json."""

ARCHITECTURES = frozenset(family.architecture for family in FAMILIES.values())


class Slot(NamedTuple):
    """One tensor of the GGUF: its name there, the module it comes from, the heads its rows are permuted by, and what
    is added to its numbers."""

    gguf: str
    module: str
    permute_heads: int | None = None
    offset: float = 0.0
    kind: str = "weight"

    @property
    def source(self) -> str:
        return f"{self.module}.{self.kind}"


def layer_slots(family: Family, layer: int, heads: int, key_heads: int) -> list[Slot]:
    """The tensors of one layer."""
    found = []
    for module, stem in family.norms:
        found.append(_slot(layer, module, stem, offset=family.norm_offset))
    for module, stem in _LINEAR:
        permute = {"attn_q": heads, "attn_k": key_heads}.get(stem) if family.permutes else None
        found.append(_slot(layer, module, stem, permute_heads=permute))
        if family.query_bias and stem in ("attn_q", "attn_k", "attn_v"):
            found.append(_slot(layer, module, stem, kind="bias"))
    return found


def _slot(
    layer: int, module: str, stem: str, *, kind: str = "weight", permute_heads: int | None = None, offset: float = 0.0
) -> Slot:
    return Slot(f"blk.{layer}.{stem}.{kind}", f"model.layers.{layer}.{module}", permute_heads, offset, kind)


def outer_slot(module: str, offset: float = 0.0) -> Slot:
    """The tensor of a module outside the layers."""
    return Slot(f"{_OUTSIDE[module]}.weight", module, offset=offset)


def matrix_of(module: str) -> str | None:
    """The GGUF name of a matrix that an adapter may change (`model.layers.3.self_attn.q_proj`), None for others."""
    if module == HEAD:
        return "output.weight"
    match = _IN_LAYER.fullmatch(module)
    stem = dict(_LINEAR).get(match[2]) if match else None
    return f"blk.{match[1]}.{stem}.weight" if match and stem else None


def heads_of(name: str, heads: int, key_heads: int) -> int | None:
    """By how many heads the rows of a GGUF tensor of `llama` are permuted; None where they are not."""
    if name.endswith(".attn_q.weight"):
        return heads
    return key_heads if name.endswith(".attn_k.weight") else None


def permute_rows(weight: FloatArray, heads: int) -> FloatArray:
    """Rows (heads · size, in) from Hugging Face's rotary order (two halves) to GGUF's (interleaved pairs)."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)
