"""A home router: translates addresses between a private network and the outside.

Kernels that build this may lack netfilter, so it is done here, on raw frames. Every port inside gets one port outside,
whoever it speaks to (endpoint-independent mapping, RFC 4787), and from outside only what answers comes in: the very
address and port that was spoken to before (address- and port-dependent filtering, the strict kind). TCP alone.

    python -m tests.net.ways.router OUTSIDE INSIDE ADDRESS MAC_OUTSIDE MAC_INSIDE

names the two interfaces, its own address outside, and the Ethernet addresses of whoever is beyond each of them.
"""

from __future__ import annotations

import array
import select
import socket
import struct
import sys
from dataclasses import dataclass, field

ETHERNET, IPV4, TCP = 14, 0x0800, 6
FIRST_PORT = 40_000

#: Address and port.
End = tuple[bytes, int]


@dataclass
class Segment:
    """One TCP segment in its IPv4 packet."""

    packet: bytearray

    @classmethod
    def read(cls, frame: bytes) -> Segment | None:
        packet = bytearray(frame[ETHERNET:])
        if struct.unpack_from("!H", frame, 12)[0] != IPV4 or len(packet) < 40 or packet[9] != TCP:
            return None
        (length,) = struct.unpack_from("!H", packet, 2)
        return cls(packet[:length])

    @property
    def head(self) -> int:
        return (self.packet[0] & 15) * 4

    def end(self, which: int) -> End:
        """0 is where it comes from, 1 where it goes."""
        (port,) = struct.unpack_from("!H", self.packet, self.head + 2 * which)
        return bytes(self.packet[12 + 4 * which : 16 + 4 * which]), port

    def put(self, which: int, end: End) -> None:
        self.packet[12 + 4 * which : 16 + 4 * which] = end[0]
        struct.pack_into("!H", self.packet, self.head + 2 * which, end[1])

    def seal(self) -> bytes:
        """With the sums right: what comes from this kernel's own sockets has none yet."""
        self.packet[10:12] = b"\0\0"
        struct.pack_into("!H", self.packet, 10, checksum(bytes(self.packet[: self.head])))
        body = self.packet[self.head :]
        body[16:18] = b"\0\0"
        pseudo = bytes(self.packet[12:20]) + struct.pack("!BBH", 0, TCP, len(body))
        struct.pack_into("!H", self.packet, self.head + 16, checksum(pseudo + bytes(body)))
        return bytes(self.packet)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    words = array.array("H", data + b"\0" * (len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return socket.htons(~total & 0xFFFF)


@dataclass
class Table:
    """What the router remembers."""

    address: bytes
    ports: dict[End, int] = field(default_factory=dict)
    inside: dict[int, End] = field(default_factory=dict)
    spoken_to: set[tuple[int, End]] = field(default_factory=set)

    def outwards(self, segment: Segment) -> bytes:
        here, there = segment.end(0), segment.end(1)
        if here not in self.ports:
            self.ports[here] = FIRST_PORT + len(self.ports)
            self.inside[self.ports[here]] = here
        port = self.ports[here]
        self.spoken_to.add((port, there))
        segment.put(0, (self.address, port))
        return segment.seal()

    def inwards(self, segment: Segment) -> bytes | None:
        there, (address, port) = segment.end(0), segment.end(1)
        if address != self.address or (port, there) not in self.spoken_to:
            return None
        segment.put(1, self.inside[port])
        return segment.seal()


def run(outside: str, inside: str, address: str, beyond_outside: str, beyond_inside: str) -> None:
    table = Table(socket.inet_aton(address))
    sockets = {name: opened(name) for name in (outside, inside)}
    beyond = {outside: mac(beyond_outside), inside: mac(beyond_inside)}
    print("routing", flush=True)
    while True:
        for ready in select.select(list(sockets.values()), [], [])[0]:
            frame, (name, _, kind, *_) = ready.recvfrom(1 << 16)
            segment = Segment.read(frame)
            if segment is None or kind == socket.PACKET_OUTGOING:
                continue
            to = inside if name == outside else outside
            packet = table.inwards(segment) if name == outside else table.outwards(segment)
            if packet is not None:
                own = sockets[to].getsockname()[4]
                sockets[to].send(beyond[to] + own + struct.pack("!H", IPV4) + packet)


def opened(name: str) -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(IPV4))
    raw.bind((name, IPV4))
    return raw


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


if __name__ == "__main__":
    run(*sys.argv[1:])
