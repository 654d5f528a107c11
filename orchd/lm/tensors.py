"""Tensors to a file, with the errors that all writing has."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_NUMBER: Final = re.compile(r"os error (\d+)")


def write_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError where the disk is full: safetensors has an error of its own for it."""
    try:
        save_file(dict(tensors), file, metadata=metadata)
    except SafetensorError as error:
        if (found := _NUMBER.search(str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(file)) from error
