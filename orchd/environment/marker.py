"""What lies on the disk of an environment: the folder, and the marker that says which one is in use and what is in it.

`environment.json` is written last and replaced whole, so what it names was verified. Beside it lie the folders of
environments and `making`, where an unfinished one's downloads wait for the next try.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from orchd.environment.needs import Needs, fits
from orchd.paths import sync

MARKER = "environment.json"
MAKING = "making"
VENV = "venv-"
"""Begins the name of an environment's folder."""


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """A verified environment. `folder` is its name below the root, `versions` are its own packages', `size` in bytes,
    `digest` the SHA-256 of the constraints that it was made with, `python` what made it."""

    folder: str
    versions: dict[str, str]
    torch: str
    python: str
    layer: tuple[str, ...]
    digest: str
    size: int
    device: str


def read(root: Path) -> Marker | None:
    """The marker; None where there is none that can be read."""
    try:
        return msgspec.json.decode((root / MARKER).read_bytes(), type=Marker)
    except (OSError, msgspec.DecodeError):
        return None


def write(root: Path, marker: Marker) -> None:
    """It is this or the one before, whatever happens meanwhile."""
    draft = root / f"{MARKER}.new"
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(marker)))
    sync(draft)
    os.replace(draft, root / MARKER)
    sync(root)


def interpreter(root: Path, folder: str) -> Path:
    return root / folder / "bin" / "python"


def usable(root: Path, marker: Marker | None, wanted: Needs) -> bool:
    """Whether the marker's environment is the one that is wanted now. Nothing in it is looked at.

    One with another build of torch stays where that one still computes: a GPU that is gone is no reason to download.
    """
    if marker is None or not interpreter(root, marker.folder).exists():
        return False
    same = (marker.python, marker.layer) == (wanted.version, wanted.layer)
    return (
        same and fits(marker.versions, wanted) and (marker.torch == wanted.torch.build or wanted.torch.build == "cpu")
    )


def drop_others(root: Path, keep: set[str]) -> None:
    """Remove the folders of environments that are not in use."""
    for folder in root.glob(f"{VENV}*"):
        if folder.name not in keep:
            shutil.rmtree(folder, ignore_errors=True)
