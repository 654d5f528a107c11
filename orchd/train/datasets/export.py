"""A data set → one JSONL file that other tools read, and that is the same data set again when it is imported."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from orchd.errors import OutputExists, OutputRefused
from orchd.importers.conversation import Message
from orchd.registry.blobs import full_disk_told
from orchd.train.datasets.store import (
    PARTS,
    ChatRow,
    CompletionRow,
    Row,
    TextRow,
    read_info,
    read_part,
)


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """`size` is the file's, in bytes."""

    path: str
    dataset: str
    kind: str
    rows: int
    size: int


def export(folder: Path, path: Path, *, replace: bool = False) -> Exported:
    """Write every row of the data set in ``folder`` to ``path``, whole or not at all.

    Each row names its part under ``split``, which other tools pass over. Raises `OutputExists`,
    `OutputRefused`, `DiskFull`, `DatasetUnusable`.
    """
    if path.exists() and not replace:
        raise OutputExists(f"{path} is there already", field="path")
    info = read_info(folder)
    try:
        with full_disk_told(path.parent), tempfile.TemporaryDirectory(dir=path.parent, prefix=".orchd-") as place:
            made = Path(place) / "rows"
            with made.open("wb") as file:
                file.writelines(_lines(folder, info.kind))
                file.flush()
                os.fsync(file.fileno())
            os.replace(made, path)
    except OSError as error:
        raise OutputRefused(f"{path} can't be written: {error.strerror}", field="path") from error
    return Exported(path=str(path), dataset=info.id, kind=info.kind, rows=info.rows, size=path.stat().st_size)


def _lines(folder: Path, kind: str) -> Iterator[bytes]:
    for part in PARTS:
        for row in read_part(folder, part):
            yield msgspec.json.encode(public(row, kind) | {"split": part}) + b"\n"


def public(row: Row, kind: str) -> dict[str, Any]:
    """The row's fields in the way of writing that is usual for its kind; JSON values only."""
    about = {name: value for name, value in (("title", row.title), ("group", row.group)) if value}
    if isinstance(row, ChatRow):
        return {"messages": [_message(one) for one in row.messages], **about}
    if isinstance(row, TextRow):
        return {"code" if kind == "code" else "text": row.text, **about}
    if isinstance(row, CompletionRow):
        return {"prompt": row.prompt, "completion": row.completion, **about}
    said = [_message(one) for one in row.messages]
    return {"messages": said, "chosen": row.chosen, "rejected": row.rejected, **about}


def _message(one: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": one.role, "content": one.content}
    return said if one.counts else {**said, "weight": 0}
