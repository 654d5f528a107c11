"""Landlock (Linux 5.13 and later): the process gives up all files but those below paths that it names.

No rights are needed, and nothing gets them back. Source: `include/uapi/linux/landlock.h`,
https://docs.kernel.org/userspace-api/landlock.html. Plain system calls: their numbers are the same on every
architecture, and the one Python binding is a development release.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
ASK_VERSION = 1
PATH_BENEATH = 1
PR_SET_NO_NEW_PRIVS = 38

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE = 1 << 4, 1 << 5
MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_SYM = 1 << 7, 1 << 8, 1 << 9, 1 << 12
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

READ = EXECUTE | READ_FILE | READ_DIR
WRITE = READ_FILE | READ_DIR | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | TRUNCATE
DEVICE = READ_FILE | READ_DIR | WRITE_FILE | IOCTL_DEV
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
ABSTRACT_SOCKETS, SIGNALS = 1 << 0, 1 << 1


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """The kernel's version of Landlock. Raises OSError where there is none, or it is switched off."""
    return _call(CREATE_RULESET, None, ctypes.c_size_t(0), ASK_VERSION)


def restrict(
    read: Iterable[Path],
    write: Iterable[Path],
    devices: Iterable[Path],
    *,
    tcp: bool = False,
    listen: bool = False,
) -> tuple[int, list[int]]:
    """Leave only these paths to this process and its children, and no signals or sockets of others.

    Paths that are not there are left out. `tcp`: TCP is left as it is. `listen`: Unix sockets can
    be made in the folders to write to. Returns the kernel's version of Landlock, and
    descriptors to keep open: without them the kernel may forget a rule for a folder of `/proc`. Raises OSError.
    """
    abi = version()
    handled = _handled(abi)
    ruleset = _Ruleset(
        handled,
        0 if tcp or abi < 4 else BIND_TCP | CONNECT_TCP,
        0 if abi < 6 else ABSTRACT_SOCKETS | SIGNALS,
    )
    size = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}.get(abi, ctypes.sizeof(ruleset))
    rules = _call(CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), 0)
    kept: list[int] = []
    try:
        writing = WRITE | (MAKE_SOCK if listen else 0)
        for paths, rights in ((read, READ), (write, writing), (devices, DEVICE)):
            for path in paths:
                kept += _allow(rules, path, rights & handled)
        _check(_libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _call(RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)
    return abi, kept


def _handled(abi: int) -> int:
    """Every right over files that this version knows; what is handled and not allowed is refused."""
    return (1 << (13 if abi == 1 else 14 if abi == 2 else 15 if abi < 5 else 16)) - 1


def _allow(rules: int, path: Path, rights: int) -> list[int]:
    """Returns the descriptor of the path if it has to stay open."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= OF_A_FILE
        rule = _PathBeneath(rights, descriptor)
        _call(ADD_RULE, rules, PATH_BENEATH, ctypes.byref(rule), 0)
        if path.is_relative_to("/proc"):
            return [os.dup(descriptor)]
        return []
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    return _check(_libc().syscall(ctypes.c_long(number), *arguments))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
