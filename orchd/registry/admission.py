"""The one door: what every adapter passes before it is in the registry, whoever made it.

Each check is a named function over one `Candidate` and raises a numbered refusal. They run in the order of `CHECKS`,
cheap and decisive ones first. Further checks come as arguments (averaging brings one). A refused adapter leaves
nothing behind; a quarantined one stays, with the reason, and is not used.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchd.errors import (
    AdapterConfigRefused,
    ClaimRefused,
    DigestMismatch,
    FileListRefused,
    FromTheFuture,
    TensorsRefused,
)
from orchd.records import FileEntry, Manifest, Verified
from orchd.registry import peft_config, weights
from orchd.registry.bases import Base

CLOCK_WINDOW_MS = 10 * 60 * 1000  # a manifest may be this far in the future
CONFIG, WEIGHTS, README = "adapter_config.json", "adapter_model.safetensors", "README.md"
SIZE_LIMITS = {CONFIG: peft_config.SIZE_LIMIT, WEIGHTS: 4 << 30, README: 1 << 20}  # bytes
TENSOR_NAME = re.compile(r"\Abase_model\.model\.(?P<module>[A-Za-z0-9_.]{1,200})\.lora_(?P<half>[AB])\.weight\Z")
FORMAT = "peft-lora"


@dataclass(frozen=True)
class Candidate:
    """An adapter at the door: verified manifest, files by name, the base when it is known here, the time."""

    manifest: Verified[Manifest]
    files: Mapping[str, Path]
    base: Base | None
    now_ms: int


Check = Callable[[Candidate], str | None]
"""Raises a refusal, or returns the reason for quarantine, or None."""


def check_clock(candidate: Candidate) -> None:
    ahead = candidate.manifest.record.created_ms - candidate.now_ms
    if ahead > CLOCK_WINDOW_MS:
        raise FromTheFuture(f"the manifest is dated {ahead / 60_000:.0f} minutes in the future")


def check_file_list(candidate: Candidate) -> None:
    """Before anything is read: which files, how large, and a chunk list that fits."""
    check_promised_files(candidate.manifest.record)
    promised = {entry.path for entry in candidate.manifest.record.files}
    if promised != candidate.files.keys():
        raise FileListRefused(f"the manifest lists {sorted(promised)}, {sorted(candidate.files)} came")


def check_promised_files(manifest: Manifest) -> None:
    """The part of `check_file_list` that needs no files: also run before the first byte is fetched."""
    names = [entry.path for entry in manifest.files]
    if len(set(names)) != len(names) or not {CONFIG, WEIGHTS} <= set(names) <= SIZE_LIMITS.keys():
        raise FileListRefused(f"the manifest lists the files {str(names)[:200]}")
    for entry in manifest.files:
        if entry.size > SIZE_LIMITS[entry.path]:
            raise FileListRefused(f"{entry.path} is {entry.size} bytes; at most {SIZE_LIMITS[entry.path]} are taken")
        if len(entry.chunks) != math.ceil(entry.size / entry.chunk_size):
            raise FileListRefused(f"{entry.path}: {len(entry.chunks)} chunks do not make {entry.size} bytes")


def check_digests(candidate: Candidate) -> None:
    for entry in candidate.manifest.record.files:
        _check_file(entry, candidate.files[entry.path])


def _check_file(entry: FileEntry, path: Path) -> None:
    whole, left = hashlib.sha256(), entry.size
    with path.open("rb") as file:
        for number, wanted in enumerate(entry.chunks):
            chunk = file.read(min(entry.chunk_size, left))
            left -= len(chunk)
            whole.update(chunk)
            if hashlib.sha256(chunk).digest() != wanted:
                raise DigestMismatch(f"{entry.path}: chunk {number} is not the one that was signed")
        if left or file.read(1):
            raise DigestMismatch(f"{entry.path} is not {entry.size} bytes long")
    if whole.digest() != entry.sha256:
        raise DigestMismatch(f"{entry.path}: the digest is not the one that was signed")


def check_weights(candidate: Candidate) -> None:
    """Header, names, pairs, ranks, shapes, finite numbers, and what the manifest claims about them."""
    config = peft_config.read(candidate.files[CONFIG])
    path = candidate.files[WEIGHTS]
    tensors = weights.read_header(path)
    modules = _pairs(tensors)
    _check_settings_apply(config, modules)
    for module, (a, b) in modules.items():
        _check_pair(module, a, b, config.rank_of(module), candidate.base)
    with weights.mapped(path) as view:
        for tensor in tensors.values():
            if weights.find_not_finite(view, tensor):
                raise TensorsRefused(f"tensor {tensor.name} holds NaN or infinity")
    _check_claims(candidate.manifest.record, config, tensors)


def _pairs(tensors: Mapping[str, weights.Tensor]) -> dict[str, tuple[weights.Tensor, weights.Tensor]]:
    halves: dict[str, dict[str, weights.Tensor]] = {}
    for tensor in tensors.values():
        match = TENSOR_NAME.match(tensor.name)
        if match is None:
            raise TensorsRefused(f"tensor {tensor.name[:120]!r} is no part of a plain LoRA")
        halves.setdefault(match["module"], {})[match["half"]] = tensor
    for module, pair in halves.items():
        if pair.keys() != {"A", "B"}:
            raise TensorsRefused(f"module {module} has only its lora_{next(iter(pair))}")
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}


def _check_settings_apply(config: peft_config.PeftConfig, modules: Mapping[str, object]) -> None:
    """Each module is a target, and each pattern is for a module.

    PEFT reads a pattern's key as a regular expression. One that names no module by its letters might still fit some
    there, and would give them another scale than it gives here.
    """
    targets, named = frozenset(config.target_modules), set[str]()
    for module in modules:
        names = peft_config.suffixes(module)
        if targets.isdisjoint(names):
            raise TensorsRefused(f"module {module} is not among the target modules")
        named.update(names)
    if strange := sorted((config.rank_pattern.keys() | config.alpha_pattern.keys()) - named):
        raise AdapterConfigRefused(
            f"rank_pattern or alpha_pattern names {strange[0]!r}, which is no module of the file"
        )


def _check_pair(module: str, a: weights.Tensor, b: weights.Tensor, rank: int, base: Base | None) -> None:
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise TensorsRefused(f"module {module}: A {list(a.shape)} and B {list(b.shape)} do not have rank {rank}")
    if base is None:
        return
    shape = base.shapes.get(f"{module}.weight")
    if shape != (b.shape[0], a.shape[1]):
        wanted = f"is {list(shape)}" if shape else "has no such module"
        raise TensorsRefused(f"module {module}: the adapter is for [{b.shape[0]}, {a.shape[1]}], the base {wanted}")


def _check_claims(
    manifest: Manifest,
    config: peft_config.PeftConfig,
    tensors: Mapping[str, weights.Tensor],
) -> None:
    claim = manifest.adapter
    shown = {
        "format": (claim.format, FORMAT),
        "rank": (claim.rank, max([config.rank, *config.rank_pattern.values()])),
        "alpha": (claim.alpha_milli, round(config.alpha * 1000)),
        "rslora": (claim.rslora, config.rslora),
        "target_modules": (claim.target_modules, config.target_modules),
        "parameters": (claim.parameters, sum(tensor.parameters for tensor in tensors.values())),
        "dtype": ({claim.dtype}, {tensor.dtype for tensor in tensors.values()}),
    }
    for name, (claimed, found) in shown.items():
        if claimed != found:
            raise ClaimRefused(f"the manifest says {name} {claimed}, its files show {found}")


def check_base_known(candidate: Candidate) -> str | None:
    if candidate.base is None:
        return "the base is not here, so its shapes could not be compared"
    return None


CHECKS: tuple[Check, ...] = (check_clock, check_file_list, check_digests, check_weights, check_base_known)
