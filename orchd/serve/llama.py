"""The config.json of a plain Llama base, read without torch or transformers: for `half`, which computes in numpy.

What is written as GGUF is read by `hf`, which knows more families and ways to rotate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from orchd.errors import BaseNotSupported


class RopeParameters(msgspec.Struct, frozen=True):
    rope_theta: float = 10000.0
    rope_type: str = "default"


class LlamaConfig(msgspec.Struct, frozen=True):
    """The fields of config.json that matter (transformers 5 writes `rope_parameters`, older ones `rope_theta`)."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_parameters: RopeParameters | None = None
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    eos_token_id: int | list[int] | None = None

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rope_base(self) -> float:
        return self.rope_parameters.rope_theta if self.rope_parameters else self.rope_theta


def read_config(folder: Path) -> LlamaConfig:
    """config.json of a base. Raises BaseNotSupported naming what isn't plain Llama."""
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=LlamaConfig)
    except (OSError, msgspec.MsgspecError) as error:
        raise BaseNotSupported(f"{folder.name}/config.json: {error}") from error
    rope = config.rope_parameters.rope_type if config.rope_parameters else "default"
    reasons = {
        f"model_type {config.model_type!r}": config.model_type != "llama",
        f"hidden_act {config.hidden_act!r}": config.hidden_act != "silu",
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        f"rope_type {rope!r}": rope != "default",
        "rope_scaling": bool(config.rope_scaling),
    }
    for reason, found in reasons.items():
        if found:
            raise BaseNotSupported(f"{folder.name} has {reason}")
    return config
