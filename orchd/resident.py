"""Memory that only the start needed is given back.

A quarter of an idle daemon's resident memory was DuckDB's program code: the kernel maps sixteen pages around each one
that is touched, and the start touches most of it. Such pages are the file's own, unchanged; without them the process
goes on, and what it touches again is mapped again, mostly from the page cache.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

LOG = logging.getLogger(__name__)
#: After the start, and then so often, in seconds: what is done once a day needs its code once a day.
EVERY_S = 600.0
#: Of Linux (<sys/mman.h>).
MADV_DONTNEED = 4
MAPS = Path("/proc/self/smaps")


@dataclass(frozen=True)
class Mapping:
    """A range of addresses as the kernel tells of it; `resident` and `own` (changed, or swapped out) in bytes."""

    start: int
    end: int
    permissions: str
    file: str
    resident: int
    own: int

    @property
    def is_code(self) -> bool:
        """Whether it is a library's, cannot be written, and is to the last page what lies in the file."""
        return ".so" in self.file and "w" not in self.permissions and not self.own


async def run() -> None:
    """Until cancelled."""
    while True:
        LOG.debug("%d bytes of code given back", await trio.to_thread.run_sync(give_back))
        await trio.sleep(EVERY_S)


def give_back() -> int:
    """Let go of libraries' resident code; bytes. Nothing where the system is not Linux."""
    if sys.platform != "linux":
        return 0
    try:
        found = [one for one in mappings(MAPS.read_text("utf-8", "replace")) if one.is_code and one.resident]
        madvise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError) as error:  # a kernel or a C library without it
        LOG.debug("code can't be given back: %s", error)
        return 0
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return sum(one.resident for one in found if madvise(one.start, one.end - one.start, MADV_DONTNEED) == 0)


def mappings(text: str) -> Iterator[Mapping]:
    """Of a process, as in /proc/PID/smaps (https://docs.kernel.org/filesystems/proc.html)."""
    head: list[str] = []
    figures: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split(None, 5)
        if not words[0].endswith(":"):
            head, figures = words, {}
        elif line.endswith(" kB"):
            figures[words[0]] = int(words[1]) * 1024
        elif words[0] == "VmFlags:" and len(head) == 6:
            start, end = (int(one, 16) for one in head[0].split("-"))
            own = figures.get("Anonymous:", 0) + figures.get("Swap:", 0)
            yield Mapping(start, end, head[1], head[5], figures.get("Rss:", 0), own)
