"""Adapters that are not all here yet: `data/fetching/<id>/`, until the door has let them in.

In an adapter's folder lie one file for each of its files, by number, with holes where nothing has come, and a journal:
eight bytes for every chunk that has, the numbers of its file and of the chunk, big-endian. A chunk is verified, written
and then noted, so a process that is killed loses none but the one that it was about to note. What the journal tells is
verified again when it is read, so a machine that loses power loses no more than what it lost.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from orchd.net.policy.plan import Span
from orchd.records import FileEntry
from orchd.records.ids import ADAPTER
from orchd.registry.blobs import full_disk_told

#: An unfinished adapter that nobody went on with for so many seconds is thrown away, and the oldest ones that make all
#: of them larger than so many bytes.
KEEP_S, KEEP_BYTES = 7 * 86_400, 8 << 30
#: After so many bytes it is looked again whether the disk has room.
LOOK_EVERY = 32 << 20
JOURNAL = "journal"
#: In the place of a descriptor.
CLOSED = -1
NOTE = struct.Struct(">II")


class Partial:
    """One adapter's unfinished files. `put` may be called from several threads; `entries` are all of its manifest's.

    `check_room` is called with bytes to come and raises `DiskFull`.
    """

    def __init__(self, folder: Path, entries: Sequence[FileEntry], check_room: Callable[[int], None]) -> None:
        self._folder, self._entries, self._check_room = folder, tuple(entries), check_room
        self._files: dict[int, int] = {}
        #: By file: how many of its first chunks are in its digest already.
        self._digests = [hashlib.sha256() for _ in self._entries]
        self._digested = [0] * len(self._entries)
        self._unlooked = 0
        #: So that at most one chunk is written and not yet noted.
        self._writing = threading.Lock()
        with full_disk_told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._journal = os.open(folder / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def found(self) -> list[Span]:
        """The chunks that were brought before and are still what was signed, one each. Reads them all."""
        size = os.fstat(self._journal).st_size
        os.ftruncate(self._journal, size - size % NOTE.size)
        noted = set(NOTE.iter_unpack(os.pread(self._journal, size - size % NOTE.size, 0)))
        return [Span(file, chunk, 1) for file, chunk in sorted(noted) if self._is_whole(file, chunk)]

    def put(self, file: int, first: int, data: memoryview) -> int:
        """Verify and keep whole chunks that follow each other; how many, up to the first that is not what was signed.

        Raises `DiskFull`.
        """
        entry = self._entries[file]
        count = -(-len(data) // entry.chunk_size)
        for number in range(count):
            chunk = first + number
            piece = data[number * entry.chunk_size : (number + 1) * entry.chunk_size]
            if chunk >= len(entry.chunks) or hashlib.sha256(piece).digest() != entry.chunks[chunk]:
                return number
            self._keep(file, chunk, piece)
        return count

    def path(self, file: int) -> Path:
        """Where the file lies, to be taken away: it is not written to any more.

        It is made if nothing of it has come (an empty file has no chunks).
        """
        self._open(file)
        os.close(self._files.pop(file))
        return self._name(file)

    def digest(self, file: int) -> bytes:
        """SHA-256 of a file that is whole; what came in order is not read again."""
        entry, digest = self._entries[file], self._digests[file]
        for chunk in range(self._digested[file], len(entry.chunks)):
            digest.update(os.pread(self._open(file), entry.chunk_size, chunk * entry.chunk_size))
        self._digested[file] = len(entry.chunks)
        return digest.digest()

    def is_empty(self) -> bool:
        return self._journal == CLOSED or os.fstat(self._journal).st_size == 0

    def discard(self) -> None:
        """Nothing of it stays, and nothing is put any more. To free the blocks of its files takes the disk a while."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._close()

    def _close(self) -> None:
        for descriptor in (self._journal, *self._files.values()):
            if descriptor != CLOSED:
                os.close(descriptor)
        self._journal = CLOSED
        self._files.clear()

    def _keep(self, file: int, chunk: int, data: memoryview) -> None:
        with self._writing, full_disk_told(self._folder):
            self._unlooked += len(data)
            if self._unlooked >= LOOK_EVERY:
                self._unlooked = 0
                self._check_room(len(data))
            _write_at(self._open(file), chunk * self._entries[file].chunk_size, data)
            os.write(self._journal, NOTE.pack(file, chunk))
            if chunk == self._digested[file]:
                self._digests[file].update(data)
                self._digested[file] += 1

    def _is_whole(self, file: int, chunk: int) -> bool:
        if file >= len(self._entries) or chunk >= len(self._entries[file].chunks):
            return False
        entry = self._entries[file]
        data = os.pread(self._open(file), entry.chunk_size, chunk * entry.chunk_size)
        return hashlib.sha256(data).digest() == entry.chunks[chunk]

    def _open(self, file: int) -> int:
        if file not in self._files:
            with full_disk_told(self._folder):
                self._files[file] = os.open(self._name(file), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._files[file]

    def _name(self, file: int) -> Path:
        return self._folder / f"{file}.part"


def _write_at(descriptor: int, offset: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def tidy(staging: Path, now_s: float) -> None:
    """Throw away what nobody will go on with. `now_s`: seconds since 1970."""
    staging.mkdir(parents=True, exist_ok=True)
    kept: list[tuple[float, int, Path]] = []
    for folder in staging.iterdir():
        changed = _changed(folder)
        if changed is None or now_s - changed > KEEP_S:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            kept.append((changed, sum(_sizes(folder)), folder))
    total = 0
    for _, size, folder in sorted(kept, reverse=True):
        total += size
        if total > KEEP_BYTES:
            shutil.rmtree(folder, ignore_errors=True)


def _changed(folder: Path) -> float | None:
    """When something came last, in seconds since 1970; None for what is no unfinished adapter, or an empty one."""
    try:
        journal = (folder / JOURNAL).stat()
    except OSError:
        return None
    return journal.st_mtime if folder.name.startswith(ADAPTER) and journal.st_size else None


def _sizes(folder: Path) -> Iterator[int]:
    """Bytes on the disk: the files have holes."""
    for file in folder.iterdir():
        yield file.stat().st_blocks * 512
