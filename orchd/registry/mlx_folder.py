"""Adapters as mlx-lm writes them, to PEFT folders and back: the same numbers, the other way round.

mlx-lm holds `adapters.safetensors` (`MODULE.lora_a` (in, rank), `MODULE.lora_b` (rank, out)) beside an
`adapter_config.json` of its own, with one rank and one scale for all modules. Where PEFT's differ from module to
module, the scale goes into B, and smaller ranks are filled up with zeros: the products stay the same. Source: mlx-lm
0.32, `tuner/utils.py`. Numbers are moved, never rounded, except by a scale of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from orchd.errors import AdapterConfigRefused, TensorsRefused
from orchd.registry import peft_config, weights
from orchd.registry.admission import CONFIG, WEIGHTS
from orchd.registry.weights import RAW, Tensor

MLX_WEIGHTS = "adapters.safetensors"
ALL_LAYERS = -1
_PREFIX = "base_model.model."
_PEFT = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_MLX = re.compile(r"(.+)\.lora_([ab])")
_IN_LAYER = re.compile(r".*\.layers\.[0-9]+\.(.+)")


class Numbers(NamedTuple):
    """A tensor as it lies in a file: its dtype and the bits of its numbers."""

    dtype: str
    raw: npt.NDArray[Any]


def is_mlx(folder: Path) -> bool:
    return (folder / MLX_WEIGHTS).is_file() and not (folder / WEIGHTS).exists()


def to_mlx(source: Path, target: Path) -> None:
    """Write the PEFT folder `source` as mlx-lm's into `target`, a folder that is there.

    Raises `AdapterConfigRefused` for what is no plain product, `TensorsRefused` for damaged files.
    """
    config = peft_config.read_plain(source / CONFIG)
    read = _read(source / WEIGHTS, weights.HEADER_LIMIT)
    factors = _pairs(read, _PEFT)
    scales = {module: config.scale_of(module) for module in factors}
    same = len(set(scales.values())) == 1
    rank = max(pair["A"].raw.shape[0] for pair in factors.values())
    found: dict[str, Numbers] = {}
    for module, pair in factors.items():
        b = pair["B"] if same else _scaled(pair["B"], scales[module])
        found[f"{module}.lora_a"] = _filled(_turned(pair["A"]), 1, rank)
        found[f"{module}.lora_b"] = _filled(_turned(b), 0, rank)
    keys = sorted({match[1] if (match := _IN_LAYER.fullmatch(module)) else module for module in factors})
    settings = {"rank": rank, "scale": next(iter(scales.values())) if same else 1.0, "dropout": 0.0, "keys": keys}
    tree = {"fine_tune_type": "lora", "num_layers": ALL_LAYERS, "lora_parameters": settings}
    write(target / MLX_WEIGHTS, found, {"format": "mlx"})
    (target / CONFIG).write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def to_peft(source: Path, target: Path) -> None:
    """Write mlx-lm's folder `source` as a PEFT folder into `target`, a folder that is there. Raises as `to_mlx`."""
    rank, scale = _settings(source / CONFIG)
    factors = _pairs(_read(source / MLX_WEIGHTS, weights.HEADER_LIMIT), _MLX)
    found: dict[str, Numbers] = {}
    for module, pair in factors.items():
        if pair["A"].raw.shape[1] != rank or pair["B"].raw.shape[0] != rank:
            shapes = f"{pair['A'].raw.shape} and {pair['B'].raw.shape}"
            raise TensorsRefused(f"{module[:80]} has factors of {shapes} where the rank is {rank}")
        for letter in "AB":
            found[f"{_PREFIX}{module}.lora_{letter}.weight"] = _turned(pair[letter])
    alpha = scale * rank
    tree = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "bias": "none",
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "target_modules": sorted({module.rpartition(".")[2] for module in factors}),
    }
    write(target / WEIGHTS, dict(sorted(found.items())), {"format": "pt"})
    (target / CONFIG).write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write(path: Path, tensors: Mapping[str, Numbers], metadata: dict[str, str]) -> None:
    """A safetensors file: the length of its header, the header, the bytes."""
    entries: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for name, numbers in tensors.items():
        end = at + numbers.raw.nbytes
        entries[name] = {"dtype": numbers.dtype, "shape": list(numbers.raw.shape), "data_offsets": [at, end]}
        at = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for numbers in tensors.values():
            file.write(np.ascontiguousarray(numbers.raw).tobytes())


def _settings(path: Path) -> tuple[int, float]:
    """Rank and scale of mlx-lm's own adapter_config.json, which names much else about the training."""
    try:
        data = path.read_bytes()[: peft_config.SIZE_LIMIT + 1]
        tree = json.loads(data)
        parameters = tree["lora_parameters"]
        kind, rank, scale = tree.get("fine_tune_type", "lora"), parameters["rank"], parameters["scale"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterConfigRefused(f"{CONFIG} is none of mlx-lm's: {str(error)[:100]}") from None
    if kind != "lora":
        raise AdapterConfigRefused(f"fine_tune_type = {str(kind)[:40]!r}; lora is taken")
    if type(rank) is not int or not 1 <= rank <= peft_config.MAX_RANK:
        raise AdapterConfigRefused(f"rank = {str(rank)[:40]!r}; a whole number to {peft_config.MAX_RANK} is wanted")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale * rank <= peft_config.MAX_ALPHA:
        raise AdapterConfigRefused(f"scale = {str(scale)[:40]!r}; a number is wanted")
    return rank, float(scale)


def _read(path: Path, limit: int) -> dict[str, Numbers]:
    header = weights.read_header(path, limit)
    with weights.mapped(path) as view:
        return {name: Numbers(tensor.dtype, _bits(view, tensor)) for name, tensor in header.items()}


def _bits(view: memoryview, tensor: Tensor) -> npt.NDArray[Any]:
    found = np.frombuffer(view[tensor.start : tensor.end], RAW[tensor.dtype])
    return found.reshape(tensor.shape).copy()


def _pairs(tensors: Mapping[str, Numbers], name: re.Pattern[str]) -> dict[str, dict[str, Numbers]]:
    found: dict[str, dict[str, Numbers]] = {}
    for text, numbers in tensors.items():
        match = name.fullmatch(text)
        if match is None or numbers.raw.ndim != 2:
            raise TensorsRefused(f"the tensor {text[:80]!r} is no factor of a linear layer")
        found.setdefault(match[1], {})[match[2].upper()] = numbers
    for module, pair in found.items():
        if len(pair) != 2:
            raise TensorsRefused(f"{module[:80]} has only one of its two factors")
    return found


def _turned(numbers: Numbers) -> Numbers:
    return Numbers(numbers.dtype, numbers.raw.T)


def _scaled(numbers: Numbers, scale: float) -> Numbers:
    """Times the scale, in float32."""
    values = weights.widen(numbers.raw, numbers.dtype, np.empty(numbers.raw.shape, np.uint32))
    return Numbers("F32", (values.astype(np.float64) * scale).astype("<f4"))


def _filled(numbers: Numbers, axis: int, size: int) -> Numbers:
    """With zeros at its end, to that size; zero is zero bits in each dtype."""
    more = [(0, 0), (0, 0)]
    more[axis] = (0, size - numbers.raw.shape[axis])
    return numbers if more[axis] == (0, 0) else Numbers(numbers.dtype, np.pad(numbers.raw, more))
