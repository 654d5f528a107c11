"""Bases: the frozen models that adapters are for, known by a fingerprint, never by a name.

The fingerprint is a digest over parsed values: architecture fields, tensor names and shapes, a fixed sample of each
tensor's numbers, the tokenizer and the chat template. Saved again with other sharding, key order, or the defaults that
another version of transformers writes out or leaves out, it is the same. Outside the sample a changed weight is not
seen; that is said where the fingerprint is shown. Special tokens that a post-processor adds are not in it: orchd adds
none, the template does. docs/SPEC-base.md has all of it; `gguf_base` does the same for a GGUF file.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchd.errors import BaseUnknown, TensorsRefused
from orchd.records.ids import BASE, text_id
from orchd.registry import weights

#: Fields of `config.json` that change what the model computes.
ARCHITECTURE_FIELDS = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings", "rms_norm_eps", "hidden_act",
    "attention_bias", "mlp_bias", "sliding_window", "max_position_embeddings",
)  # fmt: skip
SAMPLE = 64  # numbers a tensor, evenly spread
FOLDER, GGUF = "folder", "gguf"
FORMS = "A base is a Hugging Face folder (config.json, tokenizer.json, safetensors weights) or a GGUF file."
TEXT_LIMIT = 256 << 20  # bytes of a tokenizer or a config
HEADER_LIMIT = 32 << 20  # bytes of a base's safetensors header


@dataclass(frozen=True)
class Base:
    """A base on this machine. `shapes` maps a weight's name to its shape; `size` is in bytes.

    `form` is folder (Hugging Face) or gguf. `parts` are digests of what the fingerprint is made of, by name, so that a
    difference can be named; `sampled` numbers of all weights are looked at. A `private` one is never announced.
    """

    name: str
    digest: bytes
    path: Path
    architecture: str
    parameters: int
    size: int
    licence: str
    shapes: dict[str, tuple[int, ...]]
    form: str = FOLDER
    parts: Mapping[str, str] = field(default_factory=dict)
    sampled: int = 0
    private: bool = False

    @property
    def fingerprint(self) -> str:
        return text_id(BASE, self.digest)


def load(name: str, folder: Path) -> Base:
    """The base in a Hugging Face folder with safetensors weights. Raises `BaseUnknown` or `TensorsRefused`."""
    config = _json(folder / "config.json")
    shards = _shards(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    samples: dict[str, bytes] = {}
    for shard in shards:
        header = weights.read_header(shard, HEADER_LIMIT)
        with weights.mapped(shard) as view:
            for tensor in header.values():
                if tensor.name in shapes:
                    raise TensorsRefused(f"{folder}: two files hold the tensor {tensor.name[:80]!r}")
                shapes[tensor.name] = tensor.shape
                samples[tensor.name] = _sample(view, tensor)
    fields, tokenizer = canonical(_architecture(config)), _tokenizer(folder)
    names = {name: canonical([name, *shapes[name]]) for name in sorted(shapes)}
    digest = hashlib.sha256(b"orchd base fingerprint 1\n" + fields)
    for tensor_name, shaped in names.items():
        digest.update(shaped)
        digest.update(samples[tensor_name])
    digest.update(canonical(tokenizer))
    architectures = config.get("architectures")
    return Base(
        name=name,
        digest=digest.digest(),
        path=folder,
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else "unknown",
        parameters=sum(int(np.prod(shape)) for shape in shapes.values()),
        size=sum(shard.stat().st_size for shard in shards),
        licence=str(_told(folder, "licence", "unknown")),
        shapes=shapes,
        parts=part_digests(
            architecture=fields,
            tensors=b"".join(names.values()),
            weights=b"".join(samples[name] for name in names),
            tokenizer=canonical(tokenizer[:-1]),
            template=canonical(tokenizer[-1]),
        ),
        sampled=sum(map(len, samples.values())) // 4,
        private=_told(folder, "private", False) is True,
    )


def part_digests(**parts: bytes) -> dict[str, str]:
    """SHA-256 of each part, in hexadecimal."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}


