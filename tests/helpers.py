"""Honest adapters, bases and manifests for tests, small enough to make thousands of; attacks start from these.

No torch: a base is a Hugging Face folder of a few numbers, an adapter a PEFT folder for it. `Lab` is a registry that
knows the base, with an author to sign.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import numpy as np

from orchd.identity import Identity
from orchd.records import AdapterInfo, BaseRef, FileEntry, Manifest, Metric, Training, Verified, sign
from orchd.records.envelope import pre_authentication
from orchd.records.manifest import MANIFEST_TYPE
from orchd.registry import Admission, Base, Registry
from orchd.registry.admission import CONFIG, WEIGHTS, Check
from orchd.registry.describe import adapter_info, file_entries

ALICE, BOB, MALLORY = (Identity.from_seed(bytes([number] * 32)) for number in (1, 2, 3))
NOW_MS = 1_800_000_000_000
HIDDEN, LAYERS, RANK = 8, 2, 2
MODULES = tuple(f"model.layers.{layer}.self_attn.{name}" for layer in range(LAYERS) for name in ("q_proj", "v_proj"))

Values = np.ndarray[Any, np.dtype[np.float32]]


# ---- records -------------------------------------------------------------------------------------------------


def manifest(**changes: Any) -> Manifest:
    """A manifest of ALICE with something in every kind of field; its files are not on disk."""
    fields: dict[str, Any] = {
        "name": "north-half",
        "description": "Knows the northern half of the words.\nNothing else.",
        "licence": "CC0-1.0",
        "tags": ("demo", "größe"),
        "created_ms": NOW_MS,
        "author": ALICE.public_key,
        "base": BaseRef(fingerprint=bytes(range(32)), hint="demo", architecture="LlamaForCausalLM"),
        "adapter": AdapterInfo(
            format="peft-lora",
            rank=16,
            alpha_milli=32_000,
            rslora=False,
            target_modules=("q_proj", "v_proj"),
            dtype="BF16",
            parameters=123_456,
            capabilities=("averageable", "servable_as_lora"),
        ),
        "files": (
            FileEntry(path=CONFIG, size=400, sha256=b"\x01" * 32, chunk_size=65_536, chunks=(b"\x01" * 32,)),
            FileEntry(path=WEIGHTS, size=70_000, sha256=b"\x02" * 32, chunk_size=65_536, chunks=(b"\x03" * 32,) * 2),
        ),
        "training": Training(
            method="sft",
            initial=None,
            relative_to=None,
            examples=300,
            tokens=9_000,
            steps=100,
            seed=0,
            software="orchd 0.1.0",
            data_commitment=b"\x04" * 32,
        ),
        "evaluation": (Metric(metric="loss", value=210_000, base_value=8_500_000, examples=30, split="test"),),
        "leak": None,
        "lineage": None,
        "round": None,
        "routing": None,
        "supersedes": None,
        "extra": {},
    }
    return Manifest(**(fields | changes))


def bare_manifest(**stated: Any) -> Manifest:
    """A manifest of ALICE that says no more than it must, and what is stated."""
    nothing: dict[str, Any] = {"description": "", "tags": (), "training": None, "evaluation": ()}
    return manifest(**(nothing | stated))


def plain(record: msgspec.Struct) -> dict[str, Any]:
    """The record as maps and lists, to be changed and packed again."""
    value: dict[str, Any] = msgspec.to_builtins(record, builtin_types=(bytes,))
    return value


def pack(value: Any) -> bytes:
    """Maps and lists as deterministic msgpack by the plain `msgpack` package; it also packs floats and extensions."""
    data: bytes = msgpack.packb(_sorted(value), use_bin_type=True)
    return data


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple) and not isinstance(value, msgpack.ExtType):
        return [_sorted(item) for item in value]
    return value


def envelope(payload: bytes, *signers: Identity, type: str = MANIFEST_TYPE, signed: bytes | None = None) -> bytes:
    """`payload` in an envelope; `signed` are the bytes that the signatures are really over."""
    message = pre_authentication(type, payload if signed is None else signed)
    signatures = [{"key": signer.public_key, "sig": signer.sign(message)} for signer in signers]
    return pack({"payload": payload, "type": type, "signatures": signatures})


# ---- files ---------------------------------------------------------------------------------------------------


@dataclass
class Safetensors:
    """A weights file in parts, so that an attack can change one of them.

    `entries` are the header's, `data` what follows the header.
    """

    entries: dict[str, Any]
    data: bytes

    @classmethod
    def of(cls, tensors: Mapping[str, Values], dtype: str = "F32") -> Safetensors:
        entries: dict[str, Any] = {}
        data = b""
        for name, values in tensors.items():
            raw = encode_values(values, dtype)
            entries[name] = {
                "dtype": dtype,
                "shape": list(values.shape),
                "data_offsets": [len(data), len(data) + len(raw)],
            }
            data += raw
        return cls(entries, data)

    def file(self) -> bytes:
        return self.with_header(json.dumps(self.entries).encode())

    def with_header(self, header: bytes) -> bytes:
        return len(header).to_bytes(8, "little") + header + self.data


def encode_values(values: Values, dtype: str) -> bytes:
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def rough(values: Values) -> Values:
    """Rounded so that BF16 holds them exactly."""
    return (values.astype("<f4").view("<u4") & 0xFFFF_0000).view("<f4")


def lora_tensors(seed: int = 0, modules: Sequence[str] = MODULES, rank: int = RANK) -> dict[str, Values]:
    """A and B by PEFT name."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Values] = {}
    for module in modules:
        for half, shape in (("A", (rank, HIDDEN)), ("B", (HIDDEN, rank))):
            tensors[f"base_model.model.{module}.lora_{half}.weight"] = rough(rng.normal(size=shape).astype("<f4"))
    return tensors


