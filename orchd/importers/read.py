"""Open a chat export, see by the shape of its records what it is, and yield its conversations."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, cast

from orchd.errors import ImportTooLarge, ImportUnreadable
from orchd.importers import chatgpt, claude, flat
from orchd.importers.clean import objects
from orchd.importers.conversation import Conversation
from orchd.importers.stream import BadRecord, records

MAX_BYTES: Final = 16 << 30
MAX_ZIP_RATIO: Final = 200
MAX_WARNINGS: Final = 20

_Parser = Callable[[dict[str, Any]], Conversation | None]

#: Kind → (the key that its records have, the parser).
KINDS: Final[dict[str, tuple[str, _Parser]]] = {
    "chatgpt": ("mapping", chatgpt.parse),
    "claude": ("chat_messages", claude.parse),
    "openai": ("messages", flat.parse_openai),
    "sharegpt": ("conversations", flat.parse_sharegpt),
    "alpaca": ("instruction", flat.parse_alpaca),
}

NO_RIGHTS: Final = "Check who may read it: the daemon opens it itself."

_MEMBER: Final = re.compile(r"(^|/)conversations(-\d+)?\.json$|\.jsonl$")


@dataclass
class ImportLog:
    """What happened while reading: how many bytes, which kind, what was left out and why."""

    kind: str = ""
    bytes_read: int = 0
    bytes_total: int = 0
    records: int = 0
    skipped: int = 0
    warnings: list[str] = field(default_factory=list)

    def skip(self, reason: str) -> None:
        """Count one record that was left out; the first few reasons are kept."""
        self.skipped += 1
        self.warn(reason)

    def warn(self, text: str) -> None:
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(text)


def read_conversations(
    path: Path, log: ImportLog, kind: str = "auto", progress: Callable[[], None] = lambda: None
) -> Iterator[Conversation]:
    """Stream the conversations in ``path`` (JSON, JSONL or a zip of an export; memory stays small).

    ``log`` is filled on the way and ``progress`` called after each record. Conversations without a
    message are counted as skipped. Raises `ImportUnreadable` when nothing in the file is a known
    record, `ImportTooLarge` when it is bigger than the limits.
    """
    if kind != "auto" and kind not in KINDS:
        known = ", ".join(("auto", *KINDS))
        hint = f"Give one of {known}; auto, the default, finds it out."
        raise ImportUnreadable(f"no such kind: {kind[:80]} (known: {known})", hint=hint, field="kind")
    found = readable = 0
    others = dict[str, None]()
    for record in _records(path, log):
        log.records += 1
        where = f"record {log.records}"
        progress()
        if isinstance(record, BadRecord):
            log.skip(f"{where}: {record}")
            continue
        readable += 1
        for one in _unwrapped(record):
            seen = detect(one)
            this_kind = seen if kind == "auto" or KINDS[kind][0] not in one else kind
            if this_kind is None or kind not in ("auto", this_kind):
                log.skip(f"{where}: no known shape" if seen is None else f"{where}: {seen}, not {kind}")
                others.update({seen: None} if seen else {})
                continue
            log.kind = log.kind or this_kind
            conversation = KINDS[this_kind][1](one)
            if conversation is None or not conversation.messages:
                log.skip(f"{where}: " + ("not to be remembered" if conversation is None else "empty"))
                continue
            found += 1
            yield conversation
    if not found and not log.kind:
        raise _nothing(path, log, kind, readable, list(others))


def _nothing(path: Path, log: ImportLog, kind: str, readable: int, others: list[str]) -> ImportUnreadable:
    """Why nothing came of a file."""
    if others:
        hint = f"Leave `--kind` out, or give `--kind {others[0]}`."
        return ImportUnreadable(f"{path.name} is {' and '.join(others)}, not {kind}", hint=hint, field="kind")
    if log.records and not readable:
        return ImportUnreadable(f"{path.name}: nothing to import, this is not JSON", field="source")
    reason = log.warnings[0] if log.warnings else "no records"
    return ImportUnreadable(f"{path.name}: nothing to import ({reason})", field="source")


def _unreadable(path: Path, error: Exception) -> ImportUnreadable:
    detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    hint = NO_RIGHTS if isinstance(error, PermissionError) else None
    return ImportUnreadable(f"{path.name}: {detail}", hint=hint, field="source")


def content_size(path: Path) -> int:
    """Bytes of what would be read of a file: of a zip, what its conversations unpack to."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return sum(one.file_size for one in archive.infolist() if _MEMBER.search(one.filename))
        return path.stat().st_size
    except (OSError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error


def detect(record: dict[str, Any]) -> str | None:
    """The kind of a record, by its keys and never by a file's name."""
    return next((kind for kind, (key, _) in KINDS.items() if key in record), None)


def _unwrapped(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The records inside ``{"conversations": [...]}``, or of an object keyed by id; else itself."""
    inner = objects(record.get("conversations"))
    if inner and any(detect(one) for one in inner):
        return inner
    values = list(record.values())
    if detect(record) is None and values and all(isinstance(one, dict) for one in values):
        return [one for one in values if detect(one)] or [record]
    return [record]


def _records(path: Path, log: ImportLog) -> Iterator[dict[str, Any] | BadRecord]:
    try:
        if zipfile.is_zipfile(path):
            yield from _zip_records(path, log)
            return
        log.bytes_total = path.stat().st_size
        _check_size(path.name, log.bytes_total)
        with path.open("rb") as source:
            counted = cast(IO[bytes], _Counted(source, log, log.bytes_total, path.name))
            yield from records(counted, lines=path.suffix == ".jsonl")
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _unreadable(path, error) from error


def _zip_records(path: Path, log: ImportLog) -> Iterator[dict[str, Any] | BadRecord]:
    """Only the members that hold conversations are read; nothing is unpacked to disk."""
    with zipfile.ZipFile(path) as archive:
        members = [one for one in archive.infolist() if _MEMBER.search(one.filename)]
        if not members:
            inner = [one for one in archive.infolist() if one.filename.endswith(".zip")]
            hint = "Unpack it and import the zip files in it one by one." if inner else None
            detail = "holds other zip files" if inner else "no conversations.json in it"
            raise ImportUnreadable(f"{path.name}: {detail}", hint=hint, field="source")
        log.bytes_total = sum(one.file_size for one in members)
        _check_size(path.name, log.bytes_total)
        for member in sorted(members, key=lambda one: one.filename):
            if member.flag_bits & 1:
                log.skip(f"{Path(member.filename).name}: encrypted")
                continue
            if member.file_size > MAX_ZIP_RATIO * max(member.compress_size, 1 << 16):
                raise ImportTooLarge(f"{path.name}: a member unpacks to {member.file_size} bytes")
            with archive.open(member) as source:
                counted = cast(IO[bytes], _Counted(source, log, member.file_size, path.name))
                yield from records(counted, lines=member.filename.endswith(".jsonl"))


def _check_size(name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise ImportTooLarge(f"{name}: {size} bytes, the limit is {MAX_BYTES}", field="source")


class _Counted:
    """A reader that counts into the log and refuses more bytes than were announced."""

    def __init__(self, source: IO[bytes], log: ImportLog, limit: int, name: str) -> None:
        self._source, self._log, self._left, self._name = source, log, limit, name

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self._left -= len(data)
        self._log.bytes_read += len(data)
        if self._left < 0:
            raise ImportTooLarge(f"{self._name}: more bytes than its directory says")
        return data
