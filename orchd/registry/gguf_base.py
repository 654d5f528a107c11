"""A base as one GGUF file: its fingerprint, and the shapes of its weights under the names that adapters use.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. A GGUF file has
another fingerprint than the Hugging Face folder it was made from, since its numbers are rounded and its vocabulary is
written differently; the user says that the two are one base with `orchctl base link`.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchd.errors import BaseUnknown, TensorsRefused
from orchd.registry.bases import FORMS, GGUF, Base, canonical, part_digests

MAGIC = b"GGUF"
SAMPLE = 256  # bytes a tensor, evenly spread
MAX_TENSORS, MAX_KEYS = 100_000, 10_000
#: Keys that say how the file was made, and nothing of what it computes.
ABOUT = re.compile(r"\Ageneral\.(?!architecture\Z)")
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
#: By a tensor's type: how many numbers are in a block, and its bytes (ggml's GGML_TYPE_*).
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
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
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


@dataclass(frozen=True)
class _Tensor:
    """`shape` is written as Hugging Face does, the fastest dimension last; `start` is from the file's beginning."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int

    @property
    def size(self) -> int:
        """Bytes."""
        numbers, length = _BLOCKS[self.type]
        return math.prod(self.shape) // numbers * length


def load(name: str, path: Path) -> Base:
    """The base in a GGUF file. Raises `BaseUnknown` for another file, `TensorsRefused` for a damaged one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise BaseUnknown(f"{path} is no GGUF file", hint=FORMS)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                keys, tensors = _read(_Reader(data), size)
            except (struct.error, UnicodeDecodeError, RecursionError) as error:
                raise TensorsRefused(f"{path} is no whole GGUF file: {error}") from None
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


class _Reader:
    """Reads one value after another; every length is checked against what is left of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = len(MAGIC)

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        length = self.number("<Q")
        self.check(length)
        value = self.data[self.at : self.at + length].decode("utf-8", "surrogateescape")
        self.at += length
        return value

    def check(self, wanted: int) -> None:
        if wanted > len(self.data) - self.at:
            raise TensorsRefused(f"the file says that {wanted} bytes follow, where {len(self.data) - self.at} do")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY and depth < 4:
            inner, count = self.number("<I"), self.number("<Q")
            self.check(count * max(1, struct.calcsize(_NUMBERS.get(inner, "<Q"))))
            return (
                self._numbers(inner, count)
                if inner in _NUMBERS
                else [self.value(inner, depth + 1) for _ in range(count)]
            )
        if kind not in _NUMBERS:
            raise TensorsRefused(f"a value of kind {kind} is not known")
        return self.number(_NUMBERS[kind])

    def _numbers(self, inner: int, count: int) -> list[Any]:
        form = _NUMBERS[inner]
        found = list(struct.unpack_from(f"<{count}{form[1]}", self.data, self.at))
        self.at += count * struct.calcsize(form)
        return found


def _read(reader: _Reader, size: int) -> tuple[dict[str, Any], list[_Tensor]]:
    """Keys and values, and the tensors in the order of their names."""
    if (version := reader.number("<I")) not in (2, 3):
        raise TensorsRefused(f"GGUF version {version} is not known")
    count, keys = reader.number("<Q"), reader.number("<Q")
    if not 1 <= count <= MAX_TENSORS or keys > MAX_KEYS:
        raise TensorsRefused(f"{count} tensors and {keys} keys")
    values = _distinct([(reader.text(), reader.value(reader.number("<I"))) for _ in range(keys)])
    heads = _distinct([_head(reader) for _ in range(count)])
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise TensorsRefused(f"general.alignment = {str(alignment)[:40]}")
    begin = -(-reader.at // alignment) * alignment
    tensors = [_Tensor(name, shape, kind, begin + offset) for name, (shape, kind, offset) in sorted(heads.items())]
    for tensor in tensors:
        if tensor.type not in _BLOCKS:
            raise TensorsRefused(f"tensor {tensor.name[:80]!r} is of type {tensor.type}, which is not known")
        if tensor.start + tensor.size > size:
            raise TensorsRefused(f"tensor {tensor.name[:80]!r} ends behind the end of the file")
    return values, tensors


def _head(reader: _Reader) -> tuple[str, tuple[tuple[int, ...], int, int]]:
    name, dimensions = reader.text(), reader.number("<I")
    if dimensions > 8:
        raise TensorsRefused(f"tensor {name[:80]!r} has {dimensions} dimensions")
    shape = tuple(reader.number("<Q") for _ in range(dimensions))
    return name, (shape[::-1], reader.number("<I"), reader.number("<Q"))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise TensorsRefused("a name occurs twice")
    return found


def _sample(data: mmap.mmap, tensor: _Tensor) -> bytes:
    places = np.unique(np.linspace(0, max(tensor.size - 1, 0), min(SAMPLE, tensor.size)).astype(np.int64))
    return bytes(data[tensor.start + int(place)] for place in places)
