"""Which tensor of a weights file is what, and whether that is what the settings say.

Names are those that PEFT 0.21 saves (`get_peft_model_state_dict` in peft/utils/save_and_load.py): for a module `m` of
the base `base_model.model.m.` and then `lora_A.weight`, `lora_B.weight`, with DoRA `lora_magnitude_vector`, with
`lora_bias` `lora_B.bias`; trained biases are `base_layer.bias` of a target and `bias` of another module; a saved module
keeps the names of its own tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from orchd.errors import AdapterConfigRefused, TensorsRefused
from orchd.registry.peft_config import PeftConfig, suffixes
from orchd.registry.weights import Tensor

PREFIX = "base_model.model."
_PLACE = re.compile(r"\A[A-Za-z0-9_.]{1,200}\Z")
_FACTOR = re.compile(r"\Abase_model\.model\.(?P<module>[A-Za-z0-9_.]{1,200})\.lora_(?P<half>[AB])\.weight\Z")
MOST_DOTS = 32
"""In a tensor's name; honest ones have a dozen. Looking for a saved module above one takes as many squared steps."""
_MAGNITUDE, _FACTOR_BIAS = ".lora_magnitude_vector", ".lora_B.bias"
_BIASES = (".base_layer.bias", ".bias")
_SHARED = ("lm_head.weight", "model.embed_tokens.weight")
"""Where the base has no head of its own, its head is its embedding, and only that is in its files."""

