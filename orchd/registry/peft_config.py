"""`adapter_config.json` from a stranger: only plain LoRA settings, read strictly into a typed value."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchd.errors import AdapterConfigRefused

SIZE_LIMIT = 64 << 10  # bytes
MAX_RANK = 1024
#: Settings that change what the adapter computes and are not taken yet; each must have its plain value.
PLAIN = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
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
}
#: Settings that only matter while training, or to people.
FREE = {
    "base_model_name_or_path",
    "inference_mode",
    "init_lora_weights",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "rank_pattern", "alpha_pattern"}
N = TypeVar("N", int, float)
MODULE_NAME = re.compile(r"\A[A-Za-z0-9_.]{1,120}\Z")


@dataclass(frozen=True)
class PeftConfig:
    """The settings that matter: rank and alpha by module, from the general values and the patterns."""

    rank: int
    alpha: float
    rslora: bool
    target_modules: tuple[str, ...]
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]

    def rank_of(self, module: str) -> int:
        return _by_pattern(self.rank_pattern, module, self.rank)

    def alpha_of(self, module: str) -> float:
        return _by_pattern(self.alpha_pattern, module, self.alpha)


def _by_pattern(pattern: dict[str, N], module: str, default: N) -> N:
    """PEFT takes the first key that is the module's name or the end of it after a dot."""
    return next((value for key, value in pattern.items() if module == key or module.endswith("." + key)), default)


def read(path: Path) -> PeftConfig:
    """The settings in `path`. Raises `AdapterConfigRefused` naming the key and value."""
    size = path.stat().st_size
    if size > SIZE_LIMIT:
        raise AdapterConfigRefused(f"adapter_config.json is {size} bytes; at most {SIZE_LIMIT} are taken")
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AdapterConfigRefused(f"adapter_config.json is no JSON: {error}") from None
    if not isinstance(tree, dict):
        raise AdapterConfigRefused("adapter_config.json is no JSON object")
    _check_keys(tree)
    rank, alpha = tree.get("r"), tree.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise AdapterConfigRefused(f"r = {rank!r}; a whole number from 1 to {MAX_RANK} is wanted")
    return PeftConfig(
        rank=rank,
        alpha=_alpha("lora_alpha", alpha),
        rslora=tree.get("use_rslora") is True,
        target_modules=_modules(tree.get("target_modules")),
        rank_pattern={_module(k): _rank(k, v) for k, v in _pattern(tree, "rank_pattern").items()},
        alpha_pattern={_module(k): _alpha(k, v) for k, v in _pattern(tree, "alpha_pattern").items()},
    )


def _check_keys(tree: dict[str, Any]) -> None:
    if tree.get("peft_type") != "LORA":
        raise AdapterConfigRefused(f"peft_type = {tree.get('peft_type')!r}; LORA is taken")
    for key, value in tree.items():
        if key in PLAIN:
            if not any(value == plain and type(value) is type(plain) for plain in PLAIN[key]):
                raise AdapterConfigRefused(f"{key} = {str(value)[:80]!r} is not plain LoRA")
        elif key not in FREE and key not in READ:
            raise AdapterConfigRefused(f"the setting {key[:80]!r} is not known")
    base = tree.get("base_model_name_or_path")
    if isinstance(base, str) and (base.startswith(("/", "~", ".")) or "\\" in base):
        raise AdapterConfigRefused("base_model_name_or_path holds a path of somebody's machine")


def _pattern(tree: dict[str, Any], key: str) -> dict[str, Any]:
    value = tree.get(key) or {}
    if not isinstance(value, dict) or len(value) > 10_000:
        raise AdapterConfigRefused(f"{key} is no map of modules")
    return value


def _modules(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or len(value) > 10_000:
        raise AdapterConfigRefused(f"target_modules = {str(value)[:80]!r}; a list of module names is wanted")
    return tuple(sorted({_module(name) for name in value}))


def _module(name: Any) -> str:
    if not isinstance(name, str) or not MODULE_NAME.match(name):
        raise AdapterConfigRefused(f"{str(name)[:80]!r} is no module name")
    return name


def _rank(key: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise AdapterConfigRefused(f"rank_pattern[{key[:80]!r}] = {value!r}")
    return value


def _alpha(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise AdapterConfigRefused(f"{key[:80]} = {value!r}; a number from 0 is wanted")
    return float(value)
