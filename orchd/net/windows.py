"""Corrections to libp2p 0.8.1 that bound what peers make a node keep of what it has not read.

Continues `hardening.py`, whose rules hold here: each names what was seen without it, and has a test in
`tests/net/test_windows.py` that shows the failure without it and its absence with it.

Yamux gives every stream a window: so many bytes may be sent before they are read, 256 KiB at first by its specification
and more where the reader keeps up. Here the windows of one connection grow by `GROWN_EACH` together, those of all by
`GROWN_ALL`; who sends more than its windows loses the connection. What is not read is bounded once more, in sum:
beyond `HELD_ALL` the connection of which the most waits goes.
"""

from __future__ import annotations

import logging
import struct
from typing import Any
from weakref import WeakSet

import trio
from libp2p.stream_muxer.yamux import yamux as yamux_module
from libp2p.stream_muxer.yamux.yamux import (
    DEFAULT_WINDOW_SIZE,
    FLAG_SYN,
    HEADER_SIZE,
    YAMUX_HEADER_FORMAT,
    Yamux,
    YamuxStream,
)

from orchd.net.hardening import Replacement, correction, read_exactly

log = logging.getLogger(__name__)

#: Bytes by which the windows of one connection may grow together, and those of all.
GROWN_EACH, GROWN_ALL = 8 << 20, 64 << 20
#: Bytes that have come and were not read: of one connection, more than its windows together (64 streams of the peer and
#: some of this node's), and of all.
HELD_EACH, HELD_ALL = 32 << 20, 128 << 20
#: What no stream waits for is read in pieces of so many bytes, and thrown away.
PIECE = 64 << 10
#: It has to have come within so many seconds.
SKIP_S = 60.0

_stock_reset, _stock_grow = YamuxStream.reset, YamuxStream._apply_autotune_epoch
_stock_body, _stock_init = Yamux._read_data_body, Yamux.__init__
#: Those that are open.
_connections: WeakSet[Yamux] = WeakSet()


def held_of(connection: Yamux) -> int:
    """Bytes that have come on it and were not read."""
    return sum(map(len, connection.stream_buffers.values()))


@correction
def windows_hold() -> list[Replacement]:
    """A frame that is larger than what its stream's window has left, or than what may wait in sum, ends a connection.

    Seen: the library writes into its log that a peer has sent more than it may, and keeps it: 64 MiB on one stream that
    nobody read, and no bound for more of them. What came for a stream that is not there was read as a whole, 16 MiB.
    """
    return [
        (Yamux, "__init__", _init_and_note),
        (Yamux, "_read_data_body", _read_bounded_body),
        (yamux_module, "read_exactly", _read_and_note),
    ]


def _init_and_note(self: Yamux, *arguments: Any, **named: Any) -> None:
    _stock_init(self, *arguments, **named)
    _connections.add(self)


async def _read_and_note(reader: Any, n: int, retry_count: int = 0) -> bytes:
    """The library asks for a frame's body by its length alone: of which stream it is, its header said just before."""
    data = await read_exactly(reader, n, retry_count)
    if n == HEADER_SIZE:
        reader.__dict__["orchd_header"] = data
    return data


async def _read_bounded_body(self: Yamux, length: int) -> bytes:
    _, _, flags, number, _ = struct.unpack(YAMUX_HEADER_FORMAT, self.secured_conn.__dict__["orchd_header"])
    stream = self.streams.get(number)
    if stream is None and not flags & FLAG_SYN:
        return await _skip(self, length)
    window = stream.recv_window if stream else DEFAULT_WINDOW_SIZE
    if length > window:
        return await _break_off(self, f"has sent {length} bytes where {window} may come")
    held = held_of(self) + length
    if held > HELD_EACH:
        return await _break_off(self, f"has sent {held} bytes that nobody reads")
    # Connections that hold no more than one window are not looked at: there are not that many.
    while held > DEFAULT_WINDOW_SIZE and sum(map(held_of, _connections)) + length > HELD_ALL:
        worst = max(_connections, key=held_of)
        await _break_off(worst, "has sent the most of too much that nobody reads")
        if worst is self:
            return b""
    return await _stock_body(self, length)


async def _skip(self: Yamux, length: int) -> bytes:
    """What comes for a stream that was reset here meanwhile."""
    with trio.fail_after(SKIP_S):
        while length:
            length -= len(await read_exactly(self.secured_conn, min(length, PIECE)))
    return b""


async def _break_off(connection: Yamux, why: str) -> bytes:
    """Its own reader finds the socket closed, and tells everybody who waits."""
    log.info("%s %s: its connection is closed", connection.peer_id, why)
    for buffer in connection.stream_buffers.values():
        buffer.clear()
    with trio.CancelScope(shield=True):
        await connection.secured_conn.close()
    return b""


@correction
def windows_grow_little() -> list[Replacement]:
    """The windows of one connection grow by `GROWN_EACH` bytes together, those of all by `GROWN_ALL`.

    Seen: each of any number of streams had up to 16 MiB, which a peer gets by being read quickly for a moment: 64 of
    them are 1 GiB that may then come at once and wait.
    """
    return [(YamuxStream, "_apply_autotune_epoch", _grow_within_bounds)]


def _grow_within_bounds(self: YamuxStream, buffered: int) -> int:
    more = self.target_recv_window  # it would be doubled
    if _grown(self.conn) + more > GROWN_EACH or sum(map(_grown, _connections)) + more > GROWN_ALL:
        self.epoch_start = trio.current_time()
        return 0
    return _stock_grow(self, buffered)


def _grown(connection: Yamux) -> int:
    return sum(stream.target_recv_window - DEFAULT_WINDOW_SIZE for stream in connection.streams.values())


@correction
def reset_streams_are_forgotten() -> list[Replacement]:
    """What came on a stream is thrown away when this node resets it.

    Seen: it was kept for another minute or more, in case somebody reads it: a peer that opens streams for a protocol
    that is none, and sends 256 KiB on each, filled the memory as fast as its link is.
    """
    return [(YamuxStream, "reset", _reset_and_forget)]


async def _reset_and_forget(self: YamuxStream) -> None:
    try:
        await _stock_reset(self)
    finally:
        self.conn.stream_buffers.get(self.stream_id, bytearray()).clear()
        with trio.CancelScope(shield=True):
            await self.conn._finalize_stream(self, fully_closed=True)
