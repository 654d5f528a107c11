"""Writing a safetensors file with numpy, one tensor at a time: BF16 too, which numpy has no type for.

The format (huggingface/safetensors, README): eight bytes N, little endian; N bytes of JSON, padded with spaces:
name → {dtype, shape, data_offsets}; then the tensors' bytes without a gap. `orchd.registry.weights` reads it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from orchd.average.gram import Single
from orchd.average.specs import Dtype
from orchd.errors import AverageOverflows
from orchd.registry.weights import ITEM_SIZE


class TensorWriter:
    """Writes a safetensors file in one pass, without knowing the ranks beforehand.

    Room for the largest possible header is kept free in front and what is left of it padded with spaces, as the format
    allows. The same tensors in the same order give the same bytes. `close` makes the file valid.
    """

    def __init__(self, path: Path, dtype: Dtype, limits: Mapping[str, tuple[int, ...]]) -> None:
        """`limits`: every name that may come, with its largest shape."""
        self._dtype = dtype
        self._entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        largest = sum(ITEM_SIZE[dtype] * math.prod(s) for s in limits.values())
        worst = dict(self._entries)
        for name, shape in limits.items():
            worst[name] = _entry(dtype, shape, largest, largest)
        self._room = -(-len(_header(worst)) // 8) * 8
        self._end = 0
        self._file: IO[bytes] = path.open("wb")
        self._file.seek(8 + self._room)

    def write(self, name: str, values: Single) -> None:
        data = _from_single(values, self._dtype)
        self._entries[name] = _entry(self._dtype, values.shape, self._end, self._end + len(data))
        self._end += len(data)
        self._file.write(data)

    def close(self) -> None:
        """Write the header, flush to the disk and close."""
        try:
            self._file.seek(0)
            self._file.write(self._room.to_bytes(8, "little"))
            self._file.write(_header(self._entries).ljust(self._room))
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def abort(self) -> None:
        self._file.close()


def _entry(dtype: str, shape: Sequence[int], first: int, last: int) -> object:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


def _header(entries: Mapping[str, object]) -> bytes:
    return json.dumps(entries, separators=(",", ":")).encode()


def _from_single(values: Single, dtype: Dtype) -> bytes:
    """Bytes in `dtype`, rounded to nearest, ties to even. Raises `AverageOverflows` when a value does not fit."""
    with np.errstate(over="ignore"):
        if dtype == "BF16":
            bits = values.astype("<f4").view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            data, fits = rounded.astype("<u2"), bool((rounded & 0x7F80 != 0x7F80).all())
        else:
            data = values.astype("<f4" if dtype == "F32" else "<f2")
            fits = bool(np.isfinite(data).all())
    if not fits:
        raise AverageOverflows(f"the average holds numbers that do not fit into {dtype}")
    return data.tobytes()
