"""A system call filter through libseccomp (2.4 and later): no sockets, nothing that reaches into other processes.

The library is on every system that has systemd, apt, dnf or pacman. It is called by ctypes; its Python bindings are the
distributions' own or unkept. What is refused gets EACCES, as a file without rights would, and the job goes on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket

from orchd.jobs.sandbox.report import Sockets

ALLOW = 0x7FFF0000
MASKED_EQUAL, GREATER_OR_EQUAL = 7, 5
TSYNC = 4
"""Attribute: the filter is for every thread of the process."""

TYPE_MASK, INT_MASK = 0xF, 0xFFFFFFFF
NEW_USER_NAMESPACE = 0x10000000
FAMILIES = 64
"""Linux knows 46 address families (`include/linux/socket.h`)."""

LOOPBACK_FAMILIES = (socket.AF_INET, socket.AF_INET6, 16)
"""16: netlink, by which gloo asks for the addresses of `lo`."""

OTHER_PROCESSES = ("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "perf_event_open", "bpf")
AROUND_THE_FILTER = ("io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "open_by_handle_at")
KEYS = ("add_key", "request_key", "keyctl")
NAMESPACES = (
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "mount_setattr"),
    *("fsopen", "fsconfig", "fsmount", "fspick"),
)
THE_SYSTEM = (
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff"),
    *("settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname", "quotactl", "acct"),
    *("iopl", "ioperm", "syslog"),
)
CONNECTIONS = ("connect", "bind", "listen", "accept", "accept4")


class _Compare(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def restrict(sockets: Sockets) -> None:
    """Put the filter in force, for this process and its children. Only `sockets` can be made.

    Raises OSError where the library or the kernel can't.
    """
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        raise OSError(errno.ENOENT, "this system has no libseccomp") from None
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ALLOW)))
    if not context:
        raise OSError(errno.ENOSYS, "libseccomp can't make a filter here")
    try:
        _check(library.seccomp_attr_set(context, TSYNC, ctypes.c_uint32(1)))
        for call in (*OTHER_PROCESSES, *AROUND_THE_FILTER, *KEYS, *NAMESPACES, *THE_SYSTEM):
            _refuse(library, context, call)
        # Its flags can't be seen by a filter; glibc then uses clone, whose can.
        _refuse(library, context, "clone3", error=errno.ENOSYS)
        _refuse(library, context, "clone", _Compare(0, MASKED_EQUAL, NEW_USER_NAMESPACE, NEW_USER_NAMESPACE))
        _sockets(library, context, sockets)
        _check(library.seccomp_load(context))
    finally:
        library.seccomp_release(context)


def _sockets(library: ctypes.CDLL, context: ctypes.c_void_p, sockets: Sockets) -> None:
    """A pair of datagram sockets could be connected to any socket that has a name; pairs of streams can't.

    Who only listens makes streams and connects none; where the socket may lie is for `landlock` to say.
    """
    _refuse(library, context, "socketpair", _Compare(1, MASKED_EQUAL, TYPE_MASK, socket.SOCK_DGRAM))
    if sockets == "none":
        for call in ("socket", *CONNECTIONS):
            _refuse(library, context, call)
        return
    if sockets == "own":
        _refuse(library, context, "connect")
    if sockets in ("own", "unix"):
        for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_RDM, socket.SOCK_SEQPACKET):
            _refuse(library, context, "socket", _Compare(1, MASKED_EQUAL, TYPE_MASK, kind))
    families = LOOPBACK_FAMILIES if sockets == "loopback" else (socket.AF_UNIX,)
    for family in set(range(FAMILIES)) - set(families):
        _refuse(library, context, "socket", _Compare(0, MASKED_EQUAL, INT_MASK, family))
    _refuse(library, context, "socket", _Compare(0, GREATER_OR_EQUAL, FAMILIES, 0))


def _refuse(
    library: ctypes.CDLL,
    context: ctypes.c_void_p,
    call: str,
    compare: _Compare | None = None,
    error: int = errno.EACCES,
) -> None:
    number = library.seccomp_syscall_resolve_name(call.encode())
    if number < 0:  # unknown to this version or this architecture
        return
    compares = (_Compare * 1)(compare) if compare is not None else None
    action = ctypes.c_uint32(0x00050000 | error)
    _check(library.seccomp_rule_add_array(context, action, number, 1 if compares else 0, compares))


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
