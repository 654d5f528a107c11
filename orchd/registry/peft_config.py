"""`adapter_config.json` from a stranger: LoRA settings that are known, read strictly into a typed value.

DoRA, trained biases and saved modules are read too; `read_plain` is for those who can only use a product B·A.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any

from orchd.errors import AdapterConfigRefused

SIZE_LIMIT = 64 << 10  # bytes
MAX_RANK = 1024
MAX_ALPHA = 1e9  # a manifest holds it times 1000 in 40 bits
#: Settings that change what the adapter computes and are not taken; each must have its plain value.
PLAIN: dict[str, tuple[Any, ...]] = {
    # Others ("pissa", "olora", False, …) change the base when PEFT loads them, or leave noise in place of a missing B.
    "init_lora_weights": (True, "gaussian"),
    "fan_in_fan_out": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (None,),
    "trainable_token_indices": (None,),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "megatron_config": (None,),
    "auto_mapping": (None,),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "ensure_weight_tying": (False, None),
    "exclude_modules": (None, []),
    "layers_to_transform": (None,),
    "layers_pattern": (None,),
    "loftq_config": ({}, None),
    "eva_config": (None,),
    "kasa_config": (None,),
    "corda_config": (None,),
    "lora_ga_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "megatron_core": ("megatron.core", None),  # the name of a module to import
    "task_type": ("CAUSAL_LM", None),
}
#: Settings that only matter while training, or to people, with the types that they may have.
FREE: dict[str, tuple[type, ...]] = {
    "inference_mode": (bool,),
    "lora_dropout": (int, float),
    "peft_version": (str, NoneType),
    "qalora_group_size": (int,),
    "revision": (str, NoneType),
    "runtime_config": (NoneType,),
}
READ = {
    "base_model_name_or_path",
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "use_dora",
    "bias",
    "lora_bias",
    "modules_to_save",
}
#: Whose biases were trained: nobody's, all of the model's, or those of the target modules.
BIASES = ("none", "all", "lora_only")
AVERAGEABLE, SERVABLE = "averageable", "servable_as_lora"
MODULE_NAME = re.compile(r"\A[A-Za-z0-9_.]{1,120}\Z")
#: `name` or `organisation/name` on a hub; never a path of somebody's machine.
HUB_NAME = re.compile(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95})?\Z")


@dataclass(frozen=True)
class PeftConfig:
    """The settings that matter: rank and alpha by module, from the general values and the patterns.

    Beyond a product B·A: `dora` (a trained length of each row of the weight), `bias` (one of `BIASES`), `factor_bias`
    (PEFT's `lora_bias`, a bias on B) and `saved` (names of modules whose whole weights are in the file).
    """

    rank: int
    alpha: float
    rslora: bool
    target_modules: tuple[str, ...]
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    dora: bool = False
    bias: str = "none"
    factor_bias: bool = False
    saved: tuple[str, ...] = ()

    @property
    def beyond_product(self) -> str:
        """The first setting that a product B·A can't express, as `key = value`; empty when there is none."""
        settings = {
            "use_dora": self.dora,
            "bias": "" if self.bias == "none" else self.bias,
            "lora_bias": self.factor_bias,
            "modules_to_save": list(self.saved),
        }
        return next((f"{key} = {value}" for key, value in settings.items() if value), "")

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What can be done with the adapter here and in serving programs that take a LoRA; in a manifest's order."""
        return () if self.beyond_product else (AVERAGEABLE, SERVABLE)

    def scale_of(self, module: str) -> float:
        """The factor on B·A: α/r, or α/√r with rsLoRA."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.rslora else rank)

    def rank_of(self, module: str) -> int:
        key = _first_fitting(self._rank_places, module)
        return self.rank if key is None else self.rank_pattern[key]

    def alpha_of(self, module: str) -> float:
        key = _first_fitting(self._alpha_places, module)
        return self.alpha if key is None else self.alpha_pattern[key]

    @cached_property
    def _rank_places(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self.rank_pattern)}

    @cached_property
    def _alpha_places(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self.alpha_pattern)}


def suffixes(module: str) -> list[str]:
    """The module's name and what follows each of its dots: by these PEFT's settings name it."""
    parts = module.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _first_fitting(places: Mapping[str, int], module: str) -> str | None:
    """PEFT takes the first key that is the module's name or the end of it after a dot.

    No walk over all keys for each module: a stranger's thousands of both would keep the node busy for minutes.
    """
    fitting = (name for name in suffixes(module) if name in places) if places else ()
    return min(fitting, key=places.__getitem__, default=None)


def read_plain(path: Path) -> PeftConfig:
    """As `read`, and refuses what a product B·A can't express: dropped in silence, it would be another adapter."""
    config = read(path)
    if config.beyond_product:
        raise AdapterConfigRefused(f"{config.beyond_product} is not plain LoRA")
    return config


def read(path: Path) -> PeftConfig:
    """The settings in `path`. Raises `AdapterConfigRefused` naming the key and value."""
    size = path.stat().st_size
    if size > SIZE_LIMIT:
        raise AdapterConfigRefused(f"adapter_config.json is {size} bytes; at most {SIZE_LIMIT} are taken")
    try:
        tree = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise AdapterConfigRefused(f"adapter_config.json is no JSON: {str(error)[:200]}") from None
    if not isinstance(tree, dict):
        raise AdapterConfigRefused("adapter_config.json is no JSON object")
    _check_keys(tree)
    rank, alpha = tree.get("r"), tree.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise AdapterConfigRefused(f"r = {repr(rank)[:80]}; a whole number from 1 to {MAX_RANK} is wanted")
    return PeftConfig(
        rank=rank,
        alpha=_alpha("lora_alpha", alpha),
        rslora=_switch(tree, "use_rslora"),
        target_modules=_modules(tree.get("target_modules")),
        rank_pattern={_module(k): _rank(k, v) for k, v in _pattern(tree, "rank_pattern").items()},
        alpha_pattern={_module(k): _alpha(k, v) for k, v in _pattern(tree, "alpha_pattern").items()},
        dora=_switch(tree, "use_dora"),
        bias=_bias(tree.get("bias")),
        factor_bias=_switch(tree, "lora_bias"),
        saved=_saved(tree.get("modules_to_save")),
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two equal keys they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _check_keys(tree: dict[str, Any]) -> None:
    if tree.get("peft_type") != "LORA":
        raise AdapterConfigRefused(f"peft_type = {repr(tree.get('peft_type'))[:80]}; LORA is taken")
    for key, value in tree.items():
        if key in PLAIN:
            if not any(value == plain and type(value) is type(plain) for plain in PLAIN[key]):
                raise AdapterConfigRefused(f"{key} = {str(value)[:80]!r} is not plain LoRA")
        elif key in FREE:
            if type(value) not in FREE[key]:
                raise AdapterConfigRefused(f"{key} = {str(value)[:80]!r} is of the wrong type")
        elif key not in READ:
            raise AdapterConfigRefused(f"the setting {key[:80]!r} is not known")
    base = tree.get("base_model_name_or_path")
    if base is not None and base != "" and not (isinstance(base, str) and HUB_NAME.match(base)):
        raise AdapterConfigRefused("base_model_name_or_path is no name but maybe a path of somebody's machine")


def _switch(tree: dict[str, Any], key: str) -> bool:
    value = tree.get(key)
    if value is not None and not isinstance(value, bool):  # PEFT would take 1 or "no" for true
        raise AdapterConfigRefused(f"{key} = {str(value)[:80]!r}; true or false is wanted")
    return value is True


def _pattern(tree: dict[str, Any], key: str) -> dict[str, Any]:
    value = tree.get(key)
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise AdapterConfigRefused(f"{key} is no map of modules")
    return value


def _modules(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise AdapterConfigRefused(f"target_modules = {str(value)[:80]!r}; a list of module names is wanted")
    return tuple(sorted({_module(name) for name in value}))


def _saved(value: Any) -> tuple[str, ...]:
    if value is None or value == []:
        return ()
    if not isinstance(value, list):
        raise AdapterConfigRefused(f"modules_to_save = {str(value)[:80]!r}; a list of module names is wanted")
    return tuple(sorted({_module(name) for name in value}))


def _bias(value: Any) -> str:
    if value is None:
        return "none"
    if value not in BIASES or not isinstance(value, str):
        raise AdapterConfigRefused(f"bias = {str(value)[:80]!r}; one of {', '.join(BIASES)} is wanted")
    return value


def _module(name: Any) -> str:
    if not isinstance(name, str) or not MODULE_NAME.match(name):
        raise AdapterConfigRefused(f"{str(name)[:80]!r} is no module name")
    return name


def _rank(key: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise AdapterConfigRefused(f"rank_pattern[{key[:80]!r}] = {repr(value)[:80]}")
    return value


def _alpha(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_ALPHA:
        raise AdapterConfigRefused(f"{key[:80]} = {repr(value)[:80]}; a number from 0 to {MAX_ALPHA:.0f} is wanted")
    return float(value)
