"""Which library computes the base while an adapter is trained: torch, or mlx. What is left is scored by torch."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import torch

from orchd.errors import BackendMissing, BackendUnfit
from orchd.lm.base import Base, best_device, load_base
from orchd.lm.losses import scorer_of
from orchd.train import precision, runs
from orchd.train.base_facts import base_facts
from orchd.train.placement import layers_outside
from orchd.train.specs import TrainSpec

Backend = Literal["torch", "mlx"]
PACKAGES: Final = ("mlx", "mlx_lm")
OFFERED: Final = "mlx trains LoRA and rsLoRA adapters (new or continued, everywhere or in chosen places; sft and dpo)"


def chosen(spec: TrainSpec, folder: Path) -> Backend:
    """As asked for, as the run in ``folder`` began, or mlx where it is at home. Raises as `check`."""
    check(spec)
    if spec.backend != "auto":
        return spec.backend
    if (begun := runs.settled(folder)) is not None:
        return begun.backend
    return "mlx" if apple() and _missing() is None and _lacking(spec) is None else "torch"


def check(spec: TrainSpec) -> None:
    """Raises `BackendMissing`, and `BackendUnfit` where mlx was asked for what it does not offer."""
    if spec.backend != "mlx":
        return
    if (lacking := _lacking(spec)) is not None:
        field, detail = lacking
        raise BackendUnfit(detail, hint=f"{OFFERED}. For this train with `--backend torch`.", field=field)
    if (missing := _missing()) is not None:
        raise BackendMissing(f"mlx needs the Python package {missing}, which isn't installed", field="backend")


def apple() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


def _missing() -> str | None:
    return next((name for name in PACKAGES if importlib.util.find_spec(name) is None), None)


def _lacking(spec: TrainSpec) -> tuple[str, str] | None:
    """The setting, and in words what mlx does not offer of it."""
    if spec.method == "full":
        return "method", "mlx does not train whole weights here"
    if spec.quantization != "none":
        return "quantization", f"mlx does not hold a base in {spec.quantization}"
    return None


def load(spec: TrainSpec, dtype: torch.dtype, backend: str) -> Base:
    """The base, to be computed in ``dtype``. One that mlx can't take is torch's where nobody asked for mlx.

    Raises as `load_base`, and `BackendUnfit`.
    """
    if backend == "mlx":
        from orchd.lm.mlx_base import load_mlx_base

        try:
            return load_mlx_base(spec.base, dtype)
        except BackendUnfit:
            if spec.backend == "mlx":
                raise
    device = best_device()
    outside = layers_outside(spec, base_facts(Path(spec.base), dtype), device, precision.free_memory(device))
    return load_base(spec.base, dtype, device, spec.quantization, outside)


def device(spec: TrainSpec, folder: Path) -> str:
    """Where it will be computed, as `device_of` has it, but without the base."""
    return "mlx" if chosen(spec, folder) == "mlx" else best_device()


def trial(backend: str) -> Callable[[torch.dtype, str], float] | None:
    """What measures the backend's dtypes; None: torch's own."""
    if backend == "torch":
        return None
    from orchd.lm.mlx_base import trial as of_mlx

    return of_mlx


def answering(spec: TrainSpec, base: Base) -> Base:
    """A base that can write answers: another copy, of torch's, beside mlx's, which only scores."""
    if scorer_of(base.model) is None:
        return base
    return load_base(spec.base, base.model.dtype, best_device())
