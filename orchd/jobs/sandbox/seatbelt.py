"""macOS: the profile of `sandbox-exec`, taken on by the process itself (`sandbox_init`, as that program does).

The call is marked deprecated, and Apple's own programs and every browser use it. The authors had no Mac: whether it
works there is what each job tries (`confine.look_around`) and tells.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from pathlib import Path

from orchd.jobs.sandbox.report import Sockets

CLOSED = ("/Users", "/Volumes", "/private/tmp", "/private/var/folders", "/private/var/root")
"""Where people's files lie. The rest of the system stays readable: Metal and the linker read in many places."""


def profile(read: Iterable[Path], write: Sequence[Path], *, sockets: Sockets) -> str:
    """The rules in Apple's language; of those that fit the last one counts."""
    lines = ["(version 1)", "(allow default)", "(deny network*)"]
    if sockets == "own":
        lines += [f"(allow network-bind network-inbound (subpath {_quoted(path)}))" for path in write]
    if sockets == "unix":
        lines += [f"(allow network* (subpath {_quoted(path)}))" for path in write]
    if sockets == "loopback":
        lines.append('(allow network* (local ip "localhost:*") (remote ip "localhost:*"))')
    lines += [f"(deny file-read-data (subpath {_quoted(path)}))" for path in CLOSED]
    lines += [f"(allow file-read* (subpath {_quoted(path)}))" for path in read]
    lines += ["(deny file-write*)", '(allow file-write* (literal "/dev/null"))']
    lines += [f"(allow file-read* file-write* (subpath {_quoted(path)}))" for path in write]
    return "\n".join(lines)


def restrict(read: Iterable[Path], write: Sequence[Path], *, sockets: Sockets) -> None:
    """Take the profile on, for this process and its children. Raises OSError with the system's own words."""
    library = ctypes.CDLL("/usr/lib/libSystem.dylib")
    told = ctypes.c_char_p()
    rules = profile(read, write, sockets=sockets).encode()
    if library.sandbox_init(ctypes.c_char_p(rules), ctypes.c_uint64(0), ctypes.byref(told)) != 0:
        raise OSError(0, (told.value or b"sandbox_init refused the profile").decode(errors="replace"))


def _quoted(path: str | Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
