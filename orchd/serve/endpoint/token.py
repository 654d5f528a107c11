"""The endpoint's token: 32 random bytes as text, in a file that only its owner may read."""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path

from orchd.errors import TokenFileRefused

TOKEN_BYTES = 32
TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")


def read_or_make(path: Path) -> str:
    """The token in `path`, made anew where nothing is. Raises TokenFileRefused."""
    try:
        return _read(path)
    except FileNotFoundError:
        return _make(path)
    except OSError as error:
        raise TokenFileRefused(f"{path} can't be read: {error.strerror}", field="token_file") from None


def _read(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise TokenFileRefused(f"{path} is no file that you alone may read", field="token_file")
        text = file.read(1024).decode("latin-1").strip()
    if not TOKEN.fullmatch(text):
        told = "holds no token: 16 to 512 letters, digits and . _ ~ + / = - in one line"
        hint = "Name a file that isn't there yet, and one is made."
        raise TokenFileRefused(f"{path} {told}", hint=hint, field="token_file")
    return text


def _make(path: Path) -> str:
    token = secrets.token_urlsafe(TOKEN_BYTES)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(token + "\n")
    except OSError as error:
        raise TokenFileRefused(f"{path} can't be made: {error.strerror}", field="token_file") from None
    return token
