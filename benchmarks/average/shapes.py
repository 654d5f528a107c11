"""Adapters of a 7B base's shapes on disk: 32 layers of seven modules, rank 16, BF16, drawn from a seed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from orchd.average.tensors import TensorWriter
from orchd.jobs.context import JobContext

SMALL = bool(os.environ.get("ORCHD_BENCH_SMALL"))
LAYERS = 2 if SMALL else 32
HIDDEN, INNER = (256, 688) if SMALL else (4096, 11008)
RANK = 16
ALPHA = 32
MODULES = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    **{f"mlp.{name}_proj": (INNER, HIDDEN) for name in ("gate", "up")},
    "mlp.down_proj": (HIDDEN, INNER),
}
"""(rows, columns) of one layer's modules."""


def adapters(folder: Path, count: int, layers: int = LAYERS) -> list[Path]:
    """So many different PEFT folders."""
    return [_write(folder / f"adapter-{seed}", seed, layers) for seed in range(count)]


def _write(folder: Path, seed: int, layers: int) -> Path:
    folder.mkdir(parents=True)
    names = {
        f"base_model.model.model.layers.{layer}.{module}.lora_{half}.weight": shape
        for layer in range(layers)
        for module, (rows, columns) in MODULES.items()
        for half, shape in (("A", (RANK, columns)), ("B", (rows, RANK)))
    }
    rng = np.random.default_rng(seed)
    writer = TensorWriter(folder / "adapter_model.safetensors", "BF16", names)
    for name, shape in names.items():
        writer.write(name, rng.standard_normal(shape, np.float32) * np.float32(0.02))
    writer.close()
    targets = [module.partition(".")[2] for module in MODULES]
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


class Nobody:
    """A pipe that nobody reads."""

    def send(self, message: object) -> None:
        pass

    def receive(self) -> None:
        return None


def job(folder: Path) -> JobContext:
    folder.mkdir()
    return JobContext(folder, 2, Nobody())


@contextmanager
def workplace() -> Iterator[Path]:
    """An empty folder that goes in the end."""
    with tempfile.TemporaryDirectory(prefix="orchd-bench-") as root:
        yield Path(root)
