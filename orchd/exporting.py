"""Adapters out for other programs: what is asked for becomes a worker's job, what the worker made goes to its place."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from orchd import room
from orchd.choosing import choose
from orchd.errors import (
    AdapterNotMergeable,
    BaseUnknown,
    DiskFull,
    OutputExists,
    OutputRefused,
    ParamsInvalid,
)
from orchd.jobs import Job
from orchd.registry import AdapterRow, Base
from orchd.registry.bases import GGUF
from orchd.registry.blobs import full_disk_told
from orchd.registry.peft_config import SERVABLE
from orchd.serve.specs import FOLDERS, MERGED, AdapterPath, ExportResult, ExportSpec

if TYPE_CHECKING:
    from orchd.node import Node

KIND = "adapter.export"
WHOLE = frozenset({"safetensors", "pytorch"})
"""Formats that hold an adapter whatever it is made of; the others hold plain products alone."""

ENDINGS = {
    "safetensors": "-peft",
    "mlx": "-mlx",
    "pytorch": ".pt",
    "gguf": "-lora.gguf",
    "merged-gguf": ".gguf",
    "merged-safetensors": "-merged",
    "onnx": "-onnx",
}
"""Of the name of what is written, after the adapter's."""

F32_BYTES, WIDENED = 4, 2
"""An ONNX model is float32, and so is a GGUF LoRA, whose adapter may have half of that."""


class ExportNote(msgspec.Struct, frozen=True, kw_only=True):
    """Where what a worker made goes."""

    adapter: str
    path: str
    replace: bool


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What was written to `path`, in `format`. `size` in bytes and `sha256` (hexadecimal) are of that file; of a folder
    they are of all its files: the digest is of the lines that `sha256sum *` prints there. `plain_size` is what it was
    before it was compressed, else 0. `difference` is the largest one of logits that a trial of the format found.
    """

    path: str
    adapter: str
    format: str
    quantize: str
    size: int
    sha256: str
    plain_size: int
    files: tuple[str, ...]
    difference: float | None
    seconds: float


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. `path` is as the user gave it, made absolute."""

    format: str
    path: Path
    quantize: str = ""
    compress: str = ""
    replace: bool = False


async def start(node: Node, row: AdapterRow, wanted: Wanted) -> Job:
    """Queue the job. Raises what is known before it runs: AdapterNotMergeable, BaseUnknown, OutputExists,
    OutputRefused, ParamsInvalid, DiskFull."""
    _check(row, wanted)
    spec, size = await trio.to_thread.run_sync(_plan, node, row, wanted)
    target = await trio.to_thread.run_sync(_target, row, spec, wanted)
    await trio.to_thread.run_sync(_check_room, node, target.parent, size)
    note = ExportNote(adapter=row.id, path=str(target), replace=wanted.replace)
    return await node.jobs.submit(KIND, spec, title=f"export {row.name[:60]} as {spec.format}", note=note)


async def finish(node: Node, job: Job, result: ExportResult, workdir: Path) -> Written:
    """Put what the worker made in its place. Raises as `start`."""
    note = msgspec.convert(job.note, ExportNote)
    await trio.to_thread.run_sync(move, workdir / result.made, Path(note.path), note.replace)
    return Written(
        path=note.path,
        adapter=note.adapter,
        format=result.format,
        quantize=result.quantize,
        size=result.size,
        sha256=result.sha256,
        plain_size=result.plain_size,
        files=result.files,
        difference=result.difference,
        seconds=result.seconds,
    )


def _check(row: AdapterRow, wanted: Wanted) -> None:
    if wanted.compress not in ("", "zstd"):
        raise ParamsInvalid(f"compress {wanted.compress[:40]!r} is not zstd", hint="Leave it out.", field="compress")
    if wanted.quantize and wanted.format != "merged-gguf":
        hint = "Leave it out, or choose merged-gguf."
        raise ParamsInvalid(f"{wanted.format} is not quantised", hint=hint, field="quantize")
    if wanted.format not in WHOLE and SERVABLE not in row.capabilities:
        told = "has more than factors (DoRA, trained biases, saved modules)"
        hint = f"safetensors and pytorch hold it as it is: `--format {min(WHOLE)}`."
        raise AdapterNotMergeable(f"{row.name} {told}; {wanted.format} can't hold those", hint=hint, field="format")


