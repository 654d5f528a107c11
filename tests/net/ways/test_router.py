"""The router of these tests lets out everybody and in nothing but answers."""

from __future__ import annotations

import socket
import struct

from tests.net.ways.router import FIRST_PORT, End, Segment, Table, checksum

HERE, THERE, OTHER = ((socket.inet_aton(address), 4001) for address in ("10.0.0.2", "192.0.2.7", "192.0.2.8"))
OUTSIDE = socket.inet_aton("198.51.100.1")


def segment(source: End, target: End, body: bytes = b"odd") -> Segment:
    tcp = struct.pack("!HHIIHHHH", source[1], target[1], 1, 0, 0x5002, 1000, 0, 0) + body
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 7, 0, 64, 6, 0, source[0], target[0])
    read = Segment.read(bytes(12) + struct.pack("!H", 0x0800) + head + tcp + bytes(6))
    assert read is not None
    return read


def test_one_port_for_everybody_and_answers_alone_come_in() -> None:
    table = Table(OUTSIDE)
    for target in (THERE, OTHER):
        assert Segment(bytearray(table.outwards(segment(HERE, target)))).end(0) == (OUTSIDE, FIRST_PORT)
    packet = table.inwards(segment(THERE, (OUTSIDE, FIRST_PORT)))
    assert packet is not None
    assert Segment(bytearray(packet)).end(1) == HERE
    assert table.inwards(segment((THERE[0], 4002), (OUTSIDE, FIRST_PORT))) is None, "another port of it"
    assert table.inwards(segment(THERE, (OUTSIDE, FIRST_PORT + 1))) is None
    assert table.inwards(segment(THERE, HERE)) is None


def test_the_sums_are_right() -> None:
    packet = segment(HERE, THERE).seal()
    assert checksum(packet[:20]) == 0
    assert checksum(packet[12:20] + struct.pack("!BBH", 0, 6, len(packet) - 20) + packet[20:]) == 0
