"""The plan that answers a diagnosis, as one command. No torch: the daemon writes it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from orchd.train.settings import BOUNDS
from orchd.train.specs import Change, Checkpointing, EarlyStopping, Settled, TrainSpec

SETTINGS: Final = (
    *("rank", "alpha", "learning_rate", "batch_size", "steps", "seed"),
    *("weight_decay", "lora_dropout", "gradient_accumulation_steps", "replay", "rslora", "modules", "layers"),
    *("objective", "dpo_beta", "dpo_sft", "method", "extract_rank", "quantization", "backend"),
    *("epochs", "max_steps", "warmup_steps", "max_length", "validation_split"),
    *("compute", "gradient_checkpointing", "offload", "canaries", "routing"),
    *("early_stopping", "checkpointing", "leak_report", "forgetting"),
)
"""Of `TrainSpec`, what `orchctl train start` has an option for, in that order."""

DEFAULTS: Final = TrainSpec(base="", dataset="", leak_report=True)
"""What the command takes where nothing is said."""


def again(
    spec: TrainSpec,
    changes: Sequence[Change] = (),
    *,
    words: Sequence[str],
    options: Mapping[str, str],
    settled: Settled | None = None,
) -> str:
    """`orchctl train start` with the settings of ``spec`` that are not the defaults, and ``changes`` to what they were
    ``settled`` as.

    ``words`` are its arguments, ``options`` those of its options that are no settings; empty ones are left out.
    """
    before = spec if settled is None else settled.put_into(spec)
    spec = msgspec.structs.replace(spec, **{change.option: _changed(before, change) for change in changes})
    if any(change.option == "steps" for change in changes):
        spec = msgspec.structs.replace(spec, epochs=0.0, max_steps=0)
    if spec.steps and (spec.warmup_steps or 0) >= spec.steps:
        spec = msgspec.structs.replace(spec, warmup_steps=None)  # the rate would never be at its height
    settings = {name: getattr(spec, name) for name in SETTINGS if getattr(spec, name) != getattr(DEFAULTS, name)}
    line = ["orchctl", "train", "start", *words]
    for name, value in {**options, **settings}.items():
        line += _option(f"--{name.replace('_', '-')}", value)
    return shlex.join(line)


def _option(flag: str, value: object) -> list[str]:
    """As `orchctl train start` takes it; nothing for an empty value."""
    if flag in ("--leak-report", "--forgetting"):
        return [] if value else [flag.replace("--", "--no-")]
    if isinstance(value, EarlyStopping):
        return [flag, f"{value.patience},{_figure(value.min_delta)}"] if value.enabled else []
    if isinstance(value, Checkpointing):
        return [flag, f"{value.interval},{value.keep_best}" if value.enabled else "off"]
    if isinstance(value, bool):
        return [flag] * value
    if isinstance(value, tuple):
        return [f"{flag}={','.join(map(str, value))}"] if value else []
    text = value if isinstance(value, str) else _figure(value)
    return [flag, text] if text else []


def _figure(value: object) -> str:
    """All digits of a whole number; of others as many as tell it from its neighbours, and no ``.0``."""
    return str(value) if isinstance(value, int) else repr(value).removesuffix(".0")


def _changed(spec: TrainSpec, change: Change) -> float:
    before = getattr(spec, change.option)
    low, high = BOUNDS[change.option]
    value = max(low, min(high, before * change.value if change.times else change.value))
    return int(value) if isinstance(before, int) else float(value)
