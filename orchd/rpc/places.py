"""Paths that a client names. The daemon opens them itself, so they are absolute, and they may lead anywhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from orchd.errors import ParamsInvalid

#: Bytes, as Linux takes them.
LONGEST, LONGEST_NAME = 4095, 255


def absolute(text: str, field: str) -> Path:
    """The path, absolute and possible. Raises `ParamsInvalid`."""
    shown = text if len(text) <= 200 else f"{text[:200]}…"
    if not text.startswith("/"):
        raise ParamsInvalid(f"{field} {shown!r} is not absolute", hint="Give the whole path, from /.", field=field)
    raw = os.fsencode(text)
    if b"\0" in raw or len(raw) > LONGEST or any(len(name) > LONGEST_NAME for name in raw.split(b"/")):
        raise ParamsInvalid(
            f"{field} {shown!r} can be no file's: it is too long, or has a zero byte in it", field=field
        )
    return Path(text)


def folder(path: Path, field: str) -> bool:
    """Whether there is a folder, not a file. Raises `ParamsInvalid` for anything else, and for nothing."""
    mode = _mode(path, field)
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        what = "is neither a file nor a folder" if mode else "is not there"
        raise ParamsInvalid(f"{path} {what}", hint="Check the path: the daemon opens it itself.", field=field)
    return stat.S_ISDIR(mode)


def is_folder(path: Path, field: str) -> bool:
    """Whether there is a folder; nothing needs to be there. Raises `ParamsInvalid` when that can't be seen."""
    return stat.S_ISDIR(_mode(path, field))


def _mode(path: Path, field: str) -> int:
    """As `stat` tells it; 0 when there is nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        hint = "Check who may read it: the daemon opens it itself."
        raise ParamsInvalid(f"{path} can't be looked at: {error.strerror}", hint=hint, field=field) from None
