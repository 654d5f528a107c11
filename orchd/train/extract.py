"""An adapter from the difference that a training of whole weights made: of each matrix the best of its rank."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from orchd.errors import TrainingRefused
from orchd.lm.adapter import CONFIG_FILE, DTYPES, WEIGHTS_FILE, AdapterConfig, peft_json
from orchd.lm.tensors import write_tensors

PREFIX: Final = "base_model.model."
WEIGHT: Final = ".weight"
MILLION: Final = 1_000_000


@dataclass(frozen=True)
class Extraction:
    """``residual_ppm`` is the part of the difference that the adapter lacks, of its Frobenius norm: what the rank cuts
    off, what the dtype rounds away, and all of what is no matrix inside the layers."""

    config: AdapterConfig
    parameters: int
    residual_ppm: int


def extract(
    after: Mapping[str, Tensor], before: Mapping[str, Tensor], linear: list[str], rank: int, folder: Path, dtype: str
) -> Extraction:
    """Write the adapter of ``rank`` whose product is nearest to ``after`` - ``before`` in each of the ``linear`` maps
    (names of modules; Eckart and Young, 1936). Both are float32 by parameter name.

    Raises `TrainingRefused` where no linear map was trained.
    """
    weights: dict[str, Tensor] = {}
    whole = lost = 0.0
    for name, now in after.items():
        difference = (now - before[name]).float()
        square = float(difference.double().square().sum())
        whole += square
        module = name.removesuffix(WEIGHT)
        if module not in linear:
            lost += square
            continue
        left, right = (factor.to(DTYPES[dtype]) for factor in _factors(difference, rank))
        lost += float((difference.double() - left.double() @ right.double()).square().sum())
        weights[f"{PREFIX}{module}.lora_A.weight"] = right.contiguous()
        weights[f"{PREFIX}{module}.lora_B.weight"] = left.contiguous()
    if not weights:
        hint = "Train modules such as q_proj or mlp too, or leave out `--extract-rank`."
        raise TrainingRefused("no linear map of the layers was trained", hint=hint, field="extract_rank")
    config = AdapterConfig(r=rank, lora_alpha=float(rank), target_modules=_targets(list(weights), linear))
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(dict(sorted(weights.items())), folder / WEIGHTS_FILE, {"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(0o644)
    (folder / CONFIG_FILE).write_text(json.dumps(peft_json(config), indent=1, sort_keys=True))
    residual = round(MILLION * (lost / whole) ** 0.5) if whole else 0
    return Extraction(config, sum(tensor.numel() for tensor in weights.values()), residual)


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Float32 (out, rank) and (rank, in), each with the roots of the singular values; zeros where there are fewer."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = min(rank, values.numel())
    roots = values[:kept].sqrt()
    first, second = left.new_zeros(matrix.shape[0], rank), right.new_zeros(rank, matrix.shape[1])
    first[:, :kept], second[:kept] = left[:, :kept] * roots, right[:kept] * roots[:, None]
    return first, second


def _targets(names: list[str], linear: list[str]) -> tuple[str, ...]:
    """By the last part of their names, where that says no more than what is there; else whole names."""
    modules = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in names}
    short = {module.rpartition(".")[2] for module in modules}
    if all(module in modules for module in linear if module.rpartition(".")[2] in short):
        return tuple(sorted(short))
    return tuple(sorted(modules))
