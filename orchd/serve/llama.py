"""A Llama base as Hugging Face lays it out, read for GGUF: its shape, its tensors' names, its tokenizer.

Sources: llama.cpp `conversion/llama.py` and `conversion/base.py` (the rotary permutation, token types), and the
GGUF specification for the key names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from orchd.errors import BaseNotSupported
from orchd.serve.weights import FloatArray, Weights

TOKEN_NORMAL, TOKEN_CONTROL, TOKEN_USER_DEFINED, TOKEN_UNUSED = 1, 3, 4, 5  # gguf.TokenType

LAYER_TENSORS = (
    # (Hugging Face, GGUF, which heads its rows belong to)
    ("input_layernorm", "attn_norm", None),
    ("self_attn.q_proj", "attn_q", "query"),
    ("self_attn.k_proj", "attn_k", "key"),
    ("self_attn.v_proj", "attn_v", None),
    ("self_attn.o_proj", "attn_output", None),
    ("post_attention_layernorm", "ffn_norm", None),
    ("mlp.gate_proj", "ffn_gate", None),
    ("mlp.up_proj", "ffn_up", None),
    ("mlp.down_proj", "ffn_down", None),
)


class RopeParameters(msgspec.Struct, frozen=True):
    rope_theta: float = 10000.0
    rope_type: str = "default"


class LlamaConfig(msgspec.Struct, frozen=True):
    """The fields of config.json that GGUF needs (transformers 5 writes `rope_parameters`, older ones `rope_theta`)."""

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


class Slot(NamedTuple):
    """One tensor of the GGUF: its name there, the module it comes from, and the heads its rows are permuted by."""

    gguf: str
    module: str
    permute_heads: int | None = None

    @property
    def source(self) -> str:
        return f"{self.module}.weight"


class Vocabulary(NamedTuple):
    """What llama.cpp needs to make the same token ids: texts and types by id, merges in order, special ids."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]
    add_bos: bool
    chat_template: str


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


def slots(config: LlamaConfig, weights: Weights) -> Iterator[Slot]:
    """The tensors of the GGUF in the order they are written. Raises BaseNotSupported for missing or unknown ones."""
    heads = {"query": config.num_attention_heads, "key": config.key_value_heads, None: None}
    wanted = [Slot("token_embd.weight", "model.embed_tokens")]
    for layer in range(config.num_hidden_layers):
        wanted += [
            Slot(f"blk.{layer}.{gguf}.weight", f"model.layers.{layer}.{module}", heads[rows])
            for module, gguf, rows in LAYER_TENSORS
        ]
    wanted.append(Slot("output_norm.weight", "model.norm"))
    if not config.tie_word_embeddings:
        wanted.append(Slot("output.weight", "lm_head"))
    known = {slot.source for slot in wanted} | {"lm_head.weight"}
    left = [name for name in weights if name not in known and not name.endswith("rotary_emb.inv_freq")]
    if left:
        raise BaseNotSupported(f"the base holds {left[0]}, which no Llama has")
    for slot in wanted:
        if slot.source not in weights:
            raise BaseNotSupported(f"the base lacks {slot.source}")
        yield slot


