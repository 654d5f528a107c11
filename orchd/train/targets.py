"""What of a loaded base an adapter is put on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from orchd.train.places import chosen, layer_of


def adapter_targets(model: Any, modules: Sequence[str], layers: Sequence[int]) -> list[str] | str:
    """What an adapter is put on, as PEFT names it: the chosen ones of the linear maps in ``model``'s layers."""
    if not modules and not layers:
        return "all-linear"
    found = chosen(linear_in_layers(model), modules, layers)
    return found if layers else sorted({name.rpartition(".")[2] for name in found})


def linear_in_layers(model: Any) -> list[str]:
    """The names of the linear maps that an adapter can be put on."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and layer_of(name) is not None
    ]
