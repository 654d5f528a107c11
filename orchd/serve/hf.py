"""A base as Hugging Face lays it out, read for GGUF: its sizes, how it rotates, which tensors it has.

config.json goes through transformers' own reader, so that defaults that it leaves out, and the ways in which versions
write the rotation, are the same as where the reference is computed. Imported in workers only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from transformers import AutoConfig

from orchd.errors import BaseNotSupported
from orchd.serve.families import (
    EMBEDDINGS,
    FAMILIES,
    HEAD,
    LAST_NORM,
    Family,
    Slot,
    layer_slots,
    outer_slot,
)
from orchd.serve.weights import FloatArray

FULL, SLIDING = "full_attention", "sliding_attention"


class Rope(msgspec.Struct, frozen=True):
    """How positions are rotated. The fields after `factor` are of `llama3` (Llama 3.1 and later)."""

    rope_type: str = "default"
    rope_theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


class Config(msgspec.Struct, frozen=True):
    """The fields of config.json that GGUF needs, with the family's defaults filled in."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_parameters: dict[str, Any]
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = ""
    hidden_activation: str | None = ""
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    use_bidirectional_attention: bool | str | None = False

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rope(self) -> Rope:
        """Of the layers that see everything."""
        return msgspec.convert(self.rope_parameters.get(FULL, self.rope_parameters), Rope, strict=False)

    @property
    def window_rope(self) -> Rope | None:
        """Of the layers that see a window, where it is another one."""
        found = self.rope_parameters.get(SLIDING)
        return None if found is None else msgspec.convert(found, Rope, strict=False)

    @property
    def context(self) -> int:
        """Tokens up to which llama.cpp computes the same. Where it knows no window for a family, up to the window."""
        slides = self.layer_types is None or SLIDING in self.layer_types
        if self.family.windows or self.sliding_window is None or not slides:
            return self.max_position_embeddings
        return min(self.max_position_embeddings, self.sliding_window)


def read_config(folder: Path) -> Config:
    """config.json of a base. Raises BaseNotSupported naming what llama.cpp would compute otherwise."""
    try:
        tree = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()
        if tree.get("model_type") not in FAMILIES:
            raise BaseNotSupported(f"{folder.name} has model_type {str(tree.get('model_type'))[:40]!r}")
        config = msgspec.convert(tree, Config, strict=False)
        rope = config.rope
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise BaseNotSupported(f"{folder.name}/config.json: {said[:200]}") from error
    reasons = {
        f"activation {_activation(config)!r}": _activation(config) != config.family.activation,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        f"rope_type {rope.rope_type!r}": rope.rope_type not in ("default", "linear", "llama3"),
        "attention in both directions": bool(config.use_bidirectional_attention),
        **_windowed(config),
    }
    for reason, found in reasons.items():
        if found:
            raise BaseNotSupported(f"{folder.name} has {reason}")
    return config


def _activation(config: Config) -> str:
    return config.hidden_act or config.hidden_activation or ""


def _windowed(config: Config) -> Mapping[str, bool]:
    """What a Gemma may have that llama.cpp does not read from the file."""
    family = config.family
    if not family.windows:
        return {}
    kinds = [SLIDING if (at + 1) % family.windows else FULL for at in range(config.num_hidden_layers)]
    large = config.num_hidden_layers == family.large
    scale = config.hidden_size // config.num_attention_heads if large else config.head_size
    window = config.window_rope
    softcaps = (config.attn_logit_softcapping, config.final_logit_softcapping)
    return {
        f"windows at layers other than all but each {family.windows}th": list(config.layer_types or ()) != kinds,
        f"query_pre_attn_scalar {config.query_pre_attn_scalar}, not {scale}": config.query_pre_attn_scalar != scale,
        "no sliding_window": not config.sliding_window,
        "a scaled rotation within windows": window is not None and window.rope_type != "default",
        "no softcapping": family.architecture == "gemma2" and None in softcaps,
        "attn_logit_softcapping": family.architecture == "gemma3" and softcaps[0] is not None,
    }


def slots(config: Config, weights: Mapping[str, object]) -> Iterator[Slot]:
    """The tensors of the GGUF in the order they are written. Raises BaseNotSupported for missing or unknown ones."""
    wanted = [outer_slot(EMBEDDINGS)]
    for layer in range(config.num_hidden_layers):
        wanted += layer_slots(config.family, layer, config.num_attention_heads, config.key_value_heads)
    wanted.append(outer_slot(LAST_NORM, config.family.norm_offset))
    if not config.tie_word_embeddings:
        wanted.append(outer_slot(HEAD))
    known = {slot.source for slot in wanted} | {f"{HEAD}.weight"}
    left = [name for name in weights if name not in known and not name.endswith("rotary_emb.inv_freq")]
    if left:
        raise BaseNotSupported(f"the base holds {left[0]}, which no {config.model_type} has")
    for slot in wanted:
        if slot.source not in weights:
            raise BaseNotSupported(f"the base lacks {slot.source}")
        yield slot


def rope_factors(config: Config) -> FloatArray | None:
    """For `llama3`: what llama.cpp divides each frequency by, float32 (half the head's size); else None.

    Long waves are stretched by `factor`, short ones left alone, those between get a mixture. Source: transformers
    `modeling_rope_utils._compute_llama3_parameters`, llama.cpp `conversion/llama.py`.
    """
    rope = config.rope
    if rope.rope_type != "llama3":
        return None
    frequencies = 1.0 / rope.rope_theta ** (np.arange(0, config.head_size, 2) / config.head_size)
    waves = 2 * math.pi / frequencies
    longest = rope.original_max_position_embeddings / rope.low_freq_factor
    shortest = rope.original_max_position_embeddings / rope.high_freq_factor
    share = (rope.original_max_position_embeddings / waves - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    mixed = 1 / ((1 - share) / rope.factor + share)
    found = np.where(waves < shortest, 1.0, np.where(waves > longest, rope.factor, mixed))
    return found.astype(np.float32)