def _shards(folder: Path) -> list[Path]:
    """The files that transformers would load, and none that lies beside them."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.exists():
        placed = _json(index).get("weight_map")
        if not isinstance(placed, dict):
            raise TensorsRefused(f"{index} holds no weight_map")
        names = {Path(str(name)).name for name in placed.values()}
    else:
        names = {path.name for path in folder.glob("*.safetensors")}
    shards = [folder / name for name in sorted(names)]
    if missing := [path.name for path in shards if not path.is_file()]:
        raise BaseUnknown(f"{folder}: {missing[0]!r} is missing", hint=FORMS)
    if not shards:
        raise BaseUnknown(f"{folder} holds no safetensors weights", hint=FORMS)
    return shards


def _architecture(config: dict[str, Any]) -> Any:
    """The fields, one way whether a default is written out or left out (transformers 4 and 5 differ)."""
    fields = {key: config.get(key) for key in ARCHITECTURE_FIELDS}
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if not isinstance(heads, int | None) or not isinstance(hidden, int | None):
        raise TensorsRefused(f"config.json: hidden_size {hidden!r} or num_attention_heads {heads!r} is no number")
    if fields["num_key_value_heads"] is None:
        fields["num_key_value_heads"] = heads
    if fields["head_dim"] is None and heads and hidden:
        fields["head_dim"] = hidden // heads
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise TensorsRefused(f"config.json: rope_parameters is {str(rope)[:80]!r}")
    fields["rope"] = rope | {
        "rope_theta": rope.get("rope_theta", config.get("rope_theta")),
        "rope_type": rope.get("rope_type", rope.get("type", "default")),
        "type": None,
    }
    return _plain(fields)


def _plain(value: Any) -> Any:
    """Without what is null or false; 10000 and 10000.0 are one number."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None and item is not False}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _sample(view: memoryview, tensor: weights.Tensor) -> bytes:
    """`SAMPLE` numbers at fixed places, as float32 bytes: the same for F32 and BF16 files of equal values."""
    count = tensor.parameters
    places = np.unique(np.linspace(0, max(count - 1, 0), min(SAMPLE, count)).astype(np.int64))
    item = weights.ITEM_SIZE[tensor.dtype]
    raw = np.frombuffer(view[tensor.start : tensor.end], np.uint8).reshape(count, item)[places].tobytes()
    picked = weights.Tensor(tensor.name, tensor.dtype, (len(places),), 0, len(raw))
    return weights.values(memoryview(raw), picked).tobytes()


def _tokenizer(folder: Path) -> list[Any]:
    tree = _json(folder / "tokenizer.json")
    settings = _json(folder / "tokenizer_config.json")
    template_file = folder / "chat_template.jinja"
    template = _text(template_file) if template_file.exists() else settings.get("chat_template", "")
    parts = {part: tree.get(part) for part in ("normalizer", "pre_tokenizer", "added_tokens")}
    return [parts, _model(tree), template.strip() if isinstance(template, str) else template]


def _model(tree: dict[str, Any]) -> Any:
    """Merges are `"a b"` in files before tokenizers 0.20, `["a", "b"]` after; later versions write more defaults."""
    model = tree.get("model")
    if not isinstance(model, dict):
        raise TensorsRefused("tokenizer.json holds no model")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or []]
    return _plain(model | {"merges": merges})


def canonical(value: Any) -> bytes:
    """One sequence of bytes for a JSON value: keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _text(path: Path) -> str:
    """What a file holds. A pipe or device is refused, not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise BaseUnknown(f"{path.parent} is no base: {path.name} is missing", hint=FORMS) from None
    try:
        told = os.fstat(descriptor)
        if not stat.S_ISREG(told.st_mode) or told.st_size > TEXT_LIMIT:
            raise TensorsRefused(f"{path} is no file of at most {TEXT_LIMIT >> 20} MB")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(TEXT_LIMIT).decode()
    except UnicodeDecodeError as error:
        raise TensorsRefused(f"{path} is no UTF-8: {error}") from None
    finally:
        os.close(descriptor)


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise TensorsRefused(f"{path} is no JSON: {error}") from None
    if not isinstance(tree, dict):
        raise TensorsRefused(f"{path} holds no JSON object")
    return tree


def _told(folder: Path, key: str, unsaid: object) -> object:
    """What orchd wrote beside a base that it made."""
    record = folder / "RECORD.json"
    return _json(record).get(key, unsaid) if record.exists() else unsaid
