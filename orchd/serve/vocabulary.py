"""The tokenizer of a Hugging Face folder, read for GGUF: texts, types, merges, special tokens, the chat template.

Sources: llama.cpp `conversion/base.py` (token types) and `src/llama-vocab.cpp` (how a text is split, by its name in
`tokenizer.ggml.pre`). A split that none of these names is refused: the ids would differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from orchd.errors import BaseNotSupported

TOKEN_NORMAL, TOKEN_CONTROL, TOKEN_USER_DEFINED, TOKEN_UNUSED = 1, 3, 4, 5  # gguf.TokenType


_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


class Split(NamedTuple):
    """One of llama.cpp's ways: its name, the steps of a tokenizer.json that mean the same, whether words that are
    tokens as they stand are left whole (`ignore_merges`), and whether composed characters (NFC) are asked for, which
    llama.cpp takes as they come."""

    name: str
    steps: tuple[str, ...]
    regex: str = ""
    whole_words: bool = False
    composed: bool = False

    def fits(self, pre: dict[str, Any], normalizer: dict[str, Any] | None, ignore_merges: bool) -> bool:
        steps = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else [pre]
        if normalizer is not None and not (self.composed and normalizer == {"type": "NFC"}):
            return False
        if tuple(str(step.get("type")) for step in steps) != self.steps or ignore_merges != self.whole_words:
            return False
        return all(self._step_fits(step) for step in steps)

    def _step_fits(self, step: dict[str, Any]) -> bool:
        if step["type"] == "Digits":
            return step.get("individual_digits") is True
        if step["type"] == "Split":
            isolated = step.get("behavior") == "Isolated" and not step.get("invert")
            return isolated and step.get("pattern") == {"Regex": self.regex}
        return not step.get("add_prefix_space") and step.get("use_regex", True) is not bool(self.regex)


SPLITS = (
    Split("gpt-2", ("ByteLevel",)),
    Split("llama-bpe", ("Split", "ByteLevel"), _LLAMA3, whole_words=True),
    Split("qwen2", ("Split", "ByteLevel"), _QWEN2, composed=True),
    Split("smollm", ("Digits", "ByteLevel")),
)


class Vocabulary(NamedTuple):
    """What llama.cpp needs to make the same token ids: texts and types by id, merges in order, special ids.

    `split` is llama.cpp's name of how a text is cut into words before they are merged."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]
    add_bos: bool
    chat_template: str
    split: str


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


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """tokenizer.json, tokenizer_config.json and the chat template, kept as it is; `size` ids.

    Raises BaseNotSupported for a tokenizer that isn't byte-level BPE with a split that llama.cpp knows.
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
    split = _split(folder.name, tokenizer)
    tokens, types = _tokens(tokenizer, size)
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=[m if isinstance(m, str) else " ".join(m) for m in tokenizer.model.merges],
        special=_special_ids(tokenizer, settings, tokens),
        add_bos=_adds_bos(folder.name, tokenizer.post_processor, settings),
        chat_template=template,
        split=split,
    )


def _split(name: str, tokenizer: _Tokenizer) -> str:
    """llama.cpp's name of how this tokenizer cuts a text into words."""
    bpe = tokenizer.model
    reasons = {
        f"a {bpe.type} tokenizer": bpe.type != "BPE",
        "byte_fallback (a SentencePiece vocabulary)": bpe.byte_fallback,
        "subword marks": bool(bpe.continuing_subword_prefix or bpe.end_of_word_suffix),
    }
    for reason, has in reasons.items():
        if has:
            hint = "`orchctl base add` its GGUF file: an adapter is folded into that as it is."
            raise BaseNotSupported(f"{name}/tokenizer.json has {reason}", hint=hint)
    steps = tokenizer.pre_tokenizer or {}
    found = next((split for split in SPLITS if split.fits(steps, tokenizer.normalizer, bpe.ignore_merges)), None)
    if found is None:
        told = [str(one.get("type")) for one in steps.get("pretokenizers", [steps])]
        raise BaseNotSupported(f"{name}/tokenizer.json splits texts in a way llama.cpp has no name for: {told}")
    return found.name


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
