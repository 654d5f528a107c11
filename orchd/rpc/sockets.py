"""The Unix socket: who may reach it, whether another daemon has it, and what a dead one left behind."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchd.errors import HomeBusy, SocketRefused

BACKLOG = 128
LOCAL_PEERCRED, LOCAL_PEERPID, SOL_LOCAL = 0x001, 0x002, 0
"""macOS: sys/un.h"""


class WithOptions(Protocol):
    """A connected socket, the standard library's or trio's."""

    def getsockopt(self, level: int, option: int, length: int, /) -> bytes: ...


@dataclass(frozen=True)
class Bound:
    """A listening socket and the lock that says it is ours. `release` when done."""

    socket: socket.socket
    path: Path
    lock: int

    def release(self) -> None:
        """Remove the socket and the lock. Their directory stays ours: in /tmp anybody could take its name."""
        self.path.unlink(missing_ok=True)
        self.socket.close()
        _unlock(self.path, self.lock)


def bind(path: Path) -> Bound:
    """Listen at `path`: mode 0600 in a directory of mode 0700 that this user owns.

    A socket that nobody listens on any more is replaced. Raises `HomeBusy` naming the process that has it, and
    `SocketRefused` when the place isn't safe.
    """
    _prepare_directory(path.parent)
    lock = _lock(path)
    try:
        _remove_stale(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(str(path))
            os.chmod(path, 0o600)
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
    except BaseException:
        _unlock(path, lock)
        raise
    return Bound(listening, path, lock)


def peer_uid(connection: WithOptions) -> int:
    """The user id of the process at the other end, from the kernel."""
    if sys.platform == "linux":
        return _linux_credentials(connection)[1]
    data = connection.getsockopt(SOL_LOCAL, LOCAL_PEERCRED, struct.calcsize("IIh16I"))
    return int(struct.unpack_from("II", data)[1])


def peer_pid(connection: WithOptions) -> int:
    """The process id at the other end."""
    if sys.platform == "linux":
        return _linux_credentials(connection)[0]
    return int(struct.unpack("i", connection.getsockopt(SOL_LOCAL, LOCAL_PEERPID, 4))[0])


def _linux_credentials(connection: WithOptions) -> tuple[int, int, int]:
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", data)
    return pid, uid, gid


def _prepare_directory(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise SocketRefused(f"{folder} is no directory of this user (uid {os.geteuid()})")
    if stat.S_IMODE(status.st_mode) != 0o700:
        os.chmod(folder, 0o700)


def _lock(path: Path) -> int:
    """Hold the lock file beside the socket for as long as this process lives.

    Who held it before may have removed it after we opened it (`_unlock`): then we hold a file that nobody else will
    ever see, and begin again.
    """
    while True:
        lock = os.open(_lock_file(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(lock, 32).decode(errors="replace").strip()
            os.close(lock)
            raise HomeBusy(f"a daemon already runs here: process {holder or 'unknown'} holds {path}") from None
        if _is_in_place(path, lock):
            os.ftruncate(lock, 0)
            os.write(lock, f"{os.getpid()}\n".encode())
            return lock
        os.close(lock)


def _unlock(path: Path, lock: int) -> None:
    """Remove the lock file while it is still held, then let go of it. One that somebody else made since is left."""
    if _is_in_place(path, lock):
        _lock_file(path).unlink(missing_ok=True)
    os.close(lock)


def _is_in_place(path: Path, lock: int) -> bool:
    """Whether the file that is held is the one that others find beside the socket."""
    try:
        return os.path.samestat(os.fstat(lock), _lock_file(path).lstat())
    except FileNotFoundError:
        return False


def _lock_file(path: Path) -> Path:
    return path.with_suffix(".lock")


def _remove_stale(path: Path) -> None:
    """Make room where a dead daemon left its socket. A living one is left alone, even if its lock file was removed."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise SocketRefused(f"{path} exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        raise HomeBusy(f"a daemon already runs here: process {peer_pid(probe)} listens on {path}")