def permute_rows(weight: FloatArray, heads: int) -> FloatArray:
    """Rows (heads · size, in) from Hugging Face's rotary order (two halves) to GGUF's (interleaved pairs)."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


class _AddedToken(msgspec.Struct, frozen=True):
    id: int
    content: str
    special: bool


class _Bpe(msgspec.Struct, frozen=True):
    type: str
    vocab: dict[str, int]
    merges: list[str | list[str]]
    byte_fallback: bool = False
    ignore_merges: bool = False
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class _Tokenizer(msgspec.Struct, frozen=True):
    model: _Bpe
    added_tokens: list[_AddedToken] = []
    pre_tokenizer: dict[str, Any] | None = None
    normalizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


class _TokenizerConfig(msgspec.Struct, frozen=True):
    chat_template: str | None = None
    bos_token: str | dict[str, Any] | None = None
    eos_token: str | dict[str, Any] | None = None
    unk_token: str | dict[str, Any] | None = None
    pad_token: str | dict[str, Any] | None = None


def read_vocabulary(folder: Path, config: LlamaConfig) -> Vocabulary:
    """tokenizer.json, tokenizer_config.json and the chat template, kept as it is.

    Raises BaseNotSupported for a tokenizer that isn't byte-level BPE with GPT-2's split.
    """
    try:
        tokenizer = msgspec.json.decode((folder / "tokenizer.json").read_bytes(), type=_Tokenizer)
        settings = msgspec.json.decode((folder / "tokenizer_config.json").read_bytes(), type=_TokenizerConfig)
        template_file = folder / "chat_template.jinja"
        template = settings.chat_template
        if template_file.exists():
            template = template_file.read_text(encoding="utf-8")
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BaseNotSupported(f"{folder.name}: {error}") from error
    if not template:
        raise BaseNotSupported(f"{folder.name} has no chat template")
    _require_gpt2_split(folder.name, tokenizer)
    tokens, types = _tokens(tokenizer, config.vocab_size)
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=[m if isinstance(m, str) else " ".join(m) for m in tokenizer.model.merges],
        special=_special_ids(tokenizer, settings, tokens),
        add_bos=_adds_bos(folder.name, tokenizer.post_processor, settings),
        chat_template=template,
    )


def _require_gpt2_split(name: str, tokenizer: _Tokenizer) -> None:
    bpe, split = tokenizer.model, tokenizer.pre_tokenizer or {}
    reasons = {
        f"a {bpe.type} tokenizer": bpe.type != "BPE",
        f"a {split.get('type')} split": split.get("type") != "ByteLevel",
        "add_prefix_space": bool(split.get("add_prefix_space")),
        "a split without GPT-2's expression": split.get("use_regex") is False,
        "a normalizer": tokenizer.normalizer is not None,
        "byte_fallback": bpe.byte_fallback,
        "ignore_merges": bpe.ignore_merges,
        "subword marks": bool(bpe.continuing_subword_prefix or bpe.end_of_word_suffix),
    }
    for reason, found in reasons.items():
        if found:
            raise BaseNotSupported(f"{name}/tokenizer.json has {reason}")


def _tokens(tokenizer: _Tokenizer, size: int) -> tuple[list[str], list[int]]:
    """Texts and types by id; ids that the tokenizer never gives are filled, as the embedding has rows for them."""
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [TOKEN_UNUSED] * size
    for text, index in tokenizer.model.vocab.items():
        if not 0 <= index < size:
            raise BaseNotSupported(f"token {index} lies outside the vocabulary of {size}")
        tokens[index], types[index] = text, TOKEN_NORMAL
    for token in tokenizer.added_tokens:
        if not 0 <= token.id < size:
            raise BaseNotSupported(f"token {token.id} lies outside the vocabulary of {size}")
        tokens[token.id] = token.content
        types[token.id] = TOKEN_CONTROL if token.special else TOKEN_USER_DEFINED
    return tokens, types


def _special_ids(tokenizer: _Tokenizer, settings: _TokenizerConfig, tokens: list[str]) -> dict[str, int]:
    by_text = {text: index for index, text in enumerate(tokens)}
    named = {
        "bos": settings.bos_token,
        "eos": settings.eos_token,
        "unknown": settings.unk_token or tokenizer.model.unk_token,
        "padding": settings.pad_token,
    }
    return {
        name: by_text[text]
        for name, value in named.items()
        if (text := _text_of(value)) is not None and text in by_text
    }


def _text_of(token: str | dict[str, Any] | None) -> str | None:
    if isinstance(token, dict):
        return str(token.get("content"))
    return token


def _adds_bos(name: str, processor: dict[str, Any] | None, settings: _TokenizerConfig) -> bool:
    """Whether encoding puts the first token in front. Any other template of special tokens is refused."""
    if processor is None or processor.get("type") == "ByteLevel":
        return False
    if processor.get("type") == "Sequence":
        return any(_adds_bos(name, part, settings) for part in processor.get("processors", []))
    if processor.get("type") == "TemplateProcessing":
        added = [p["SpecialToken"]["id"] for p in processor["single"] if "SpecialToken" in p]
        if not added:
            return False
        if added == [_text_of(settings.bos_token)] and "SpecialToken" in processor["single"][0]:
            return True
    raise BaseNotSupported(f"{name}/tokenizer.json adds tokens around a text in a way GGUF can't say")
