"""The words of relays and of hole punching. Sans-I/O: bytes in, values out.

Circuit Relay v2 (https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md) and DCUtR (…/relay/DCUtR.md): small
protobuf messages, each behind its length as a varint. They are read by hand, because the library's package for them
brings along five thousand lines that orchd does not use (`lean.py`) and enforces few of its limits. Unknown fields are
passed over, as protobuf wants; addresses that are none, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum

import msgspec
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.errors import PeerMisbehaved

HOP, STOP, DCUTR = "/libp2p/circuit/relay/0.2.0/hop", "/libp2p/circuit/relay/0.2.0/stop", "/libp2p/dcutr"
#: Bytes of one message, addresses in one, and bytes of a peer id, at most.
MESSAGE_LIMIT, ADDRESSES_LIMIT, PEER_ID_LIMIT = 4096, 16, 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Status(IntEnum):
    """Of an answer."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


class Limit(msgspec.Struct, frozen=True):
    """Of one circuit: seconds, and bytes in both directions together. 0 is none."""

    duration: int
    data: int


class Reserve(msgspec.Struct, frozen=True):
    """To a relay: let others reach me through you."""


class Connect(msgspec.Struct, frozen=True):
    """To a relay: connect me with `peer`. From a relay: `peer` wants you, within `limit`."""

    peer: ID
    limit: Limit | None = None


class Answer(msgspec.Struct, frozen=True):
    """`expire` is in seconds since 1970, `addresses` are the relay's: both of a reservation. `status` may be one that
    this version does not know."""

    status: int
    expire: int = 0
    addresses: tuple[Multiaddr, ...] = ()
    limit: Limit | None = None


class Meet(msgspec.Struct, frozen=True):
    """DCUtR's CONNECT: where the sender may be reached from outside."""

    addresses: tuple[Multiaddr, ...]


class Now(msgspec.Struct, frozen=True):
    """DCUtR's SYNC: dial."""


Hop = Reserve | Connect | Answer
Stop = Connect | Answer
Punch = Meet | Now


# ---- out -----------------------------------------------------------------------------------------------------


def encode_hop(message: Hop) -> bytes:
    """With its length."""
    match message:
        case Reserve():
            return _framed(_number(1, 0))
        case Connect(peer=peer):
            return _framed(_number(1, 1) + _bytes(2, _bytes(1, peer.to_bytes())))
        case Answer():
            reservation = b""
            if message.expire:
                reservation = _bytes(3, _number(1, message.expire) + _addresses(2, message.addresses))
            return _framed(_number(1, 2) + reservation + _limit(4, message.limit) + _number(5, message.status))


def encode_stop(message: Stop) -> bytes:
    """With its length."""
    if isinstance(message, Connect):
        return _framed(_number(1, 0) + _bytes(2, _bytes(1, message.peer.to_bytes())) + _limit(3, message.limit))
    return _framed(_number(1, 1) + _number(4, message.status))


def encode_punch(message: Punch) -> bytes:
    """With its length."""
    if isinstance(message, Meet):
        return _framed(_number(1, 100) + _addresses(2, message.addresses))
    return _framed(_number(1, 300))


def _framed(body: bytes) -> bytes:
    return _varint(len(body)) + body


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def _addresses(field: int, addresses: Iterable[Multiaddr]) -> bytes:
    return b"".join(_bytes(field, address.to_bytes()) for address in list(addresses)[:ADDRESSES_LIMIT])


def _limit(field: int, limit: Limit | None) -> bytes:
    return _bytes(field, _number(1, limit.duration) + _number(2, limit.data)) if limit else b""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# ---- in ------------------------------------------------------------------------------------------------------


def decode_hop(body: bytes) -> Hop:
    """Raises `PeerMisbehaved`."""
    fields = _Fields(body)
    match fields.number(1):
        case 0:
            return Reserve()
        case 1:
            return Connect(fields.peer(2))
        case 2:
            reservation = fields.inner(3)
            addresses = reservation.addresses(2)
            return Answer(fields.number(5, 0), reservation.number(1, 0), addresses, fields.limit(4))
    raise PeerMisbehaved("no message to a relay")


def decode_stop(body: bytes) -> Stop:
    """Raises `PeerMisbehaved`."""
    fields = _Fields(body)
    match fields.number(1):
        case 0:
            return Connect(fields.peer(2), fields.limit(3))
        case 1:
            return Answer(fields.number(4, 0))
    raise PeerMisbehaved("no message of a relay")


def decode_punch(body: bytes) -> Punch:
    """Raises `PeerMisbehaved`."""
    fields = _Fields(body)
    match fields.number(1):
        case 100:
            return Meet(fields.addresses(2))
        case 300:
            return Now()
    raise PeerMisbehaved("no message of hole punching")


class _Fields:
    """A protobuf message, by field. Raises `PeerMisbehaved` for what is none, or lacks what is asked for."""

    def __init__(self, body: bytes) -> None:
        self._found: dict[int, list[int | bytes]] = {}
        for field, value in _parse(body):
            self._found.setdefault(field, []).append(value)

    def number(self, field: int, default: int | None = None) -> int:
        value = self._found.get(field, [default])[-1]
        if not isinstance(value, int):
            raise PeerMisbehaved(f"field {field} of a message is no number")
        return value

    def blob(self, field: int) -> bytes:
        value = self._found.get(field, [b""])[-1]
        if not isinstance(value, bytes):
            raise PeerMisbehaved(f"field {field} of a message is not made of bytes")
        return value

    def inner(self, field: int) -> _Fields:
        return _Fields(self.blob(field))

    def peer(self, field: int) -> ID:
        id = self.inner(field).blob(1)
        if not 0 < len(id) <= PEER_ID_LIMIT:
            raise PeerMisbehaved(f"a peer id of {len(id)} bytes")
        return ID(id)

    def limit(self, field: int) -> Limit | None:
        fields = self.inner(field)
        return Limit(fields.number(1, 0), fields.number(2, 0)) if field in self._found else None

    def addresses(self, field: int) -> tuple[Multiaddr, ...]:
        found = []
        for value in self._found.get(field, [])[:ADDRESSES_LIMIT]:
            try:
                address = Multiaddr(value)
                str(address)  # it is read only now
            except Exception:
                continue
            found.append(address)
        return tuple(found)


def _parse(body: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(body):
        tag, at = _read_varint(body, at)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _read_varint(body, at)
            yield field, value
            continue
        if kind == _BYTES:
            size, at = _read_varint(body, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise PeerMisbehaved(f"a message with wire type {kind}")
        if at + size > len(body):
            raise PeerMisbehaved("a message that ends within a field")
        yield field, body[at : at + size]
        at += size


def _read_varint(body: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(body):
            break
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise PeerMisbehaved("a message that ends within a number, or has one of too many bytes")
