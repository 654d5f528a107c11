"""Content-addressed bytes: a blob is named by its SHA-256 and never changes.

A blob appears whole or not at all: it is hashed while it is written to a temporary file, synced, renamed, and the
directory is synced. A size cap holds while writing, so nothing a peer sends is larger than what it said.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from orchd.errors import BlobUnknown, DigestMismatch, DiskFull
from orchd.paths import sync

#: The reserve: free bytes that stay free on the file system. The index and the journal need room to write at any time.
DISK_RESERVE = 256 << 20
COPY_SIZE = 1 << 20  # bytes read at a time
FOLDER, NAME = re.compile(r"\A[0-9a-f]{2}\Z"), re.compile(r"\A[0-9a-f]{64}\Z")
UNFINISHED = ".unfinished-"  # begins the name of a file that `write_durably` has not finished


class BlobStore:
    """Blobs below one directory, two levels by the first byte. Safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._temporary = root / "tmp"
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)

    def path(self, digest: bytes) -> Path:
        """Where the blob is, or would be."""
        return Path(self._name(digest))

    def _name(self, digest: bytes) -> str:
        """As `path`, without the microseconds that a `Path` takes: all blobs are gone through at times."""
        name = digest.hex()
        return f"{self.root}/{name[:2]}/{name}"

    def has(self, digest: bytes) -> bool:
        return os.path.exists(self._name(digest))

    def size(self, digest: bytes) -> int:
        """Bytes. Raises `BlobUnknown`."""
        try:
            return os.stat(self._name(digest)).st_size
        except FileNotFoundError:
            raise BlobUnknown(f"the blob {digest.hex()} is not here") from None

    def writer(self, max_bytes: int, expected: bytes | None = None) -> BlobWriter:
        """A writer for one blob of at most `max_bytes`; `expected` is the digest it must turn out to have."""
        self.check_room(max_bytes)
        return BlobWriter(self, self._temporary, max_bytes, expected)

    def put_file(self, source: Path, expected: bytes | None = None) -> bytes:
        """Copy a file in; its digest."""
        with source.open("rb") as file, self.writer(source.stat().st_size, expected) as writer:
            while block := file.read(COPY_SIZE):
                writer.write(block)
            return writer.commit()

    def adopt(self, source: Path, digest: bytes, expected: bytes) -> None:
        """Move a file in instead of copying it. `digest` is what it had when it was written, and nobody may have it
        open for writing.

        Raises `DigestMismatch` and leaves the file where it is, when another one is expected.
        """
        _compare(digest, expected)
        with source.open("rb", buffering=0) as file:
            try:
                self._appear(source, file.fileno(), expected)
            except OSError as error:
                if error.errno != errno.EXDEV:  # on another file system it can't be moved
                    raise
                self.put_file(source, expected)

    def _appear(self, source: Path, descriptor: int, digest: bytes) -> None:
        """Make a whole file visible under its name, for good."""
        target = self.path(digest)
        with full_disk_told(self.root):
            os.fchmod(descriptor, 0o444)
            os.fsync(descriptor)
            if not target.parent.is_dir():
                target.parent.mkdir(exist_ok=True)
                sync(self.root)
            os.replace(source, target)
            sync(target.parent)

    def keep(self, digest: bytes) -> bool:
        """Whether it is here. If so it counts as new, so that collecting garbage leaves it alone for a while."""
        try:
            os.utime(self.path(digest))
        except FileNotFoundError:
            return False
        return True

    def all(self) -> Iterator[tuple[bytes, os.stat_result]]:
        """Every blob with its file's facts, in order."""
        for folder in sorted(entry.path for entry in os.scandir(self.root) if FOLDER.match(entry.name)):
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if NAME.match(entry.name):
                    with suppress(FileNotFoundError):  # gone since
                        yield bytes.fromhex(entry.name), entry.stat()

    def is_whole(self, digest: bytes) -> bool:
        """Whether its bytes have its digest. Raises `BlobUnknown`; an `OSError` means that the disk can't read it."""
        try:
            with self.path(digest).open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest() == digest
        except FileNotFoundError:
            raise BlobUnknown(f"the blob {digest.hex()} is not here") from None

    def set_aside(self, digest: bytes) -> None:
        """Move a damaged blob out of the way; it is kept below `rotten`."""
        rotten = self.root / "rotten"
        rotten.mkdir(exist_ok=True)
        os.replace(self.path(digest), rotten / digest.hex())

    def rotten(self) -> Iterator[Path]:
        """The damaged blobs that are kept, named by what they should be."""
        for entry in sorted((self.root / "rotten").glob("*")):
            if NAME.match(entry.name):
                yield entry

    def remove(self, digest: bytes) -> None:
        self.path(digest).unlink(missing_ok=True)

    def remove_older(self, digest: bytes, time_ms: int) -> bool:
        """Remove it, unless it came or was wanted again after `time_ms`; whether it was."""
        try:
            old = self.path(digest).stat().st_mtime_ns < time_ms * 1_000_000
        except FileNotFoundError:
            return False
        if old:
            self.remove(digest)
        return old

    def check_room(self, needed: int) -> None:
        """Raises `DiskFull` when `needed` bytes would eat into the reserve."""
        free = shutil.disk_usage(self.root).free
        if (short := needed + DISK_RESERVE - free) > 0:
            raise DiskFull(
                f"this needs {_told(needed)} on the disk of {self.root}, where {_told(free)} are free; orchd leaves"
                f" {_told(DISK_RESERVE)} of that free for its index and journal",
                hint=f"Free {_told(short + short // 100)} there, or move ORCHD_HOME to a larger disk; then try again.",
            )


