"""Two network namespaces and a wire between them that loses, delays, stalls or is cut, as no loopback does.

Each namespace has one end of a pair of virtual Ethernet devices; what comes out at the other ends is carried across by
a thread here, frame by frame. That needs no queueing discipline of the kernel's (`tc netem` is a module that many
lack), and the losses are real: TCP has to find and mend them. It needs root, or what lets it make namespaces.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ETH_P_ALL, CLONE_NEWNET = 3, 0x40000000
#: The call that changes what is left to a card, and what is: checksums, cutting in TCP, cutting in general.
SIOCETHTOOL, SWITCHES = 0x8946, (0x17, 0x1F, 0x24)
#: Addresses of the two ends.
NEAR, FAR = "10.99.0.1", "10.99.0.2"
#: Bytes of the largest frame that the kernel hands over, with what it leaves to a card that is none.
FRAME = 1 << 17


class Wire:
    """`loss` of each frame's chances, `delay_s` seconds each way; `hold` keeps frames back, `cut` drops them all."""

    def __init__(self, near: socket.socket, far: socket.socket, seed: int = 1) -> None:
        self.loss, self.delay_s = 0.0, 0.0
        self.is_held = self.is_cut = False
        self.carried = self.lost = 0
        self._ends = near, far
        self._rng = random.Random(seed)
        self._waiting: list[tuple[float, int, socket.socket, bytes]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wire")
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for end in self._ends:
            end.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            due = self._waiting[0][0] - time.monotonic() if self._waiting and not self.is_held else 0.05
            ready, _, _ = select.select(self._ends, [], [], min(max(due, 0.0), 0.05))
            for end in ready:
                self._take(end)
            while self._waiting and not self.is_held and self._waiting[0][0] <= time.monotonic():
                _, _, out, frame = heapq.heappop(self._waiting)
                with suppress(OSError):  # a full queue loses frames, as wires do
                    out.send(frame)
                self.carried += 1

    def _take(self, end: socket.socket) -> None:
        frame, (_, _, kind, _, _) = end.recvfrom(FRAME)
        if kind == socket.PACKET_OUTGOING:
            return
        if self.is_cut or self._rng.random() < self.loss:
            self.lost += 1
            return
        out = self._ends[1] if end is self._ends[0] else self._ends[0]
        heapq.heappush(self._waiting, (time.monotonic() + self.delay_s, self.carried + len(self._waiting), out, frame))


@contextmanager
def wire() -> Iterator[tuple[Wire, str, str]]:
    """A wire, and the names of the namespaces at its two ends. Raises `OSError` where the kernel gives none."""
    mark = f"o{os.getpid() % 100_000}"
    near, far = f"{mark}n", f"{mark}f"
    laid: Wire | None = None
    try:
        for name, device, address in ((near, f"{mark}a", NEAR), (far, f"{mark}b", FAR)):
            _ip("netns", "add", name)
            _ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", device, "up")
            for words in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
                _ip("-n", name, *words)
            _ip("-n", name, "link", "set", "lo", "up")
            _plain_frames(name)
        laid = Wire(_end(f"{mark}a"), _end(f"{mark}b"))
        yield laid, near, far
    finally:
        if laid is not None:
            laid.close()
        for name, device in ((near, f"{mark}a"), (far, f"{mark}b")):
            for words in (("link", "del", device), ("netns", "del", name)):
                with suppress(OSError):
                    _ip(*words)


def _ip(*words: str) -> None:
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise OSError("the program `ip` is not here") from None
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _plain_frames(name: str) -> None:
    """Frames of 1,500 bytes with checksums, as on a wire; a pair of devices leaves cutting and summing to a card."""

    def change() -> None:
        enter(name)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            for switch in SWITCHES:
                value = ctypes.create_string_buffer(struct.pack("II", switch, 0))
                fcntl.ioctl(any_socket, SIOCETHTOOL, struct.pack("16sP", b"eth0", ctypes.addressof(value)))

    thread = threading.Thread(target=change)
    thread.start()
    thread.join()


def _end(device: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    end.bind((device, 0))
    end.setblocking(False)
    return end


def enter(name: str) -> None:
    """Move this thread into a namespace: what it makes from now on is there."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(Path("/run/netns") / name, os.O_RDONLY)
    try:
        if libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"no way into {name}")
    finally:
        os.close(descriptor)
