"""A record of everything that leaves this process before it is encrypted, for the suspicious and for the tests.

One file a stream, `<number>-<protocol>.bin`, with the bytes that were written to it, whatever the protocol (ours,
identify, Kademlia, ping, the negotiation before each); mDNS packets as `<number>-mdns.bin`; and `connects.txt`, one
line for every connection, datagram and name look-up that any library in this process began.
"""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from typing import Any

from libp2p.abc import INotifee

from orchd.errors import ConfigInvalid

#: Audit events of CPython that reach outside (https://docs.python.org/3/library/audit_events.html).
EVENTS = {
    "socket.connect": "connect",
    "socket.sendto": "send",
    "socket.sendmsg": "send",
    "socket.getaddrinfo": "resolve",
    "socket.gethostbyname": "resolve",
}


class Capture:
    """Writes into `folder`, which is made when it is not there. Raises `ConfigInvalid`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count(1)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _audit_into(folder / "connects.txt")
        except OSError as error:
            why = f"net.capture = {str(folder)!r}: nothing can be written there: {error.strerror}"
            raise ConfigInvalid(
                why, hint="Give a folder that is yours, or one to be made.", field="net.capture"
            ) from None

    def notifee(self) -> INotifee:
        """What a swarm tells of its new streams."""
        return _StreamTap(self)

    def file(self, label: str) -> _File:
        return _File(self.folder, next(self._numbers), label)

    def mdns(self, packet: bytes) -> None:
        self.file("mdns").write(packet)


class _File:
    """Opened for each write, so that a thousand streams hold no descriptor and a crash loses nothing."""

    def __init__(self, folder: Path, number: int, label: str) -> None:
        self._folder, self._number = folder, number
        self._path = self._named(label)

    def _named(self, label: str) -> Path:
        return self._folder / f"{self._number:06d}-{re.sub(r'[^A-Za-z0-9.]+', '_', label).strip('_')}.bin"

    def rename(self, label: str) -> None:
        path = self._named(label)
        if self._path.exists():
            self._path.rename(path)
        self._path = path

    def write(self, data: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(data)


class _StreamTap(INotifee):
    """Listens at the one method that every stream's bytes go through."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    async def opened_stream(self, network: Any, stream: Any) -> None:
        file = self._capture.file("unnamed")
        write, set_protocol = stream.write, stream.set_protocol

        async def recorded_write(data: bytes) -> None:
            file.write(data)
            await write(data)

        def named(protocol: Any) -> None:
            file.rename(str(protocol))
            set_protocol(protocol)

        stream.write, stream.set_protocol = recorded_write, named

    async def closed_stream(self, network: Any, stream: Any) -> None:
        pass

    async def connected(self, network: Any, conn: Any) -> None:
        pass

    async def disconnected(self, network: Any, conn: Any) -> None:
        pass

    async def listen(self, network: Any, multiaddr: Any) -> None:
        pass

    async def listen_close(self, network: Any, multiaddr: Any) -> None:
        pass


_audit_files: set[Path] = set()
_audit_hooked = False


def _audit_into(path: Path) -> None:
    """An audit hook can't be removed, so there is one a process, and it writes to the files that are wanted."""
    global _audit_hooked
    path.touch()
    _audit_files.add(path)
    if not _audit_hooked:
        _audit_hooked = True
        sys.addaudithook(_audit)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in EVENTS or not _audit_files:
        return
    target = arguments[0] if EVENTS[event] == "resolve" else arguments[1]
    line = f"{EVENTS[event]} {target!r}\n"
    for path in tuple(_audit_files):
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError:
            _audit_files.discard(path)
