"""PEFT's `add_weighted_adapter(combination_type="svd")` on one layer of the same files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from benchmarks.average.shapes import ALPHA, MODULES, RANK


def layer(folders: Sequence[Path]) -> PeftModel:
    """The first layer's modules in a model of their own, with all adapters on it, in float32."""
    base = torch.nn.Module()
    for name, (rows, columns) in MODULES.items():
        module = torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16)
        base.add_module(name.partition(".")[2], module)
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[name.partition(".")[2] for name in MODULES])
    model = get_peft_model(base, settings, adapter_name="0")
    for place, folder in enumerate(folders):
        if place:
            model.add_adapter(str(place), settings)
        tensors = load_file(folder / "adapter_model.safetensors")
        for name in MODULES:
            target = model.base_model.model.get_submodule(name.partition(".")[2])
            for half, factors in (("A", target.lora_A), ("B", target.lora_B)):
                key = f"base_model.model.model.layers.0.{name}.lora_{half}.weight"
                factors[str(place)].weight.data = tensors[key].float()
    return model


def merge(model: PeftModel, count: int) -> None:
    """The mean at `RANK`, as the adapter "mean"."""
    names = [str(place) for place in range(count)]
    weights = [1 / count] * count
    model.base_model.add_weighted_adapter(names, weights, "mean", combination_type="svd", svd_rank=RANK)


def merged(model: PeftModel, name: str) -> torch.Tensor:
    """ΔW of one module of the layer, (rows, columns) float64."""
    target = model.base_model.model.get_submodule(name.partition(".")[2])
    b, a = (factors["mean"].weight.data.double() for factors in (target.lora_B, target.lora_A))
    return target.scaling["mean"] * (b @ a)
