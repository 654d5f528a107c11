"""Linux namespaces: a network of its own, which has only `lo`, and that one down.

A user needs a user namespace for it (`kernel.unprivileged_userns_clone`, AppArmor and Docker may refuse that); root
takes the network namespace alone, so that files of others stay readable, and gives up every other right.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

NEW_USER, NEW_NETWORK, NEW_IPC = 0x10000000, 0x40000000, 0x08000000
SET_INTERFACE_FLAGS = 0x8914
UP_AND_RUNNING = 0x1 | 0x40
CAPABILITY_VERSION = 0x20080522
READS_ALL_FILES = 1 << 1 | 1 << 2 | 1 << 3
"""CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER: what root has over files."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def leave_the_network(*, loopback: bool) -> str:
    """Move this process into a network namespace of its own; its children are born there. Returns what was made.

    `loopback`: `lo` is up in it, so that the processes of one job can talk. Raises OSError where that is not allowed.
    The process may have one thread only.
    """
    user, group, root = os.geteuid(), os.getegid(), os.geteuid() == 0
    _unshare(NEW_NETWORK | NEW_IPC | (0 if root else NEW_USER))
    if not root:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    if loopback:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SET_INTERFACE_FLAGS, struct.pack("16sH14x", b"lo", UP_AND_RUNNING))
    return "its own, with only lo" + (" (up)" if loopback else "")


def drop_rights() -> None:
    """Give up every capability but, for root, those over files. Raises OSError."""
    kept = READS_ALL_FILES if os.geteuid() == 0 else 0
    libc = ctypes.CDLL(None, use_errno=True)
    held = (_Sets * 2)()
    header = _Header(CAPABILITY_VERSION, 0)
    _check(libc.capget(ctypes.byref(header), held))
    left = held[0].permitted & kept
    header = _Header(CAPABILITY_VERSION, 0)
    _check(libc.capset(ctypes.byref(header), (_Sets * 2)(_Sets(left, left, 0), _Sets(0, 0, 0))))


def _unshare(flags: int) -> None:
    _check(ctypes.CDLL(None, use_errno=True).unshare(flags))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
