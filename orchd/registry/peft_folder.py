"""A PEFT folder of the user's on its way to the door: the files of an adapter alone, and no path of this machine."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from orchd.errors import AdapterConfigRefused, FileListRefused, SizeRefused
from orchd.registry.admission import CONFIG, README, SIZE_LIMITS, WEIGHTS
from orchd.registry.blobs import full_disk_told
from orchd.registry.peft_config import HUB_NAME

COPY_SIZE = 1 << 20  # bytes read at a time


def prepare(source: Path, target: Path, *, readme: bool) -> None:
    """Copy an adapter's files from `source` to `target`, a folder that is there.

    PEFT notes where the base lay when the adapter was trained; such a path is left out. The README is taken only when
    asked for, since it tends to hold that path too. Links are refused: they could lead to a private file. Raises
    `FileListRefused`, `SizeRefused`, `AdapterConfigRefused`.
    """
    for name in (CONFIG, WEIGHTS):
        if not os.path.lexists(source / name):
            raise FileListRefused(f"{source} holds no {name}, or may not be read", field="path")
    for name in (CONFIG, WEIGHTS, *((README,) if readme and (source / README).exists() else ())):
        _copy(source / name, target / name)
    _leave_out_paths(target / CONFIG)


def _copy(source: Path, target: Path) -> None:
    """A file that is none (a link, a pipe) or too large is refused before its bytes are read."""
    limit = SIZE_LIMITS[source.name]
    descriptor = _opened(source)
    with os.fdopen(descriptor, "rb") as file, full_disk_told(target.parent), target.open("xb") as out:
        left = limit
        while block := file.read(min(COPY_SIZE, left + 1)):
            left -= len(block)
            if left < 0:
                raise SizeRefused(f"{source.name} is more than {limit} bytes", field="path")
            out.write(block)


def _opened(source: Path) -> int:
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        why = "it is a link" if source.is_symlink() else error.strerror
        raise FileListRefused(f"{source} can't be taken: {why}", field="path") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileListRefused(f"{source} is no file", field="path")
    return descriptor


def _leave_out_paths(path: Path) -> None:
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AdapterConfigRefused(f"{CONFIG} is no JSON: {str(error)[:200]}") from None
    base = tree.get("base_model_name_or_path") if isinstance(tree, dict) else None
    if isinstance(base, str) and base and not HUB_NAME.match(base):
        path.write_text(json.dumps(tree | {"base_model_name_or_path": None}, indent=2), encoding="utf-8")
