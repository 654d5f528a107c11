"""A base's folder on this disk, looked at before it is taken: is it whole, and is there nothing that runs?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from orchd.errors import BaseHoldsPickles, BaseIncomplete
from orchd.hub.offer import WEIGHTS
from orchd.registry.bases import HEADER_LIMIT

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".msgpack", ".h5")
"""Endings of weights that are read by running what they say, or by a library with a history of that."""

UNFINISHED = (".partial", ".part", ".incomplete", ".crdownload", ".aria2", ".download")
POINTER = b"version https://git-lfs"
"""How a file begins that git left in the place of a large one."""

INDEX = "model.safetensors.index.json"


def check_folder(folder: Path) -> tuple[str, ...]:
    """What to know of the base in `folder`. Raises `BaseHoldsPickles`, `BaseIncomplete`; OSError where it can't look.

    Code in it (`*.py`, `auto_map`) is never run, so a base that transformers doesn't know by itself can't be loaded.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        if path.suffix in PICKLES:
            raise BaseHoldsPickles(f"{path} could run code when it is read", field="path")
        if path.suffix in UNFINISHED:
            raise BaseIncomplete(f"{path.name} in {folder}: a download has not ended", field="path")
    _check_weights(folder, [path for path in files if path.suffix == WEIGHTS])
    return tuple(_notes(folder))


def _check_weights(folder: Path, shards: list[Path]) -> None:
    for path in shards:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                detail = f"{path.name} in {folder} is a pointer of git-lfs, not the file"
                raise BaseIncomplete(detail, hint="Run `git lfs pull` there, then add it again.", field="path")
        if lacking := _lacking(path):
            raise BaseIncomplete(f"{path.name} in {folder} is cut: {lacking:,} bytes are missing", field="path")
    placed = _json(folder / INDEX).get("weight_map")
    wanted = {str(name) for name in placed.values()} if isinstance(placed, dict) else set()
    if missing := sorted(wanted - {path.name for path in shards}):
        detail = (
            f"{len(missing)} of {len(wanted)} weight files are missing in {folder}, the first is {missing[0][:120]!r}"
        )
        raise BaseIncomplete(detail, field="path")


def _lacking(path: Path) -> int:
    """How many bytes are missing at the end of a safetensors file; 0 where its head can't be read: others say why."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= HEADER_LIMIT:
            return 0
        head = file.read(length)
    try:
        tensors = msgspec.json.decode(head, type=dict[str, _Place])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return max(0, 8 + length - size)
    ends = [one.data_offsets[1] for one in tensors.values() if one.data_offsets]
    return max(0, 8 + length + max(ends, default=0) - size)


class _Place(msgspec.Struct, frozen=True):
    data_offsets: tuple[int, int] | None = None


def _notes(folder: Path) -> list[str]:
    settings, config = _json(folder / "tokenizer_config.json"), _json(folder / "config.json")
    notes = []
    if not settings.get("chat_template") and not (folder / "chat_template.jinja").exists():
        notes.append("its tokenizer has no chat template: adapters can't be trained on it (an instruct model has one)")
    if config.get("auto_map") or any(folder.glob("*.py")):
        notes.append("it brings code of its own, which is never run")
    return notes


def _json(path: Path) -> dict[str, Any]:
    """Empty where there is none, or where it is none: whoever needs it says so."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}
