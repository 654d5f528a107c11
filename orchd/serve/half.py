"""The lower half of a Llama base in numpy: what a prompt looks like in the middle of it, without torch or llama.cpp.

Holds the layers below the middle one and nothing above; of the embedding's rows only those are read that a prompt
needs. The same numbers as `transformers` in float32 gives (`tests/serve/test_half.py`), and so the same ones that an
adapter's centroid was made of in training. llama.cpp's embeddings can't give these: they come after a norm that its
last layer is given, and before it there is none to be asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from orchd.errors import BaseNotSupported
from orchd.lm.routing import LETTERS, TOKENS, Vector, prompt_vector
from orchd.serve.llama import LlamaConfig, read_config
from orchd.serve.vocabulary import read_vocabulary
from orchd.serve.weights import FloatArray, Weights

MODULES: Final = (
    *("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


class _Layer(NamedTuple):
    """The weights of one layer, float32; matrices are (out, in)."""

    norm: FloatArray
    query: FloatArray
    key: FloatArray
    value: FloatArray
    out: FloatArray
    second_norm: FloatArray
    gate: FloatArray
    up: FloatArray
    down: FloatArray


class Seen(NamedTuple):
    """The vector of a text, float32; how many tokens were looked at, and whether there were more."""

    vector: Vector
    tokens: int
    cut: bool


class Reader:
    """Text → vector, by the base in a Hugging Face folder. Raises BaseNotSupported, WeightsUnreadable."""

    def __init__(self, folder: Path) -> None:
        self._half = LowerHalf(folder)
        special = read_vocabulary(folder, read_config(folder).vocab_size).special
        first = special.get("bos", special.get("eos"))
        self._start = [] if first is None else [first]
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # what the library raises has no name of its own
            raise BaseNotSupported(f"{folder.name}/tokenizer.json: {error}") from error

    @property
    def layer(self) -> int:
        return self._half.layer

    def read(self, text: str) -> Seen:
        """Special tokens that the text spells out are read as such, as in training."""
        ids = self._ids(text)
        inputs = self._inputs(ids)
        return Seen(prompt_vector(inputs), len(inputs), len(ids) > TOKENS or len(text) > LETTERS)

    def inputs(self, text: str) -> FloatArray:
        """What the middle layer gets after its norm at each token of the text, float32 (tokens, width)."""
        return self._inputs(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text[:LETTERS], add_special_tokens=False).ids
        return ids

    def _inputs(self, ids: Sequence[int]) -> FloatArray:
        looked = [*self._start, *ids[:TOKENS]]
        inputs = self._half.inputs(looked) if looked else np.zeros((0, 1), np.float32)
        return inputs[len(self._start) :]


class LowerHalf:
    """Layers 0 to `layer` - 1 of the base in a Hugging Face folder. Raises BaseNotSupported, WeightsUnreadable."""

    def __init__(self, folder: Path) -> None:
        self._config = read_config(folder)
        self._weights = Weights.of_base(folder)
        self.layer = self._config.num_hidden_layers // 2
        self._layers = [self._read(at) for at in range(self.layer)]
        self._norm = self._weights.read(f"model.layers.{self.layer}.input_layernorm.weight")

    def inputs(self, ids: Sequence[int]) -> FloatArray:
        """What layer `layer` gets after its norm, float32 (tokens, width)."""
        config = self._config
        state = self._weights.rows("model.embed_tokens.weight", ids)
        turns = _turns(config, len(ids))
        for layer in self._layers:
            state = state + _attention(config, layer, _normed(state, layer.norm, config.rms_norm_eps), turns)
            middle = _normed(state, layer.second_norm, config.rms_norm_eps)
            gate = middle @ layer.gate.T
            state = state + (gate / (1.0 + np.exp(-gate)) * (middle @ layer.up.T)) @ layer.down.T
        return _normed(state, self._norm, config.rms_norm_eps)

    def _read(self, at: int) -> _Layer:
        return _Layer(*(self._weights.read(f"model.layers.{at}.{name}.weight") for name in MODULES))


def _normed(state: FloatArray, weight: FloatArray, epsilon: float) -> FloatArray:
    """RMSNorm."""
    even: FloatArray = state / np.sqrt((state * state).mean(-1, keepdims=True) + np.float32(epsilon)) * weight
    return even


def _turns(config: LlamaConfig, tokens: int) -> tuple[FloatArray, FloatArray]:
    """Cosine and sine by position, float32 (tokens, head size / 2), for the rotary embedding."""
    half = config.head_size // 2
    speeds = config.rope_base ** (-np.arange(half, dtype=np.float64) / half)
    angles = np.arange(tokens, dtype=np.float64)[:, None] * speeds
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _turned(heads: FloatArray, turns: tuple[FloatArray, FloatArray]) -> FloatArray:
    """(heads, tokens, size) turned by position; halves of a head are the two coordinates."""
    cosine, sine = turns
    first, second = np.split(heads, 2, -1)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)


def _attention(
    config: LlamaConfig, layer: _Layer, state: FloatArray, turns: tuple[FloatArray, FloatArray]
) -> FloatArray:
    tokens, size = len(state), config.head_size
    query = _heads(state @ layer.query.T, config.num_attention_heads)
    key, value = (_heads(state @ one.T, config.key_value_heads) for one in (layer.key, layer.value))
    query, key = _turned(query, turns), _turned(key, turns)
    shared = config.num_attention_heads // config.key_value_heads
    key, value = (np.repeat(one, shared, 0) for one in (key, value))
    scores = query @ key.swapaxes(1, 2) / np.float32(math.sqrt(size))
    scores += np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    mixed: FloatArray = (shares @ value).swapaxes(0, 1).reshape(tokens, -1) @ layer.out.T
    return mixed


def _heads(state: FloatArray, heads: int) -> FloatArray:
    """(tokens, heads · size) as (heads, tokens, size)."""
    return state.reshape(len(state), heads, -1).swapaxes(0, 1)
