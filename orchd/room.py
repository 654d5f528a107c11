"""Is there room on the disk for what is about to be made? Asked before the first step of the work, not after the last.

What is needed is estimated from above: a worker makes its file in a folder beside the store, and the store copies it,
so everything is there twice for a while. Nothing is set aside: what fills the disk meanwhile can still be in the way.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

from orchd.importers.source import content_size
from orchd.registry import Base, Registry

TIMES: Final = 2
BYTES_PER_FACTOR: Final = 2
"""Adapters that are made here are BF16."""

BYTES_PER_WEIGHT: Final = {"F32": 4.0, "F16": 2.0, "Q8_0": 34 / 32, "Q4_K_M": 210 / 256}
"""Of a GGUF file, by what its weights become at most (Q4_K_M holds some in 6 bits)."""


def for_adapter(registry: Registry, base: Base, rank: int) -> None:
    """Raises `DiskFull` where an adapter for every matrix of the base's layers, of this rank, has no room."""
    matrices = [shape for name, shape in base.shapes.items() if ".layers." in name and len(shape) > 1]
    numbers = sum(math.prod(shape[:-2]) * rank * (shape[-2] + shape[-1]) for shape in matrices)
    registry.blobs.check_room(TIMES * BYTES_PER_FACTOR * numbers)


def model_size(base: Base, quantize: str, gguf: str = "") -> int:
    """Bytes of a GGUF file with an adapter in it, at most; `gguf` is the base's own file that it is folded into."""
    if not gguf:
        return round(BYTES_PER_WEIGHT[quantize] * base.parameters)
    return os.stat(gguf).st_size + round(BYTES_PER_WEIGHT["Q8_0"] * base.parameters)


def for_model(registry: Registry, base: Base, quantize: str, gguf: str = "") -> None:
    """Raises `DiskFull` where the file that is deployed has no room."""
    registry.blobs.check_room(TIMES * model_size(base, quantize, gguf))


def for_dataset(registry: Registry, source: Path) -> None:
    """Raises `DiskFull` where the examples of a file or folder have no room."""
    registry.blobs.check_room(TIMES * content_size(source))


def for_copy(registry: Registry, source: Path) -> None:
    """Raises `DiskFull` where a copy of a file, or of the files of a folder, has no room."""
    try:
        files = [source] if source.is_file() else [file for file in source.iterdir() if file.is_file()]
        size = sum(file.stat().st_size for file in files)
    except OSError:  # whoever reads them says why
        size = 0
    registry.blobs.check_room(TIMES * size)
