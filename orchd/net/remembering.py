"""The book of peers (`policy/book.py`) in its file, which belongs to the user alone."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec
import trio

from orchd.net.policy.book import Book, Page

log = logging.getLogger(__name__)

#: The file in the data directory, its size in bytes at most, and how often it is written, in seconds.
NAME, SIZE_LIMIT, EVERY_S = "peers.json", 4 << 20, 15.0
#: Who knows fewer than so many can't lose one: the book is looked at each second then.
FEW, SOON_S = 8, 1.0


def load(data: Path) -> Book:
    """What was kept; an empty book where nothing was, or what can't be read."""
    path = data / NAME
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise ValueError(f"more than {SIZE_LIMIT} bytes")
        return Book(msgspec.json.decode(path.read_bytes(), type=Page))
    except FileNotFoundError:
        return Book()
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        log.warning("%s can't be read, no peers are remembered: %s", path, error)
        return Book()


def save(data: Path, book: Book) -> None:
    """Replaces the file at once; a failure is logged, because a node without it works too."""
    path = data / NAME
    part = path.with_suffix(".part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(book.page()))
        os.replace(part, path)
    except OSError as error:
        log.warning("%s can't be written: %s", path, error)


async def keep(data: Path, book: Book) -> None:
    """Write the book when it has changed, until cancelled, and then once more."""
    written = book.changes
    try:
        while True:
            await trio.sleep(EVERY_S if len(book.peers()) >= FEW else SOON_S)
            if book.changes != written:
                written = book.changes
                await trio.to_thread.run_sync(save, data, book)
    finally:
        if book.changes != written:
            save(data, book)
