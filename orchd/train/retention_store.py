"""Retention sets: what a base is known to answer, by the base's fingerprint. No torch.

A line is a prompt and the base's own answer. The demo base's set is shipped; of another base it is made by the first
job that needs it, once, and kept for all that follow.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from orchd.errors import DatasetUnusable

SHIPPED: Final = Path(__file__).parent / "base" / "retention"


class Kept(msgspec.Struct, frozen=True):
    """A prompt and what the base answers to it."""

    prompt: str
    answer: str


class RetentionSets:
    """In `folder`, by fingerprint. Several jobs may make the same one: the first that is kept stays."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, fingerprint: str) -> str:
        """The file, or empty where there is none yet."""
        places = (SHIPPED / f"{fingerprint}.jsonl", self._folder / f"{fingerprint}.jsonl")
        return next((str(place) for place in places if place.is_file()), "")

    def keep_made(self, fingerprint: str, made: str) -> None:
        """As `keep`, of what may be nothing, or gone with the process that made it: then the next job makes it."""
        if fingerprint and made:
            with contextlib.suppress(OSError):
                self.keep(fingerprint, made)

    def keep(self, fingerprint: str, made: Path | str) -> None:
        """Take in what a worker made, if there is none. Raises OSError."""
        if self.path(fingerprint):
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = self._folder / f"{fingerprint}.jsonl"
        draft = target.with_suffix(f".{os.getpid()}.new")
        shutil.copyfile(made, draft)
        os.replace(draft, target)


def is_shipped(fingerprint: str) -> bool:
    """Whether it is the demo base, whose set comes with orchd."""
    return (SHIPPED / f"{fingerprint}.jsonl").is_file()


def read(path: Path) -> list[Kept]:
    """Raises `DatasetUnusable`."""
    try:
        return [msgspec.json.decode(line, type=Kept) for line in path.read_bytes().splitlines()]
    except (OSError, msgspec.DecodeError) as error:
        hint = f"Remove {path} and start again: it is made anew."
        raise DatasetUnusable(f"the retention set {path.name}: {error}", hint=hint) from error


def write(path: Path, rows: Iterable[Kept]) -> None:
    """Whole or not at all."""
    draft = path.with_suffix(".new")
    draft.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    os.replace(draft, path)
