"""Open what the user points at (a file, a zip, a folder) and yield what is in it, piece by piece, with its place."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, cast

from orchd.errors import ImportTooLarge, ImportUnreadable
from orchd.importers import tables, texts
from orchd.importers.conversation import Passage
from orchd.importers.encoding import SAMPLE_BYTES, as_utf8, encoding_of
from orchd.importers.stream import BadRecord, records
from orchd.importers.turns import Learn

MAX_BYTES: Final = 16 << 30
MAX_ZIP_RATIO: Final = 200
MAX_TEXT_FILE_BYTES: Final = 64 << 20
MAX_PROBLEMS: Final = 1000
MAX_WARNINGS: Final = 20
TABLE_SUFFIXES: Final = frozenset({".csv", ".tsv"})

NO_RIGHTS: Final = "Check who may read it: the daemon opens it itself."

AS_SAVED: Final = "Give a text file; PDF, Word and the like have to be saved as text first."

_MEMBER: Final = re.compile(r"(^|/)conversations(-\d+)?\.json$|\.jsonl$")
_RECORD_FILE: Final = re.compile(r"^conversations(-\d+)?\.json$|\.jsonl$|\.csv$|\.tsv$")

Piece = dict[str, Any] | Passage | BadRecord


@dataclass(frozen=True)
class Problem:
    """Something about one record. ``line`` counts from 1 in ``file``; 0: not about one line. ``level`` is error where
    the record was left out, else warning. ``fix`` is what to do about it."""

    file: str
    line: int
    record: int
    level: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"line {self.line}, record {self.record}: {self.text}" if self.line else f"{self.file}: {self.text}"


@dataclass
class ImportLog:
    """What happened while reading: how many bytes, which format and kind, what was left out and why.

    ``file``, ``line`` and ``records`` say where the reading is now. ``not_picked`` examples were not wanted.
    ``learns`` says whose turns are learnt.
    """

    format: str = ""
    kind: str = ""
    bytes_read: int = 0
    bytes_total: int = 0
    file: str = ""
    line: int = 0
    records: int = 0
    skipped: int = 0
    warned: int = 0
    not_picked: int = 0
    learns: Learn = "assistant"
    problems: list[Problem] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """The first few problems, as text; with their files where there are several."""
        several = len({one.file for one in self.problems}) > 1
        return [f"{one.file}: {one}" if several and one.line else str(one) for one in self.problems[:MAX_WARNINGS]]

    def skip(self, reason: str, fix: str = "") -> None:
        """Count one record that was left out; the first reasons are kept."""
        self.skipped += 1
        self._note("error", reason, fix)

    def warn(self, text: str, fix: str = "") -> None:
        """Count something about a record that stays."""
        self.warned += 1
        self._note("warning", text, fix)

    def _note(self, level: str, text: str, fix: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(self.file, self.line, self.records, level, text, fix))


def pieces(path: Path, log: ImportLog, format: str, kind: str) -> Iterator[Piece]:
    """Records and passages of a file, a zip or a folder; ``log`` says where the last one came from.

    Raises `ImportUnreadable`, `ImportTooLarge`.
    """
    try:
        if path.is_dir():
            yield from _folder(path, log, format, kind)
        elif zipfile.is_zipfile(path):
            yield from _zip(path, log)
        else:
            log.bytes_total = path.stat().st_size
            yield from _file(path, path.name, log, format, kind)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> ImportUnreadable:
    detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    hint = NO_RIGHTS if isinstance(error, PermissionError) else None
    return ImportUnreadable(f"{path.name}: {detail}", hint=hint, field="source")


def content_size(path: Path) -> int:
    """Bytes of what would be read: of a zip, what its conversations unpack to; of a folder, its files."""
    try:
        if path.is_dir():
            return sum(one.stat().st_size for one in texts.files_below(path))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return sum(one.file_size for one in archive.infolist() if _MEMBER.search(one.filename))
        return path.stat().st_size
    except (OSError, zipfile.BadZipFile) as error:
        raise unreadable(path, error) from error


def _folder(path: Path, log: ImportLog, format: str, kind: str) -> Iterator[Piece]:
    """Its exports and tables; where it has none (or text is asked for) its texts or its code, whichever are more."""
    found = list(texts.files_below(path))
    holders = [one for one in found if _RECORD_FILE.search(one.name)]
    prose = [one for one in found if one.suffix.lower() in texts.TEXT_SUFFIXES]
    code = [one for one in found if one.suffix.lower() in texts.CODE_SUFFIXES]
    if kind in ("text", "code") or format == "text" or not holders:
        wanted = prose if kind == "text" or (kind != "code" and len(prose) >= len(code)) else code
    else:
        wanted = holders
    if not wanted:
        detail = f"{len(found)} files, none of them text, code, JSONL, CSV or a chat export" if found else "no files"
        hint = None if found else "There is no file in this folder; give another, or a file."
        raise ImportUnreadable(f"{path.name}: nothing to import ({detail})", hint=hint, field="source")
    log.bytes_total = sum(one.stat().st_size for one in wanted)
    for one in wanted:
        yield from _file(one, str(one.relative_to(path)), log, format, kind)


def _file(path: Path, name: str, log: ImportLog, format: str, kind: str) -> Iterator[Piece]:
    log.file, log.line = name, 0
    suffix = path.suffix.lower()
    size = path.stat().st_size
    _check_size(name, size)
    with path.open("rb") as source:
        encoding = encoding_of(source.read(SAMPLE_BYTES))
    is_text = format == "text" or (format == "auto" and suffix in texts.TEXT_SUFFIXES | texts.CODE_SUFFIXES)
    if encoding is None and (is_text or format == "csv" or suffix in TABLE_SUFFIXES):
        log.skip("binary, no text", AS_SAVED)
        log.bytes_read += size
        return
    if is_text:
        yield from _passages(path, name, log, encoding or "utf-8", code=suffix in texts.CODE_SUFFIXES or kind == "code")
        return
    with path.open("rb") as opened:
        counted = cast(IO[bytes], _Counted(opened, log, size, name))
        if format == "csv" or (format == "auto" and suffix in TABLE_SUFFIXES):
            yield from _numbered(tables.rows(counted, encoding or "utf-8"), log)
        else:
            yield from _numbered(records(as_utf8(counted, encoding or "utf-8"), lines=suffix == ".jsonl"), log)


def _passages(path: Path, name: str, log: ImportLog, encoding: str, *, code: bool) -> Iterator[Passage | BadRecord]:
    if path.stat().st_size > MAX_TEXT_FILE_BYTES:
        log.skip(f"more than {MAX_TEXT_FILE_BYTES >> 20} MiB in one text file", "Cut it into several files.")
        return
    data = path.read_bytes()
    log.bytes_read += len(data)
    for one in texts.passages(data.decode(encoding, "replace"), name, code=code):
        log.records += 1
        yield one


def _numbered(found: Iterator[tuple[int, dict[str, Any] | BadRecord]], log: ImportLog) -> Iterator[Piece]:
    for log.line, record in found:
        log.records += 1
        yield record


def _zip(path: Path, log: ImportLog) -> Iterator[Piece]:
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
            log.file, log.line = Path(member.filename).name, 0
            if member.flag_bits & 1:
                log.skip("encrypted", "Unpack it with its password, and import what is in it.")
                continue
            if member.file_size > MAX_ZIP_RATIO * max(member.compress_size, 1 << 16):
                raise ImportTooLarge(f"{path.name}: a member unpacks to {member.file_size} bytes")
            with archive.open(member) as source:
                counted = cast(IO[bytes], _Counted(source, log, member.file_size, path.name))
                yield from _numbered(records(counted, lines=member.filename.endswith(".jsonl")), log)


def _check_size(name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise ImportTooLarge(f"{name}: {size} bytes, the limit is {MAX_BYTES}", field="source")


class _Counted:
    """A reader that counts into the log and refuses more bytes than were announced."""

    closed = False

    def __init__(self, source: IO[bytes], log: ImportLog, limit: int, name: str) -> None:
        self._source, self._log, self._left, self._name = source, log, limit, name

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._left -= len(data)
        self._log.bytes_read += len(data)
        if self._left < 0:
            raise ImportTooLarge(f"{self._name}: more bytes than its directory says")
        return data

    read1 = read

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def flush(self) -> None: ...

    def close(self) -> None: ...