Pair = tuple[Tensor, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Parts:
    """A and B, DoRA's magnitudes and the factors' biases by module; trained biases and saved tensors by their name
    in the base.
    """

    pairs: dict[str, Pair]
    magnitudes: dict[str, Tensor]
    factor_biases: dict[str, Tensor]
    biases: dict[str, Tensor]
    saved: dict[str, Tensor]


def pairs(tensors: Iterable[Tensor]) -> dict[str, dict[str, Tensor]]:
    """The factors by module and half, whole pairs or not."""
    found: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        if match := _FACTOR.match(tensor.name):
            found.setdefault(match["module"], {})[match["half"]] = tensor
    return found


def sort(tensors: Mapping[str, Tensor], config: PeftConfig) -> Parts:
    """Each tensor in its place. Raises `TensorsRefused` for one that the settings have no place for."""
    halves = pairs(tensors.values())
    for module, pair in halves.items():
        if pair.keys() != {"A", "B"}:
            raise TensorsRefused(f"module {module} has only its lora_{next(iter(pair))}")
    parts = Parts({module: (pair["A"], pair["B"]) for module, pair in halves.items()}, {}, {}, {}, {})
    saved = frozenset(config.saved)
    for tensor in tensors.values():
        if not _FACTOR.match(tensor.name):
            _place(tensor, parts, config, saved)
    return parts


def _place(tensor: Tensor, parts: Parts, config: PeftConfig, saved: AbstractSet[str]) -> None:
    name = tensor.name.removeprefix(PREFIX)
    if name != tensor.name and _PLACE.match(name) and name.count(".") <= MOST_DOTS:
        if config.dora and name.endswith(_MAGNITUDE):
            parts.magnitudes[name.removesuffix(_MAGNITUDE)] = tensor
            return
        if config.factor_bias and name.endswith(_FACTOR_BIAS):
            parts.factor_biases[name.removesuffix(_FACTOR_BIAS)] = tensor
            return
        if saved and _saved_above(name, saved):
            parts.saved[name] = tensor
            return
        bias = _bias_of(name, parts, config)
        if bias and bias not in parts.biases:
            parts.biases[bias] = tensor
            return
    raise TensorsRefused(f"tensor {tensor.name[:120]!r} is no part of a LoRA with these settings")


def _bias_of(name: str, parts: Parts, config: PeftConfig) -> str:
    """The trained bias's name in the base; empty when `name` is none that was trained."""
    end = next((end for end in _BIASES if name.endswith(end)), None)
    if end is None or config.bias == "none" or ".lora_" in name:
        return ""
    module = name.removesuffix(end)
    if config.bias == "lora_only" and (module not in parts.pairs or end != _BIASES[0]):
        return ""
    return module + ".bias"


def _saved_above(name: str, saved: AbstractSet[str]) -> set[str]:
    """Which of the saved modules' names is that of a module above the tensor. PEFT names one by the end of its name."""
    names = name.split(".")
    above = (".".join(names[:count]) for count in range(1, len(names)))
    return {end for module in above for end in suffixes(module) if end in saved}


def check_settings(parts: Parts, config: PeftConfig) -> None:
    """Each module is a target, each target has its pair, each pattern is for a module, and nothing is left out.

    PEFT reads a pattern's key as a regular expression. One that names no module by its letters might still fit some
    there, and would give them another scale than it gives here.
    """
    targets, named = frozenset(config.target_modules), set[str]()
    for module in parts.pairs:
        names = suffixes(module)
        if targets.isdisjoint(names):
            raise TensorsRefused(f"module {module} is not among the target modules")
        named.update(names)
    if strange := sorted((config.rank_pattern.keys() | config.alpha_pattern.keys()) - named):
        raise AdapterConfigRefused(
            f"rank_pattern or alpha_pattern names {strange[0]!r}, which is no module of the file"
        )
    if missing := sorted(targets - named):
        raise TensorsRefused(f"the target module {missing[0]} has no factors in the file")
    for wanted, found, what in (
        (config.dora, parts.magnitudes, "magnitude"),
        (config.factor_bias, parts.factor_biases, "bias on B"),
    ):
        if wanted and (odd := sorted(found.keys() ^ parts.pairs.keys())):
            raise TensorsRefused(f"module {odd[0]} has a {what} without factors, or factors without a {what}")
    saved = frozenset(config.saved)
    if lost := sorted(saved.difference(*(_saved_above(tensor, saved) for tensor in parts.saved))):
        raise TensorsRefused(f"the saved module {lost[0]} is not in the file")


def check_shapes(parts: Parts, config: PeftConfig, base: Shapes | None) -> None:
    """Ranks are the settings' own, and with `base` (a weight's name → its shape) every shape is the base's.

    Each module of the base that is a target must have its pair too.
    """
    for module, (a, b) in parts.pairs.items():
        rank = config.rank_of(module)
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise TensorsRefused(f"module {module}: A {list(a.shape)} and B {list(b.shape)} do not have rank {rank}")
        if base is not None and base.get(f"{module}.weight") != (b.shape[0], a.shape[1]):
            raise _other(f"module {module}", (b.shape[0], a.shape[1]), base.get(f"{module}.weight"))
        for extra in (parts.magnitudes.get(module), parts.factor_biases.get(module)):
            if extra is not None and extra.shape != (b.shape[0],):
                raise TensorsRefused(f"{extra.name[:120]} is {list(extra.shape)}, its module has {b.shape[0]} rows")
    if base is None:
        return
    for name, tensor in (*parts.biases.items(), *parts.saved.items()):
        shape = base.get(name) or (base.get(_SHARED[1]) if name == _SHARED[0] else None)
        if shape != tensor.shape:
            raise _other(f"tensor {name}", tensor.shape, shape)
    _check_all_targets(parts, config, base)


def _check_all_targets(parts: Parts, config: PeftConfig, base: Shapes) -> None:
    targets = frozenset(config.target_modules)
    for name, shape in base.items():
        module = name.removesuffix(".weight")
        if module == name or len(shape) != 2 or module in parts.pairs:
            continue
        if not targets.isdisjoint(suffixes(module)):
            raise TensorsRefused(f"the base's module {module} is a target and has no factors in the file")


def _other(what: str, shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> TensorsRefused:
    said = f"is {list(wanted)}" if wanted else "has no such module"
    return TensorsRefused(f"{what}: the adapter is for {list(shape)}, the base {said}")