class BlobWriter:
    """Writes one blob. Leaving the block without `commit` leaves nothing behind."""

    def __init__(self, store: BlobStore, temporary: Path, max_bytes: int, expected: bytes | None) -> None:
        self._store = store
        self._left = max_bytes
        self._expected = expected
        self._hash = hashlib.sha256()
        with full_disk_told(store.root):
            descriptor, name = tempfile.mkstemp(dir=temporary)
        self._path = Path(name)
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Raises `DigestMismatch` beyond the promised size, `DiskFull` when the disk is."""
        view = memoryview(data)
        self._left -= view.nbytes
        if self._left < 0:
            raise DigestMismatch("more bytes came than were promised")
        with full_disk_told(self._store.root):
            while view.nbytes:
                view = view[self._hash_and_write(view) :]

    def _hash_and_write(self, view: memoryview) -> int:
        written = self._file.write(view)
        self._hash.update(view[:written])
        return written

    def commit(self) -> bytes:
        """Make the blob visible; its digest. Raises `DigestMismatch` when it is not the expected one."""
        digest = self._hash.digest()
        if self._expected is not None:
            _compare(digest, self._expected)
        self._store._appear(self._path, self._file.fileno(), digest)
        return digest


def _compare(digest: bytes, expected: bytes) -> None:
    if digest != expected:
        raise DigestMismatch(f"the digest is {digest.hex()}, {expected.hex()} was signed")


def check_room(place: Path, reserve: int) -> None:
    """Raises `DiskFull` when less than `reserve` bytes are free below `place`."""
    facts = os.statvfs(place)
    if (free := facts.f_bavail * facts.f_frsize) < reserve:
        raise DiskFull(
            f"{_told(free)} are free on the disk of {place}; orchd decides nothing with less than {_told(reserve)},"
            " for what follows from it wants to be written down too"
        )


def _told(count: int) -> str:
    """Bytes for people."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


@contextmanager
def full_disk_told(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no room to write below {place}") from None
        raise


def write_durably(path: Path, data: bytes) -> None:
    """Atomic and durable: after a crash there is the old file or the new one, whole."""
    with full_disk_told(path.parent):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync(path.parent)
