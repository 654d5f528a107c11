"""The paths that every job may use: Python and its libraries, the kernel's tables, the devices that compute."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

SYSTEM = (
    *("/usr", "/lib", "/lib64", "/bin", "/sbin", "/nix/store", "/opt/cuda", "/opt/rocm"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/OpenCL"),
    "/sys",
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/loadavg", "/proc/filesystems"),
    *("/proc/sys/kernel", "/proc/sys/vm", "/proc/driver", "/proc/devices"),
)
"""Read only. Not there: /proc itself (command lines of others), /etc/passwd, /run (it has sockets), /dev/shm."""

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/dri", "/dev/kfd", "/dev/dxg")
GPUS = "nvidia*"

WEIGHTS = frozenset({".safetensors", ".gguf"})
CACHE_FOLDER = "blobs"
"""The Hugging Face cache keeps files there, and links to them in the folder of a model."""

MOST_LINKS = 1000


def python(workdir: Path) -> Iterator[Path]:
    """Where this Python, its libraries and orchd itself lie, but no folder that holds the jobs' own or somebody's home.

    Raises nothing: a folder on the path that is not there is left out by whoever opens it.
    """
    yield Path(__file__).resolve().parents[2]
    yield Path(sys.executable).resolve().parent
    private = {workdir, Path.home(), Path("/")}
    for entry in dict.fromkeys((sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, *sys.path)):
        path = Path(entry).resolve()
        if entry and not any(folder.is_relative_to(path) for folder in private):
            yield path
    for entry in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep):
        if entry.startswith("/"):
            yield Path(entry)


def system() -> list[Path]:
    return [Path(name) for name in SYSTEM]


def devices() -> list[Path]:
    return [*map(Path, DEVICES), *Path("/dev").glob(GPUS)]


def with_links(paths: Iterable[Path]) -> Iterator[Path]:
    """`paths`, and the files that links directly in these folders lead to, where those are weights or lie in a Hugging
    Face cache: a link to anything else is not followed."""
    for path in paths:
        yield path
        if not path.is_dir():
            continue
        for number, entry in enumerate(os.scandir(path)):
            if number == MOST_LINKS:
                break
            if entry.is_symlink():
                target = Path(entry.path).resolve()
                if target.is_file() and (target.suffix in WEIGHTS or target.parent.name == CACHE_FOLDER):
                    yield target
