"""Which parts of a base a training changes: chosen by layer, by name, or all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from orchd.errors import TrainingRefused


def chosen(names: Iterable[str], modules: Sequence[str], layers: Sequence[int]) -> list[str]:
    """Of dotted names those with one of ``modules`` among their parts, in one of ``layers``; nothing given is all.

    Layers count from 0, from the end when negative. Raises `TrainingRefused` for what the base does not have.
    """
    names = list(names)
    count = 1 + max((layer for name in names if (layer := layer_of(name)) is not None), default=-1)
    for layer in layers:
        if not -count <= layer < count:
            hint = f"Give numbers from 0 to {count - 1}, or from -1 for the last to {-count}."
            raise TrainingRefused(f"the base has {count} layers, none is {layer}", hint=hint, field="layers")
    here = {part for name in names for part in name.split(".") if not part.isdigit()}
    for module in modules:
        if module not in here:
            hint = f"There is {', '.join(sorted(here))}."
            raise TrainingRefused(f"the base has no {module!r} to train", hint=hint, field="modules")
    places = {layer % count for layer in layers}
    found = [
        name
        for name in names
        if (not modules or set(modules) & set(name.split("."))) and (not layers or layer_of(name) in places)
    ]
    if not found:
        hint = "A layer's number leaves out what stands outside the layers: leave out `--layers`, or other names."
        raise TrainingRefused(f"no {', '.join(modules)} in the chosen layers", hint=hint, field="modules")
    return found


def layer_of(name: str) -> int | None:
    """The layer that a dotted name says: its first number. None outside the layers."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


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
