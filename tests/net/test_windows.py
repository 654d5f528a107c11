"""What peers may make a node keep that it has not read: each bound without its correction, and with it."""

from __future__ import annotations

import struct
from typing import Any, cast
from weakref import WeakSet

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.stream_muxer.yamux.yamux import DEFAULT_WINDOW_SIZE, TYPE_DATA, YAMUX_HEADER_FORMAT, Yamux, YamuxStream

from orchd.net import hardening, windows
from orchd.net.hardening import without
from orchd.net.host import Host
from tests.net.support import until
from tests.net.test_hardening import a_host, echo, join, two_hosts

SLEEP = TProtocol("/test/sleep/1")
FRAME = 60_000


async def sleeps(stream: Any) -> None:
    await trio.sleep_forever()


async def open_stream(client: Host, server: Host) -> Any:
    return await client.basic.new_stream(server.id, [SLEEP])


async def send_anyhow(stream: Any, count: int) -> None:
    """So many bytes, whatever the window says; until the connection ends."""
    muxed = stream.muxed_stream
    header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, muxed.stream_id, FRAME)
    try:
        for _ in range(-(-count // FRAME)):
            await muxed.conn._write_frame(header + bytes(FRAME))
    except Exception:
        return


def muxer(host: Host, other: Host) -> Yamux:
    return cast(Yamux, host.connections(other.id)[0].muxed_conn)


# ---- one stream --------------------------------------------------------------------------------------------------


async def test_what_is_beyond_a_window_is_kept_without_the_bound() -> None:
    with without(windows.windows_hold):
        async with two_hosts() as (server, client):
            server.basic.set_stream_handler(SLEEP, sleeps)
            await send_anyhow(await open_stream(client, server), 1 << 20)
            await until(lambda: windows.held_of(muxer(server, client)) >= 1 << 20, "all of it")
            await echo(client, server)


async def test_who_sends_more_than_its_window_loses_the_connection() -> None:
    async with two_hosts() as (server, client):
        server.basic.set_stream_handler(SLEEP, sleeps)
        stream = await open_stream(client, server)
        theirs = muxer(server, client)
        await send_anyhow(stream, 1 << 20)
        await until(lambda: not server.connected(client.id), "it is closed")
        assert windows.held_of(theirs) == 0
        await join(client, server)
        await echo(client, server)


async def test_a_whole_window_is_taken_and_what_comes_too_late_is_thrown_away() -> None:
    async with two_hosts() as (server, client):
        server.basic.set_stream_handler(SLEEP, sleeps)
        stream = await open_stream(client, server)
        count = DEFAULT_WINDOW_SIZE // FRAME * FRAME
        await send_anyhow(stream, count)
        theirs = muxer(server, client)
        await until(lambda: windows.held_of(theirs) >= count, "all of it")
        (muxed,) = [one for one in theirs.streams.values() if len(theirs.stream_buffers[one.stream_id])]
        await muxed.reset()
        assert windows.held_of(theirs) == 0
        await send_anyhow(stream, 1 << 20)
        await echo(client, server)
        assert windows.held_of(theirs) == 0


async def test_what_came_on_a_stream_that_is_reset_stays_without_the_correction() -> None:
    with without(windows.reset_streams_are_forgotten):
        async with two_hosts() as (server, client):
            server.basic.set_stream_handler(SLEEP, sleeps)
            await send_anyhow(await open_stream(client, server), FRAME)
            theirs = muxer(server, client)
            await until(lambda: windows.held_of(theirs) >= FRAME, "all of it")
            (muxed,) = [one for one in theirs.streams.values() if len(theirs.stream_buffers[one.stream_id])]
            await muxed.reset()
            assert windows.held_of(theirs) >= FRAME


# ---- all streams of a peer, and all peers -------------------------------------------------------------------------


async def fill_streams(client: Host, server: Host, count: int) -> None:
    """Each with nearly its whole window."""
    for _ in range(count):
        try:
            stream = await open_stream(client, server)
        except Exception:
            return
        await send_anyhow(stream, DEFAULT_WINDOW_SIZE // FRAME * FRAME)


async def test_of_one_peer_no_more_waits_however_many_streams_it_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "HELD_EACH", 2 << 20)
    most = 0
    hold = windows.held_of

    def watched(connection: Yamux) -> int:
        nonlocal most
        most = max(most, hold(connection))
        return hold(connection)

    monkeypatch.setattr(windows, "held_of", watched)
    async with two_hosts() as (server, client):
        server.basic.set_stream_handler(SLEEP, sleeps)
        await fill_streams(client, server, 20)
        await until(lambda: not server.connected(client.id), "it is closed")
        assert (2 << 20) - DEFAULT_WINDOW_SIZE < most <= 2 << 20
        await join(client, server)
        await echo(client, server)


async def test_where_all_together_fill_too_much_the_one_goes_that_has_sent_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows, "HELD_ALL", 2 << 20)
    async with two_hosts() as (server, client), a_host(3) as other:
        server.basic.set_stream_handler(SLEEP, sleeps)
        await join(other, server)
        await fill_streams(other, server, 3)
        await fill_streams(client, server, 5)
        await until(lambda: windows.held_of(muxer(server, client)) > 1 << 20, "most is of one")
        assert server.connected(other.id)
        await fill_streams(other, server, 1)
        await until(lambda: not server.connected(client.id), "that one goes")
        assert server.connected(other.id)
        await echo(other, server)


def grown_to(streams: int) -> int:
    """What the windows of a connection whose streams are read quickly come to, all together."""

    async def grow() -> int:
        connection = Yamux(cast(Any, None), cast(Any, None), is_initiator=True)
        connection._rtt = 3600.0
        made = [YamuxStream(number, connection, False) for number in range(streams)]
        connection.streams.update(enumerate(made))
        for _ in range(10):
            for stream in made:
                stream._apply_autotune_epoch(0)
        return sum(stream.target_recv_window for stream in made)

    return trio.run(grow)


def test_the_windows_of_one_connection_grow_to_a_bound_together() -> None:
    hardening.harden()
    assert grown_to(1) == 8 << 20, "one has enough for 27 MB a second over 300 ms"
    assert grown_to(16) <= 16 * DEFAULT_WINDOW_SIZE + windows.GROWN_EACH
    with without(windows.windows_grow_little):
        assert grown_to(16) == 16 * (16 << 20)


def test_the_windows_of_all_connections_grow_to_a_bound_together(monkeypatch: pytest.MonkeyPatch) -> None:
    hardening.harden()
    monkeypatch.setattr(windows, "GROWN_ALL", 1 << 20)
    monkeypatch.setattr(windows, "_connections", WeakSet())
    assert grown_to(1) == 1 << 20
