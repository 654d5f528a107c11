"""Which values of a training's settings can be used at all: one table for the daemon, the worker and `train.validate`.

No torch: the daemon reads it too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from orchd.train.leak.canaries import MAX_CANARIES
from orchd.train.specs import Finding

BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "rank": (1, 256),
    "extract_rank": (0, 256),
    "alpha": (1e-3, 100_000),
    "learning_rate": (1e-7, 1),
    "batch_size": (1, 4096),
    "gradient_accumulation_steps": (1, 4096),
    "weight_decay": (0, 0.99),
    "lora_dropout": (0, 0.99),
    "replay": (0, 0.9),
    "dpo_beta": (1e-4, 10),
    "dpo_sft": (0, 100),
    "steps": (0, 1_000_000),
    "max_steps": (0, 1_000_000),
    "epochs": (0, 10_000),
    "warmup_steps": (0, 1_000_000),
    "max_length": (0, 1_000_000),
    "validation_split": (0, 0.5),
    "seed": (0, 2**53),
    "canaries": (0, MAX_CANARIES),
    "offload": (0, 10_000),
    "schedule_total": (0, 10_000_000),
    "schedule_offset": (0, 10_000_000),
    "early_stopping.patience": (1, 1000),
    "early_stopping.min_delta": (0, 100),
    "checkpointing.interval": (0, 1_000_000),
    "checkpointing.keep_best": (1, 100),
}
"""By the setting's path: the least and the greatest value."""

LEFT_TO_THE_PLAN: Final = ("rank", "learning_rate", "batch_size")
"""In a `TrainSpec`, 0 in these leaves them to the plan."""


def flat(settings: msgspec.Struct) -> dict[str, Any]:
    """Every setting of a struct that has a value, by its path: ``early_stopping.patience``."""
    found: dict[str, Any] = {}
    for name, value in msgspec.structs.asdict(settings).items():
        if isinstance(value, msgspec.Struct):
            found |= {f"{name}.{inner}": one for inner, one in flat(value).items()}
        elif value is not None:
            found[name] = value
    return found


def errors(given: Mapping[str, Any]) -> list[Finding]:
    """What makes a training with these settings (by their paths) impossible, in the order of the settings."""
    found = [_outside(path, given[path], *bounds) for path, bounds in BOUNDS.items() if path in given]
    return [*(one for one in found if one is not None), *_schedule(given)]


def _outside(path: str, value: float, low: float, high: float) -> Finding | None:
    if math.isfinite(value) and low <= value <= high:
        return None
    hint = f"Give a number from {_figure(low)} to {_figure(high)}."
    return Finding(field=path, message=f"{path} {value} is not from {_figure(low)} to {_figure(high)}", hint=hint)


def _figure(value: float) -> str:
    """A bound as people write it: 1,000,000, and 1e-07 where it is small."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _schedule(given: Mapping[str, Any]) -> list[Finding]:
    """One learning-rate schedule over several runs has to have room for this one."""
    total, offset = given.get("schedule_total", 0), given.get("schedule_offset", 0)
    steps = given.get("steps", 0)
    if offset and not total:
        hint = "Say how long all runs are together with `--schedule-total`, or leave the offset out."
        return [_finding("schedule_offset", f"an offset of {offset} steps is into no schedule", hint)]
    if total and offset >= total:
        hint = f"Give an offset below {total}, or a longer schedule with `--schedule-total`."
        return [_finding("schedule_offset", f"a schedule of {total} steps has none left after {offset}", hint)]
    if total and offset + steps > total:
        hint = f"Give at most {total - offset} steps; without `--steps` it takes what is left."
        return [_finding("steps", f"{steps} steps after the first {offset} do not fit a schedule of {total}", hint)]
    return []


def _finding(field: str, message: str, hint: str) -> Finding:
    return Finding(field=field, message=message, hint=hint)
