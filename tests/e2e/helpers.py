"""Watching processes from outside, by events: a pid is waited for with a pidfd, never polled."""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path


def environment_has(pid: int, text: str) -> bool:
    try:
        return text.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def processes_with(text: str) -> dict[int, str]:
    """Every process whose environment or command line holds `text`: its pid and command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if pid != os.getpid() and command and (text in command or environment_has(pid, text)):
                found[pid] = command
    return found


def children(pid: int) -> list[int]:
    """The processes that this one started and that still live."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def wait_gone(pids: list[int], seconds: float) -> list[int]:
    """Wait until these processes have ended; those that have not after `seconds`."""
    waiting: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            waiting[os.pidfd_open(pid)] = pid
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    while waiting:
        ended = poll.poll(seconds * 1000)
        if not ended:
            break
        for descriptor, _ in ended:
            poll.unregister(descriptor)
            os.close(descriptor)
            del waiting[descriptor]
    return list(waiting.values())
