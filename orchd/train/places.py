"""Which parts of a base a training changes: chosen by layer, by name, or all. No torch: the daemon looks here too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from orchd.errors import TrainingRefused, did_you_mean


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
            hint = did_you_mean(module, here) or f"There is {', '.join(sorted(here))}."
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


def check(shapes: Mapping[str, Sequence[int]], modules: Sequence[str], layers: Sequence[int], *, full: bool) -> None:
    """Before a base is loaded, by the shapes of its weights: has it what is asked for? Raises `TrainingRefused`.

    With ``full`` any weight may be named; an adapter goes on the matrices in the layers.
    """
    if modules or layers:
        names = [name.removesuffix(".weight") for name, shape in shapes.items() if full or _takes_adapter(name, shape)]
        chosen(names, modules, layers)


def _takes_adapter(name: str, shape: Sequence[int]) -> bool:
    return len(shape) == 2 and layer_of(name) is not None
