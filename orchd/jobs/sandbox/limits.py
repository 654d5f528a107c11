"""Memory and priority: a job may be slow, and may fail; the machine stays usable."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from pathlib import Path

from orchd import units

SHARE = 0.9
"""Of the machine's memory, or of the container's, that a job may fill unless the settings name another limit."""

FIRST_TO_GO = "500"
"""Of 1000: where memory runs out all the same, the kernel ends the worker and not the daemon."""

ASKED_FOR = re.compile(r"[tT]ried to allocate (?:(?P<bytes>\d+) bytes|(?P<words>[\d.]+ [KMG]iB))")
"""As torch says it: on the processor, and on a GPU."""

NO_THREAD = "can't start new thread"
"""As Python says it where there is no memory for the stack of one."""

IN_USE = re.compile(r"^VmData:\s+(\d+) kB", re.MULTILINE)

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def automatic_bytes() -> int:
    """What a job may fill when nobody said how much; 0 where the size of the memory is not known."""
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0
    for name in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            whole = min(whole, int(Path(name).read_text(encoding="ascii")))
    return int(whole * SHARE)


def limit_memory(size: int) -> str:
    """At most `size` bytes of memory of its own, mapped files not counted: more is a MemoryError.

    Raises OSError where the system has no such limit: macOS has the call and doesn't keep to it.
    """
    if sys.platform != "linux":
        raise OSError(0, f"{sys.platform} has no limit that holds")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    size = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    return f"{size / 1e9:.1f} GB"


def shortage(error: Exception) -> str | None:
    """How much memory was missing, in words; None for an error of another kind."""
    said = ASKED_FOR.search(str(error))
    if not isinstance(error, MemoryError) and said is None and NO_THREAD not in str(error):
        return None
    asked = left = ""
    if said is not None and said["bytes"]:
        more, free = int(said["bytes"]), room()
        asked = f": {units.size(more)} more were asked for"
        left = f"; at least {units.size(more - free)} were missing" if free is not None and more > free else ""
    elif said is not None:
        asked = f": {said['words']} more"
    return f"there was not enough memory{asked}{_used()}{left}"


def room() -> int | None:
    """Bytes that this process may still fill before its limit; None where it has none, or the kernel doesn't tell."""
    limit, used = resource.getrlimit(resource.RLIMIT_DATA)[0], _in_use()
    return None if used is None or limit == resource.RLIM_INFINITY else max(0, limit - used)


def _used() -> str:
    """What is in use of the limit, where the kernel tells it."""
    limit, used = resource.getrlimit(resource.RLIMIT_DATA)[0], _in_use()
    if used is None or limit == resource.RLIM_INFINITY:
        return ""
    return f", with {units.size(used)} in use of {units.size(limit)} that it may fill"


def _in_use() -> int | None:
    """Bytes that count against the limit."""
    try:
        used = IN_USE.search(Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        return None
    return None if used is None else int(used[1]) * 1024


def lower_priority(nice: int) -> str:
    """Be behind everything else, at the processor and at the disk (whose priority follows), and dump no memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO, encoding="ascii")
    return f"nice {os.nice(nice)}"
