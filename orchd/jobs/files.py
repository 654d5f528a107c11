"""Text files that grow by lines and stay bounded: the log of a job.

A file that reaches half its limit is renamed to `NAME.1`, over the one before it, so that both together hold at
most the limit and always the newest half of it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

TAIL_BLOCK = 65_536


def append(path: Path, data: bytes, limit: int) -> None:
    """Append `data` to the bounded file at `path` of at most `limit` bytes. Raises OSError."""
    with open(path, "ab") as file:
        size = file.tell()
        if size + len(data) <= limit // 2:
            file.write(data)
            return
    if size:
        os.replace(path, older(path))
    with open(path, "ab") as file:
        file.write(data[-(limit // 2) :])


def append_whole(path: Path, line: bytes, limit: int) -> bool:
    """Append a line if the file stays within `limit` bytes then; whether it did. Raises OSError; nothing of it is
    there then."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        if size and size + len(line) > limit:
            return False
        try:
            written = file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
    return True


def older(path: Path) -> Path:
    """Where the part before the newest one lies."""
    return path.with_name(path.name + ".1")


def parts(path: Path) -> list[Path]:
    """The files that a bounded file consists of now, oldest first."""
    return [part for part in (older(path), path) if part.exists()]


def remove(path: Path) -> None:
    """Remove all parts."""
    for part in parts(path):
        part.unlink(missing_ok=True)


def empty(folder: Path) -> None:
    """Make the folder anew, with nothing in it. Raises OSError."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def mend(path: Path) -> None:
    """End a line that a crash cut off, so that the next one starts on its own."""
    if path.exists() and path.stat().st_size and not last_bytes(path, 1).endswith(b"\n"):
        with open(path, "ab") as file:
            file.write(b"\n")


def lines(path: Path) -> Iterator[bytes]:
    """The lines of one part. A reader that has begun isn't disturbed by renaming."""
    with open(path, "rb") as file:
        yield from file


def last_bytes(path: Path, count: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - count))
        return file.read(count)


def tail(path: Path, count: int) -> list[str]:
    """The last `count` lines of a bounded file, oldest first."""
    found: list[str] = []
    for part in reversed(parts(path)):
        text = part.read_bytes().decode(errors="replace")
        found = [*text.splitlines(), *found]
        if len(found) >= count:
            break
    return found[-count:] if count > 0 else []
