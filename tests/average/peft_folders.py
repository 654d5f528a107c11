"""PEFT folders for tests, and slow dense references: ΔW in float64, its best rank-r part by SVD."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchd.average.adapter import Adapter
from orchd.average.specs import Dtype
from orchd.average.tensors import TensorWriter

Array = NDArray[np.float64]
PREFIX = "base_model.model."
SHAPES = {"model.layers.0.q_proj": (12, 9), "model.layers.0.up_proj": (20, 9), "model.layers.1.q_proj": (12, 9)}
"""(rows, columns) of the modules of the invented base."""


@dataclass
class Lora:
    """One adapter in memory: `factors` by module name, (A, B); settings as PEFT has them."""

    factors: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    config: dict[str, object] = field(default_factory=dict)
    dtype: Dtype = "F32"

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        tensors = {}
        for name, (a, b) in self.factors.items():
            tensors[f"{PREFIX}{name}.lora_A.weight"] = a
            tensors[f"{PREFIX}{name}.lora_B.weight"] = b
        writer = TensorWriter(
            folder / "adapter_model.safetensors", self.dtype, {n: t.shape for n, t in tensors.items()}
        )
        for name, values in tensors.items():
            writer.write(name, values)
        writer.close()
        largest = max(a.shape[0] for a, _ in self.factors.values())
        config: dict[str, object] = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": largest,
            "lora_alpha": 2 * largest,
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {n: a.shape[0] for n, (a, _) in self.factors.items() if a.shape[0] != largest},
        } | self.config
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder


def random_lora(
    seed: int,
    rank: int = 3,
    modules: Sequence[str] = tuple(SHAPES),
    ranks: Mapping[str, int] | None = None,
    **config: object,
) -> Lora:
    """An adapter with normal factors; `ranks` overrides `rank` by module."""
    rng = np.random.default_rng(seed)
    factors = {}
    for name in modules:
        rows, columns = SHAPES[name]
        r = (ranks or {}).get(name, rank)
        factors[name] = (
            rng.normal(size=(r, columns)).astype(np.float32),
            rng.normal(size=(rows, r)).astype(np.float32),
        )
    return Lora(factors, dict(config))


def dense(folder: Path) -> dict[str, Array]:
    """ΔW by module in float64, as the folder's bytes and settings say."""
    with Adapter(folder) as adapter:
        parts = {name: adapter.factors(name) for name in adapter.modules}
    return {n: f.scale * (f.b.astype(np.float64) @ f.a.astype(np.float64)) for n, f in parts.items()}


def dense_mean(folders: Sequence[Path], weights: Sequence[float]) -> dict[str, Array]:
    """Σ wᵢ ΔWᵢ by module, zero where an adapter lacks the module."""
    total: dict[str, Array] = {}
    for folder, weight in zip(folders, weights, strict=True):
        for name, delta in dense(folder).items():
            total[name] = total.get(name, np.zeros_like(delta)) + weight * delta
    return total


def truncated(delta: Array, rank: int) -> Array:
    """The best rank-`rank` approximation (Eckart and Young 1936)."""
    u, s, v = np.linalg.svd(delta, full_matrices=False)
    return np.asarray((u[:, :rank] * s[:rank]) @ v[:rank])


def distance(left: Mapping[str, Array], right: Mapping[str, Array]) -> float:
    """‖left − right‖ / ‖right‖ over all modules (a missing one is zero)."""
    names = set(left) | set(right)
    off = sum(float(np.sum((left.get(n, 0.0) - right.get(n, 0.0)) ** 2)) for n in names)
    whole = sum(float(np.sum(delta**2)) for delta in right.values())
    return float((off / whole) ** 0.5)
