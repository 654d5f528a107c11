"""Layers of a base that are not held in memory: accelerate brings each in when it is computed, read from its files."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from accelerate.hooks import AlignDevicesHook
from torch import Tensor

from orchd.lm.adapter import DTYPES
from orchd.lm.files import places
from orchd.registry.weights import Tensor as Place

M_MMAP_THRESHOLD: Final = -3
LARGE_BYTES: Final = 1 << 20


class FileTensors(Mapping[str, Tensor]):
    """A module's tensors by name, each read anew into memory of its own, in the dtype of its file.

    accelerate's own loader maps a whole file for each tensor of a layer; to a limit of memory that counts nine times.
    """

    def __init__(self, here: Mapping[str, tuple[Path, Place]]) -> None:
        self._places = here

    def __getitem__(self, name: str) -> Tensor:
        file, place = self._places[name]
        with file.open("rb", buffering=0) as opened:
            opened.seek(place.start)
            data = bytearray(opened.read(place.end - place.start))
        return torch.frombuffer(data, dtype=DTYPES[place.dtype]).reshape(place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Outside:
    """The last ``layers`` of ``model``, which accelerate has dispatched; its files are in ``folder``.

    Raises KeyError for a name that is not in them.
    """

    def __init__(self, model: Any, folder: Path, layers: int) -> None:
        self.layers = layers
        here = places(folder)
        self._hooks = [
            (hook, FileTensors({name: here[f"{path}.{name}"] for name, _ in module.named_parameters(recurse=False)}))
            for path, module in model.named_modules()
            if isinstance(hook := getattr(module, "_hf_hook", None), AlignDevicesHook) and hook.offload
        ]
        _free_at_once()
        self.leave()

    def leave(self) -> None:
        """Hold none of it. PEFT holds the layers that it has taken an adapter off."""
        for hook, tensors in self._hooks:
            hook.weights_map = tensors


def _free_at_once() -> None:
    """Have the C library (glibc) give large blocks back to the system when they are freed.

    Else it keeps them for the next, and what came and went grows: 270 MB after eight passes of SmolLM2, now none.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
