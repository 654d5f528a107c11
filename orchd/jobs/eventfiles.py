"""Events on disk: bounded NDJSON files for each job and for the node, and the number that the next event gets."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from orchd.jobs import files

PART_BYTES = 2_500_000
PARTS = 4
"""At most this many parts of that size for one job, 10 MB; the node's own events have the same limit."""

KEEP_MS = 30 * 24 * 3_600_000
"""A file that nothing was added to for this long is removed."""

NODE = "node"
SUFFIX = ".ndjson"
LAST_LINE_BYTES = 65_536

SEQUENCE_BLOCK = 4_096
"""Numbers are reserved on disk in blocks of this size, so that none is given twice after a crash."""


class Numbered(msgspec.Struct, frozen=True):
    """As much of an event as its place in the order."""

    seq: int


_numbered = msgspec.json.Decoder(Numbered)


class EventFiles:
    """The folder of event files: `OWNER-FIRST.ndjson`, FIRST being the number of the first event in it.

    Files are added and removed but never renamed, so that a reader on its way isn't led astray.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._newest: dict[str, Path] = {}
        for part in self._parts(None):
            files.mend(part)
            self._newest[_owner(part)] = part

    def append(self, job: str | None, seq: int, line: bytes) -> None:
        """Add event number `seq` to the job's file. A full disk costs the record of an event, never the daemon."""
        owner = job or NODE
        with suppress(OSError):
            part = self._newest.get(owner)
            if part is not None and files.append_whole(part, line, PART_BYTES):
                return
            part = self._folder / f"{owner}-{seq:016d}{SUFFIX}"
            if files.append_whole(part, line, PART_BYTES):
                self._newest[owner] = part
                self._make_room(owner)

    def read(self, after: int, until: int, job: str | None = None) -> Iterator[bytes]:
        """The lines with `after` < seq <= `until`, in order over all files (or those of one job)."""
        return (line for seq, line in _merged(self._parts(job), after) if after < seq <= until)

    def last_seq(self) -> int:
        """The largest number on disk, 0 when there is none."""
        return max(map(_last, self._newest.values()), default=0)

    def prune(self, now_ms: int) -> None:
        for part in self._parts(None):
            with suppress(OSError):
                if part.stat().st_mtime * 1000 < now_ms - KEEP_MS:
                    part.unlink()
                    if self._newest.get(_owner(part)) == part:
                        del self._newest[_owner(part)]

    def _parts(self, job: str | None) -> list[Path]:
        """Files of one owner or of all, each owner's in order."""
        return sorted(self._folder.glob(f"{job or '*'}-*{SUFFIX}"))

    def _make_room(self, owner: str) -> None:
        for part in self._parts(owner)[:-PARTS]:
            part.unlink(missing_ok=True)


class Sequence:
    """The numbers of events: growing, also over restarts and after a crash (which may skip some)."""

    def __init__(self, path: Path, at_least: int) -> None:
        self._path = path
        self.last = max(at_least, self._stored())
        self._reserved = self.last

    def next(self) -> int:
        if self.last >= self._reserved:
            self._reserved = self.last + SEQUENCE_BLOCK
            self._store(self._reserved)
        self.last += 1
        return self.last

    def close(self) -> None:
        """Give back what is reserved and wasn't used."""
        self._store(self.last)

    def _stored(self) -> int:
        try:
            return int(self._path.read_text())
        except (OSError, ValueError):
            return 0

    def _store(self, number: int) -> None:
        temporary = self._path.with_suffix(".new")
        with suppress(OSError):
            temporary.write_text(f"{number}\n")
            os.replace(temporary, self._path)


def _merged(paths: list[Path], after: int) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of several files, each in order, in one order.

    A file is opened only when its turn comes: there may be thousands.
    """
    waiting = sorted((path for path in paths if _last(path) > after), key=_first, reverse=True)
    heads: list[tuple[int, bytes, Iterator[tuple[int, bytes]]]] = []
    while waiting or heads:
        if waiting and (not heads or _first(waiting[-1]) <= heads[0][0]):
            stream = _lines(waiting.pop())
        else:
            seq, line, stream = heapq.heappop(heads)
            yield seq, line
        for seq, line in stream:
            heapq.heappush(heads, (seq, line, stream))
            break


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The numbered lines of a file; a line that a crash tore is left out."""
    with suppress(OSError):
        for line in files.lines(path):
            with suppress(msgspec.DecodeError):
                yield _numbered.decode(line).seq, line


def _owner(path: Path) -> str:
    return path.name.rpartition("-")[0]


def _first(path: Path) -> int:
    """The first number in a file, from its name."""
    digits = path.name.rpartition("-")[2].removesuffix(SUFFIX)
    return int(digits) if digits.isdecimal() else 0


def _last(path: Path) -> int:
    """The last number in a file."""
    with suppress(OSError):
        for line in reversed(files.last_bytes(path, LAST_LINE_BYTES).splitlines()):
            with suppress(msgspec.DecodeError):
                return _numbered.decode(line).seq
    return 0