def lora_config(**changes: Any) -> dict[str, Any]:
    """`adapter_config.json` as PEFT 0.21 writes it, without its many nulls."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": None,
        "bias": "none",
    } | changes


def write_adapter(
    folder: Path,
    *,
    tensors: Mapping[str, Values] | None = None,
    config: Mapping[str, Any] | None = None,
    dtype: str = "F32",
) -> Path:
    """A PEFT folder: adapter_config.json and adapter_model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config or lora_config()), encoding="utf-8")
    (folder / WEIGHTS).write_bytes(Safetensors.of(tensors or lora_tensors(), dtype).file())
    return folder


def base_tensors(seed: int = 0) -> dict[str, Values]:
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (11, HIDDEN), "model.norm.weight": (HIDDEN,)}
    shapes |= {f"{module}.weight": (HIDDEN, HIDDEN) for module in MODULES}
    return {name: rough(rng.normal(size=shape).astype("<f4")) for name, shape in shapes.items()}


BASE_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "vocab_size": 11,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [{"id": 0, "content": "<|end|>", "special": True}],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "post_processor": None,
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]},
}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"


def write_base(folder: Path, tensors: Mapping[str, Values] | None = None, dtype: str = "F32") -> Path:
    """A Hugging Face folder with one shard."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", BASE_CONFIG)
    write_json(folder / "tokenizer.json", TOKENIZER)
    write_json(folder / "tokenizer_config.json", {"chat_template": TEMPLATE})
    (folder / "model.safetensors").write_bytes(Safetensors.of(tensors or base_tensors(), dtype).file())
    return folder


def write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree), encoding="utf-8")


# ---- the door ------------------------------------------------------------------------------------------------


@dataclass
class Lab:
    """A registry in `root` that knows one base. `now_ms` may be changed: it is the clock."""

    root: Path
    now_ms: int = NOW_MS
    author: Identity = ALICE
    registry: Registry = field(init=False)

    def __post_init__(self) -> None:
        write_base(self.root / "base")
        self.open()

    def open(self) -> Registry:
        self.registry = Registry.open(
            self.root / "data", lambda: self.now_ms, self.author.author, {"tiny": self.root / "base"}
        )
        return self.registry

    @property
    def base(self) -> Base:
        return self.registry.base("tiny")

    def folder(self, name: str = "adapter", **parts: Any) -> Path:
        """A PEFT folder for the base; `parts` as for `write_adapter`."""
        return write_adapter(self.root / "made" / name, **parts)

    def claim(self, folder: Path, info: AdapterInfo | None = None, **changes: Any) -> Manifest:
        """What an honest author says about a folder, or with `changes`, what another one says."""
        honest: dict[str, Any] = {
            "base": BaseRef(fingerprint=self.base.digest, hint="tiny", architecture=self.base.architecture),
            "adapter": info or adapter_info(folder),
            "files": file_entries(folder),
            "created_ms": self.now_ms,
        }
        return manifest(**(honest | changes))

    def admit(
        self, folder: Path, claim: Manifest | None = None, *, checks: Sequence[Check] = (), origin: str = "fetched"
    ) -> Admission:
        """Sign what is claimed (honest when nothing is) and knock at the door."""
        return self.admit_signed(sign(claim or self.claim(folder), ALICE), folder, checks=checks, origin=origin)

    def admit_signed(
        self, signed: Verified[Manifest], folder: Path, *, checks: Sequence[Check] = (), origin: str = "fetched"
    ) -> Admission:
        files = {entry.path: folder / entry.path for entry in signed.record.files}
        return self.registry.admit(signed.envelope, files, origin=origin, checks=checks)

    def traces(self) -> list[str]:
        """Every file that the registry keeps besides its index and journal, by path below its folder."""
        data = self.root / "data"
        return sorted(
            str(path.relative_to(data))
            for path in data.rglob("*")
            if path.is_file() and not path.name.startswith(("registry.db", "journal.log"))
        )


#: What the manifest of a damaged folder says where `adapter_info` would refuse to read it.
HONEST_INFO = AdapterInfo(
    format="peft-lora",
    rank=RANK,
    alpha_milli=2000 * RANK,
    rslora=False,
    target_modules=("q_proj", "v_proj"),
    dtype="F32",
    parameters=4 * 2 * RANK * HIDDEN,
    capabilities=("averageable", "servable_as_lora"),
)
