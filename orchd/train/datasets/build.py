"""Conversations → a data set folder: duplicates out, parts fixed by the content and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import msgspec

from orchd.errors import DatasetUnusable
from orchd.importers.clean import content_id
from orchd.importers.conversation import Conversation
from orchd.importers.read import ImportLog
from orchd.records.ids import DATASET, text_id
from orchd.train.datasets.store import INFO_FILE, PARTS, DatasetInfo, to_row

Split = Literal["auto", "train", "test"]


@dataclass(frozen=True)
class Parts:
    """How the rows are divided: see `orchd.train.specs.ImportSpec`."""

    split: Split = "auto"
    seed: int = 0
    test_share: float = 0.1
    validation_share: float = 0.1

    def sizes(self, rows: int) -> dict[str, int]:
        """Rows for test and validation; the rest is for training."""
        if self.split == "test":
            return {"test": rows, "validation": 0}
        if self.split == "train":
            return {"test": 0, "validation": 0}
        return {
            "test": round(rows * self.test_share),
            "validation": round(rows * self.validation_share),
        }


@dataclass(frozen=True)
class _Spooled:
    """Where a conversation lies in the spool, and what decides between two copies of it."""

    offset: int
    size: int
    content: str
    newness: tuple[int, int]


def build(conversations: Iterable[Conversation], log: ImportLog, folder: Path, parts: Parts, name: str) -> DatasetInfo:
    """Write the data set to ``folder`` (made; must be empty) and return what it holds.

    ``log`` is the one that ``conversations`` fills while they are read.

    Memory grows with the number of rows, not with their text. Of two copies with one id the newer
    stays (or the one with more nodes); of equal contents one. Rows without an answer to learn are
    counted as skipped. Raises `DatasetUnusable` when nothing is left.
    """
    if not 0 <= parts.test_share + parts.validation_share < 1:
        raise DatasetUnusable("the shares put aside must leave something to train on", field="split")
    folder.mkdir(parents=True, exist_ok=True)
    spool = folder / "spool.tmp"
    with spool.open("w+b") as file:
        rows, duplicates = _spool(conversations, log, file)
        if not rows:
            hint = "A row needs a question and an answer to it (of the assistant)."
            raise DatasetUnusable(f"{name}: no conversation with an answer in it", hint=hint, field="source")
        rows.sort(key=lambda row: _rank(parts.seed, row.content))
        counts = _write_parts(rows, file, folder, parts)
    spool.unlink()
    info = DatasetInfo(
        id=_identity(rows, counts),
        name=name,
        kind=log.kind,
        split=parts.split,
        seed=parts.seed,
        rows=len(rows),
        skipped=log.skipped,
        duplicates=duplicates,
        **counts,
    )
    (folder / INFO_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=1))
    return info


def _spool(conversations: Iterable[Conversation], log: ImportLog, file: IO[bytes]) -> tuple[list[_Spooled], int]:
    """The rows that stay, and how many were duplicates."""
    by_id: dict[str, _Spooled] = {}
    duplicates = 0
    for conversation in conversations:
        if not conversation.trainable:
            log.skip(f"record {log.records}: no answer to learn in it")
            continue
        before = by_id.get(conversation.id)
        newness = (conversation.updated_ms, conversation.nodes)
        duplicates += before is not None
        if before is not None and before.newness >= newness:
            continue
        line = msgspec.json.encode(to_row(conversation)) + b"\n"
        content = content_id(conversation.messages)
        by_id[conversation.id] = _Spooled(file.tell(), len(line), content, newness)
        file.write(line)
    by_content = {row.content: row for row in by_id.values()}
    return list(by_content.values()), duplicates + len(by_id) - len(by_content)


def _rank(seed: int, content: str) -> bytes:
    return hashlib.sha256(f"{seed}:{content}".encode()).digest()


def _write_parts(rows: list[_Spooled], spool: IO[bytes], folder: Path, parts: Parts) -> dict[str, int]:
    """``rows`` in the order that decides: first the test part, then validation, then training."""
    sizes = parts.sizes(len(rows))
    ends = {"test": sizes["test"], "validation": sizes["test"] + sizes["validation"]}
    bounds = {
        "test": rows[: ends["test"]],
        "validation": rows[ends["test"] : ends["validation"]],
        "train": rows[ends["validation"] :],
    }
    for part in PARTS:
        with (folder / f"{part}.jsonl").open("wb") as file:
            for row in bounds[part]:
                spool.seek(row.offset)
                file.write(spool.read(row.size))
    return {part: len(bounds[part]) for part in PARTS}


def _identity(rows: list[_Spooled], counts: dict[str, int]) -> str:
    """``dst_…``: SHA-256 over the sizes of the parts and the contents in their order."""
    digest = hashlib.sha256(",".join(f"{part}={counts[part]}" for part in PARTS).encode())
    for row in rows:
        digest.update(row.content.encode())
    return text_id(DATASET, digest.digest())
