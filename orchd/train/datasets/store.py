"""The folder of a data set: ``dataset.json`` and ``train.jsonl``, ``validation.jsonl``, ``test.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from orchd.errors import DatasetUnusable
from orchd.importers.conversation import Conversation, Message

PARTS: Final = ("train", "validation", "test")
INFO_FILE: Final = "dataset.json"
FORMAT_VERSION: Final = 1


class DatasetInfo(msgspec.Struct, frozen=True, kw_only=True):
    """``dataset.json``. ``train``, ``validation`` and ``test`` are numbers of rows."""

    id: str
    name: str
    kind: str
    split: str
    seed: int
    rows: int
    train: int
    validation: int
    test: int
    skipped: int
    duplicates: int
    version: int = FORMAT_VERSION


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a part."""

    id: str
    messages: tuple[Message, ...]
    title: str = ""


def to_row(conversation: Conversation) -> Row:
    return Row(conversation.id, conversation.messages, conversation.title)


def read_info(folder: Path) -> DatasetInfo:
    """Raises `DatasetUnusable`."""
    try:
        return msgspec.json.decode((folder / INFO_FILE).read_bytes(), type=DatasetInfo)
    except (OSError, msgspec.DecodeError) as error:
        raise DatasetUnusable(f"{folder.name}: {INFO_FILE}: {error}", field="dataset") from error


def read_part(folder: Path, part: str) -> Iterator[Row]:
    """The rows of one of `PARTS`, in the order of the file. Raises `DatasetUnusable`."""
    if part not in PARTS:
        raise DatasetUnusable(f"no such part: {part} (known: {', '.join(PARTS)})", field="split")
    decoder = msgspec.json.Decoder(Row)
    try:
        with (folder / f"{part}.jsonl").open("rb") as file:
            for line in file:
                yield decoder.decode(line)
    except (OSError, msgspec.DecodeError) as error:
        raise DatasetUnusable(f"{folder.name}: {part}.jsonl: {error}", field="dataset") from error
