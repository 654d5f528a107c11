"""The journal: everything decided or received here that no manifest tells, one line an act, synced before it counts.

A line is `<16 hex digits of the SHA-256 of the rest> <JSON>`: a change of (table, key) to a value, or to null, which
deletes; the last one wins. A crash can only leave half a line at the end, which was told to nobody and is cut off. A
line damaged in the middle is left out, kept in a file beside, and told.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchd.paths import sync
from orchd.registry.blobs import full_disk_told, write_durably

LOG = logging.getLogger(__name__)
CHECK = 16  # hexadecimal digits before each line
#: The act of the first line, where everything was written anew: what was deleted before is not told any more.
ANEW = "anew"
UNFINISHED_COPY = ".new"  # ends the name of the one that is being written anew
#: (table, key, the row as JSON or null).
Entry = tuple[str, str, Any]


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One act. `undo`: what the keys held before, where it can be undone. `undoes`: the act that this one took back."""

    seq: int
    at: int
    act: str
    changes: tuple[Entry, ...]
    undo: tuple[Entry, ...] | None = None
    undoes: int | None = None


class Journal:
    """The file at `path`, made when it is not there. One thread at a time.

    `last` is the number of the last whole line, `count` how many there are, `damaged` how many were left out. An index
    that has not got the act number `anew` must be made again from nothing.
    """

    def __init__(self, path: Path, now_ms: int) -> None:
        self.path = path
        self.last = self.count = self.damaged = self.anew = 0
        path.with_name(path.name + UNFINISHED_COPY).unlink(missing_ok=True)
        if not path.exists():
            write_durably(path, b"")
        with full_disk_told(path.parent):
            self._file = path.open("r+b", buffering=0)
        try:
            self.size = self._check_all(now_ms)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def append(self, lines: Sequence[Line]) -> None:
        """Durable on return. Raises `DiskFull`; nothing of them is there then."""
        data = b"".join(map(_encode, lines))
        with full_disk_told(self.path.parent):
            try:
                _write_all(self._file.fileno(), data, self.size)
                os.fdatasync(self._file.fileno())
            except BaseException:
                os.ftruncate(self._file.fileno(), self.size)
                raise
        self.size += len(data)
        self.last = lines[-1].seq
        self.count += len(lines)

    def take_back(self, lines: Sequence[Line]) -> None:
        """Cut the lines off that `append` wrote last: what they say was not done."""
        self.size -= sum(len(_encode(line)) for line in lines)
        os.ftruncate(self._file.fileno(), self.size)
        os.fdatasync(self._file.fileno())
        self.last = lines[0].seq - 1
        self.count -= len(lines)

    def lines(self, after: int = 0) -> Iterator[Line]:
        """The whole lines with a number above `after`."""
        decoder = msgspec.json.Decoder(Line)
        with self.path.open("rb") as file:
            for raw in file:
                body = _body(raw)
                if body is not None and _seq(body) > after:
                    yield decoder.decode(body)

    def rewrite(self, lines: Iterable[Line]) -> None:
        """Put `lines` in the place of all, atomically. Raises `DiskFull`; the old ones are there then."""
        unfinished = self.path.with_name(self.path.name + UNFINISHED_COPY)
        last = count = anew = 0
        with full_disk_told(self.path.parent):
            try:
                with unfinished.open("wb") as file:
                    for line in lines:
                        file.write(_encode(line))
                        last, count = max(last, line.seq), count + 1
                        anew = line.seq if line.act == ANEW else anew
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(unfinished, self.path)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
            sync(self.path.parent)
            self._file.close()
            self._file = self.path.open("r+b", buffering=0)
        self.last, self.count, self.size, self.anew = last, count, self.path.stat().st_size, anew

    def _check_all(self, now_ms: int) -> int:
        """Look at every line; the size in bytes without a torn end, which is cut off."""
        end, bad = 0, list[bytes]()
        with self.path.open("rb") as file:
            for raw in file:
                body = _body(raw)
                if body is not None:
                    self.last, self.count = max(self.last, _seq(body)), self.count + 1
                    self.anew = self.anew or _anew(body, end)
                elif raw.endswith(b"\n"):
                    bad.append(raw)
                else:
                    self._cut_off(end, raw, now_ms)
                    break
                end += len(raw)
        if bad:
            self.damaged = len(bad)
            write_durably(self.path.with_name(f"{self.path.name}.damaged-{now_ms}"), b"".join(bad))
            LOG.warning("%d lines of %s are damaged; they were copied beside it", len(bad), self.path)
        return end

    def _cut_off(self, end: int, torn: bytes, now_ms: int) -> None:
        write_durably(self.path.with_name(f"{self.path.name}.torn-{now_ms}"), torn)
        LOG.warning("%s ended in half a line, which nobody was told of; it was cut off", self.path)
        os.ftruncate(self._file.fileno(), end)
        os.fsync(self._file.fileno())


def _encode(line: Line) -> bytes:
    body = msgspec.json.encode(line)
    return hashlib.sha256(body).hexdigest()[:CHECK].encode() + b" " + body + b"\n"


def _body(raw: bytes) -> bytes | None:
    """The JSON of a whole line, or None."""
    check, body = raw[:CHECK], raw[CHECK + 1 : -1]
    if not raw.endswith(b"\n") or raw[CHECK : CHECK + 1] != b" ":
        return None
    return body if hashlib.sha256(body).hexdigest()[:CHECK].encode() == check else None


def _seq(body: bytes) -> int:
    """The number of a line, which stands first in its JSON, without reading the rest."""
    return int(body[len(b'{"seq":') : body.index(b",")])


def _anew(body: bytes, place: int) -> int:
    """The number of the line that begins a journal written anew; 0 for any other."""
    if place:
        return 0
    line = msgspec.json.decode(body, type=Line)
    return line.seq if line.act == ANEW else 0


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
