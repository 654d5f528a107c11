"""What a manifest says about a PEFT folder, read off its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from orchd.errors import FileListRefused, TensorsRefused
from orchd.records import AdapterInfo, FileEntry, chunk_size_for
from orchd.registry import peft_config, weights
from orchd.registry.admission import CONFIG, FORMAT, SIZE_LIMITS, WEIGHTS


def file_entries(folder: Path) -> tuple[FileEntry, ...]:
    """Size and digests of the files that an adapter may hold, in the order of their names.

    Raises `FileListRefused` for a link: one to a private file, in a folder of somebody else's, would publish that file.
    """
    for name in SIZE_LIMITS:
        if (folder / name).is_symlink():
            raise FileListRefused(f"{name} in {folder} is a link")
    return tuple(_file_entry(folder / name) for name in sorted(SIZE_LIMITS) if (folder / name).exists())


def _file_entry(path: Path) -> FileEntry:
    size = path.stat().st_size
    chunk_size = chunk_size_for(size)
    whole, chunks = hashlib.sha256(), []
    with path.open("rb") as file:
        while chunk := file.read(chunk_size):
            whole.update(chunk)
            chunks.append(hashlib.sha256(chunk).digest())
    return FileEntry(path=path.name, size=size, sha256=whole.digest(), chunk_size=chunk_size, chunks=tuple(chunks))


def adapter_info(folder: Path) -> AdapterInfo:
    """Rank, alpha, modules, dtype and parameters. Raises the refusals that admission would."""
    config = peft_config.read(folder / CONFIG)
    tensors = weights.read_header(folder / WEIGHTS)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) != 1:
        raise TensorsRefused(f"the tensors are of several dtypes: {sorted(dtypes)}")
    return AdapterInfo(
        format=FORMAT,
        rank=max([config.rank, *config.rank_pattern.values()]),
        alpha_milli=round(config.alpha * 1000),
        rslora=config.rslora,
        target_modules=config.target_modules,
        dtype=dtypes.pop(),
        parameters=sum(tensor.parameters for tensor in tensors.values()),
        capabilities=config.capabilities,
    )
