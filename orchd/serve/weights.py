"""The tensors of one or several safetensors files by name, read as float32 one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchd.errors import TensorsRefused, WeightsUnreadable
from orchd.registry import weights as safetensors
from orchd.registry.bases import HEADER_LIMIT
from orchd.registry.weights import Tensor

FloatArray = NDArray[np.float32]


class Weights(Mapping[str, Tensor]):
    """Maps a name to where its tensor lies; `read` gives the numbers.

    Raises WeightsUnreadable when a file is missing, cut short, or names a tensor that another one has.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._places: dict[str, tuple[Path, Tensor]] = {}
        for path in paths:
            try:
                header = safetensors.read_header(path, HEADER_LIMIT)
            except (OSError, TensorsRefused) as error:
                raise WeightsUnreadable(f"{path.name}: {error}") from error
            for name, tensor in header.items():
                if name in self._places:
                    raise WeightsUnreadable(f"{path.name}: tensor {name} is in another file too")
                self._places[name] = (path, tensor)

    @classmethod
    def of_base(cls, folder: Path) -> Weights:
        """All `*.safetensors` of a Hugging Face folder (one file or shards)."""
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise WeightsUnreadable(f"no safetensors file in {folder.name}")
        return cls(paths)

    def read(self, name: str) -> FloatArray:
        """A copy in the tensor's shape; BF16 and F16 widen exactly."""
        path, tensor = self._places[name]
        with safetensors.mapped(path) as view:
            return safetensors.values(view, tensor)

    def rows(self, name: str, wanted: Sequence[int]) -> FloatArray:
        """Rows of a matrix as float32 (rows, columns); nothing else of it is read. Raises IndexError."""
        path, tensor = self._places[name]
        with safetensors.mapped(path) as view:
            shape = tensor.shape
            raw = np.frombuffer(view[tensor.start : tensor.end], safetensors.RAW[tensor.dtype]).reshape(shape)
            found = raw[np.asarray(wanted, np.int64)]
            del raw
        return safetensors.widen(found, tensor.dtype, np.empty(found.shape, np.uint32)).astype(np.float32)

    def __getitem__(self, name: str) -> Tensor:
        return self._places[name][1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
