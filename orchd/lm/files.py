"""What lies where in a base's safetensors files. Nothing is loaded."""

from __future__ import annotations

from pathlib import Path

from orchd.registry.bases import HEADER_LIMIT
from orchd.registry.weights import Tensor, read_header


def places(folder: Path) -> dict[str, tuple[Path, Tensor]]:
    """Each tensor's file and place in it, by name. Raises `TensorsRefused`."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: (file, place) for file in files for name, place in read_header(file, HEADER_LIMIT).items()}