def _plan(node: Node, row: AdapterRow, wanted: Wanted) -> tuple[ExportSpec, int]:
    """The worker's spec, and the bytes of what it will make, from above."""
    folder = node.registry.adapter_folder(row.id)
    spec = ExportSpec(
        adapter=AdapterPath(id=row.id, path=str(folder)),
        format=wanted.format,
        name=row.name,
        compress=wanted.compress,
    )
    own = sum(file.stat().st_size for file in folder.iterdir())
    if wanted.format == "gguf":
        base = _any_form(node, row.base)
        key = "gguf" if base.form == GGUF else "base"
        return msgspec.structs.replace(spec, **{key: str(base.path)}), WIDENED * own
    if wanted.format not in MERGED:
        return spec, own
    base, gguf, quantize = choose(node.registry.known_bases, row.base, wanted.quantize or _default(wanted.format))
    if wanted.format != "merged-gguf":
        size = base.size if wanted.format == "merged-safetensors" else F32_BYTES * base.parameters
        return msgspec.structs.replace(spec, base=str(base.path)), size
    size = room.model_size(base, quantize, gguf)
    return msgspec.structs.replace(spec, base=str(base.path), gguf=gguf, quantize=quantize), size


def _default(format: str) -> str:
    """What `choose` is asked for: of a folder's formats only that it is a folder."""
    return "" if format == "merged-gguf" else "F16"


def _any_form(node: Node, base: str) -> Base:
    """The folder where there is one, else the GGUF file."""
    known = node.registry.known_bases
    try:
        return known.folder(base)
    except BaseUnknown:
        return known.get(base)


def _target(row: AdapterRow, spec: ExportSpec, wanted: Wanted) -> Path:
    """The path that is written: in a folder that is there, a name after the adapter's."""
    path = wanted.path
    if path.is_dir():
        packed = (".tar.zst" if spec.format in FOLDERS else ".zst") if wanted.compress else ""
        quantize = f"-{spec.quantize}" if spec.quantize else ""
        path = path / f"{harmless(row)}{quantize}{ENDINGS[spec.format]}{packed}"
    elif not path.parent.is_dir():
        raise ParamsInvalid(f"there is no folder {str(path.parent)!r}", field="path")
    _check_free(path, wanted.replace)
    return path


FILE_NAME = re.compile(r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,99}\Z")


def harmless(row: AdapterRow) -> str:
    """A stranger's name becomes a file's only when it is harmless; else it is the id."""
    return row.name if FILE_NAME.match(row.name) else row.id


def _check_free(path: Path, replace: bool) -> None:
    if os.path.lexists(path) and not replace:
        raise OutputExists(f"{path} is there already", field="path")


def _check_room(node: Node, folder: Path, size: int) -> None:
    """Raises DiskFull where the worker, or the folder that it goes to, has no room for it."""
    node.registry.blobs.check_room(room.TIMES * size)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DiskFull(f"it needs {size} bytes in {folder}, {free} are free", field="path")


def move(made: Path, target: Path, replace: bool) -> None:
    """Move a file or folder to `target`, whole or not at all; over another file system it is copied beside it first.

    Raises OutputExists, OutputRefused, DiskFull.
    """
    _check_free(target, replace)
    try:
        with (
            full_disk_told(target.parent),
            tempfile.TemporaryDirectory(dir=target.parent, prefix=".orchd-", ignore_cleanup_errors=True) as place,
        ):
            whole = _beside(made, Path(place) / "made")
            if target.is_dir() and not target.is_symlink():
                os.rename(target, Path(place) / "before")
            os.replace(whole, target)
    except OSError as error:
        raise OutputRefused(f"{target} can't be written: {error.strerror}", field="path") from error


def _beside(made: Path, place: Path) -> Path:
    try:
        os.rename(made, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy: Any = shutil.copytree if made.is_dir() else shutil.copyfile
        copy(made, place)
    for file in place.iterdir() if place.is_dir() else [place]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    return place
