"""Where a base lies while an adapter is trained on it: how many of its layers are held where it is computed. No torch.

Layers that are not held stay in the base's files, which the system keeps in main memory where there is room; accelerate
brings each to the device when it is computed, and once more for its gradients. That takes longer and changes nothing
else.
"""

from __future__ import annotations

import math
from typing import Final

from orchd.errors import TrainingRefused
from orchd.train.plan_specs import BaseFacts
from orchd.train.specs import TrainSpec

BASE_SHARE: Final = 0.7
"""Of the free memory, what a base may take; the rest is for what a training keeps."""


def layers_outside(spec: TrainSpec, base: BaseFacts, device: str, free: int | None) -> int:
    """How many of the last layers are not held: as asked for, or as many as have to. ``free`` is the memory of the
    ``device`` in bytes (None: not known). Raises `TrainingRefused` for what can't be.

    On the processor a base in the dtype of its files is them, mapped: there is nothing to gain. One in another dtype is
    converted from them.
    """
    if spec.offload is not None:
        _check(spec, base)
        return spec.offload
    if free is None or _why_not(spec) or not base.layer_parameters or (device == "cpu" and base.is_mapped):
        return 0
    room = BASE_SHARE * free - (base.file_bytes if device == "cpu" else 0)
    missing = base.parameters * base.itemsize - room
    each = base.layer_parameters * base.itemsize / base.layers
    return min(base.layers, max(0, math.ceil(missing / each)))


def _check(spec: TrainSpec, base: BaseFacts) -> None:
    if spec.offload and (reason := _why_not(spec)):
        hint = "Leave out `--offload`, or the other."
        raise TrainingRefused(f"no layers can be left in the base's files: {reason}", hint=hint, field="offload")
    if (spec.offload or 0) > base.layers:
        hint = f"Give a number from 0 to {base.layers}."
        raise TrainingRefused(f"offload {spec.offload}: the base has {base.layers} layers", hint=hint, field="offload")


def _why_not(spec: TrainSpec) -> str:
    """What speaks against leaving layers in the files; empty where nothing does."""
    if spec.method == "full":
        return "whole weights are trained where they lie"
    if spec.quantization != "none":
        return f"a base in {spec.quantization} is held whole"
    if spec.gradient_checkpointing == "off":
        return "every layer would be kept for its gradients (--gradient-checkpointing off)"
    return "mlx holds a base whole" if spec.backend == "mlx" else ""
