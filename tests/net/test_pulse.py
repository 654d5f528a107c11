"""A link that dies silently under a transfer, and a peer that is only slow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.network.connection.raw_connection import RawConnection
from multiaddr import Multiaddr

from orchd.errors import PeerUnreachable
from orchd.net import hardening, pulse
from orchd.net.asking import open_channel
from orchd.net.hardening import without
from orchd.net.host import Host
from orchd.net.messages import PROTOCOL
from tests.net.support import until
from tests.net.test_hardening import a_host, echo_handler


class Link:
    """A wire between two hosts that can be cut without either end being told."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = 0
        self.is_cut = False

    async def run(self, *, task_status: Any) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        await trio.serve_listeners(self._carry, [listener], task_status=task_status)

    async def _carry(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", self._target)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._one_way, near, far, nursery)
            nursery.start_soon(self._one_way, far, near, nursery)

    async def _one_way(self, come: trio.SocketStream, go: trio.SocketStream, both: trio.Nursery) -> None:
        try:
            async for data in come:
                if self.is_cut:
                    await trio.sleep_forever()
                await go.send_all(data)
        except trio.BrokenResourceError:
            pass
        both.cancel_scope.cancel()


@asynccontextmanager
async def linked(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Host, Host, Link]]:
    """A server that echoes on our protocol, a client connected through the link, and its pulse."""
    for name, value in (("EVERY_S", 0.05), ("IDLE_EVERY_S", 0.1), ("QUIET_S", 0.2), ("ANSWER_S", 1.0)):
        monkeypatch.setattr(pulse, name, value)
    async with a_host(1) as server, a_host(2) as client, trio.open_nursery() as nursery:
        server.basic.set_stream_handler(TProtocol(PROTOCOL), echo_handler)
        link = Link(int(server.addresses()[0].split("/")[4]))
        await nursery.start(link.run)
        await client.connect(server.id, [Multiaddr(f"/ip4/127.0.0.1/tcp/{link.port}")])
        nursery.start_soon(pulse.run, client)
        yield server, client, link
        nursery.cancel_scope.cancel()


def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a starved machine a look may come late: that is not what these tests are about."""
    monkeypatch.setattr(pulse, "EVERY_S", 0.25)
    monkeypatch.setattr(pulse, "IDLE_EVERY_S", 0.25)


async def test_a_silent_link_under_a_transfer_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked(monkeypatch) as (server, client, link):
        slow_clock(monkeypatch)
        stream = await client.basic.new_stream(server.id, [TProtocol(PROTOCOL)])
        await stream.write(b"before")
        assert await stream.read(6) == b"before"
        link.is_cut = True
        with pytest.raises(Exception):  # noqa: B017, PT011, PT012
            await stream.write(b"after")
            await stream.read(5)
        await until(lambda: not client.connected(server.id), "the connection is gone")


async def test_a_silent_link_under_a_stream_that_is_being_opened_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the other end has agreed to it, the stream has no protocol. Nothing else waits on the connection."""
    async with linked(monkeypatch) as (server, client, link):
        slow_clock(monkeypatch)
        link.is_cut = True
        with pytest.raises(PeerUnreachable):
            async with open_channel(client, server.id):
                pass
        assert not client.connected(server.id)
        assert not client.opening


async def test_without_counting_nobody_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library gives no figure from which the silence could be seen."""
    with without(hardening.traffic_is_seen):
        async with linked(monkeypatch) as (server, client, link):
            stream = await client.basic.new_stream(server.id, [TProtocol(PROTOCOL)])
            (connection,) = client.swarm.get_connections(server.id)
            assert hardening.traffic_of(connection) is None
            link.is_cut = True
            with trio.move_on_after(2.0) as waited:
                await stream.read(1)
            assert waited.cancelled_caught
            assert client.connected(server.id)


async def test_a_peer_that_is_slow_keeps_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = 0
    ping = pulse._ping

    async def counted(connection: Any) -> None:
        nonlocal answers
        await ping(connection)
        answers += 1

    async with linked(monkeypatch) as (server, client, _):
        monkeypatch.setattr(pulse, "ANSWER_S", 30.0)
        monkeypatch.setattr(pulse, "_ping", counted)
        stream = await client.basic.new_stream(server.id, [TProtocol(PROTOCOL)])
        await until(lambda: answers >= 3, "three answers")
        await stream.write(b"still here")
        assert await stream.read(10) == b"still here"


async def test_idle_links_that_died_are_found_out_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked(monkeypatch) as (server, client, link):
        slow_clock(monkeypatch)
        async with a_host(3) as other, trio.open_nursery() as nursery:
            second = Link(int(other.addresses()[0].split("/")[4]))
            await nursery.start(second.run)
            await client.connect(other.id, [Multiaddr(f"/ip4/127.0.0.1/tcp/{second.port}")])
            link.is_cut = second.is_cut = True
            monkeypatch.setattr(pulse, "IDLE_ANSWER_S", 1.0)
            monkeypatch.setattr(pulse, "IDLE_QUIET_S", 0.5)
            await until(lambda: not client.peers(), "both are gone")
            assert server.connected(client.id), "the other end has no pulse, and does not know"
            nursery.cancel_scope.cancel()


async def test_an_idle_link_is_not_asked_as_soon_as_a_busy_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked(monkeypatch) as (server, client, _):
        (connection,) = client.swarm.get_connections(server.id)
        assert not pulse.is_waited_for(client, connection)
        stream = await client.basic.new_stream(server.id, [TProtocol(PROTOCOL)])
        assert pulse.is_waited_for(client, connection)
        await stream.reset()
        await until(lambda: not pulse.is_waited_for(client, connection), "the stream is gone")


def test_ten_seconds_in_a_transfer_and_three_minutes_idle() -> None:
    assert pulse.EVERY_S + pulse.QUIET_S + pulse.ANSWER_S < 10.0
    assert pulse.IDLE_EVERY_S + pulse.ANSWER_S < 10.0
    assert pulse.IDLE_EVERY_S + pulse.IDLE_QUIET_S + pulse.IDLE_ANSWER_S < 180.0


async def test_an_idle_host_looks_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks soon again while a stream is waited on, or rests; else after a longer pause."""
    pauses: list[float] = []
    sleep = trio.sleep

    async def slept(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0.01)

    async with linked(monkeypatch) as (server, client, _):
        await until(lambda: client.basic.get_peerstore().get_protocols(server.id), "identified")
        monkeypatch.setattr(pulse, "trio", _Stand(slept))
        await until(lambda: pauses[-3:] == [0.1] * 3, "it is idle")
        stream = await client.basic.new_stream(server.id, [TProtocol(PROTOCOL)])
        await until(lambda: pauses[-3:] == [0.05] * 3, "a stream is waited on")
        await stream.reset()
        await until(lambda: pauses[-3:] == [0.1] * 3, "it is idle again")


class _Stand:
    """trio, but for `sleep`."""

    def __init__(self, sleep: Any) -> None:
        self.sleep = sleep

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


async def test_bytes_are_counted() -> None:
    async with a_host(1) as server, a_host(2) as client:
        server.basic.set_stream_handler(TProtocol(PROTOCOL), echo_handler)
        await client.connect(server.id, server.basic.get_transport_addrs())
        (connection,) = client.swarm.get_connections(server.id)
        traffic = hardening.traffic_of(connection)
        assert traffic is not None
        before = traffic.bytes_in, traffic.bytes_out
        stream = await client.basic.new_stream(server.id, [TProtocol(PROTOCOL)])
        await stream.write(bytes(10_000))
        received = 0
        while received < 10_000:
            received += len(await stream.read(10_000))
        assert traffic.bytes_in - before[0] >= 10_000
        assert traffic.bytes_out - before[1] >= 10_000
        assert traffic.heard_at <= trio.current_time()


async def test_what_is_there_is_read_at_once() -> None:
    class Socket:
        def __init__(self, *pieces: bytes) -> None:
            self.pieces, self.asked = list(pieces), list[int | None]()

        async def read(self, n: int | None = None) -> bytes:
            self.asked.append(n)
            return self.pieces.pop(0)

    hardening.harden()
    large = hardening.READ_AHEAD + 1
    socket = Socket(b"abcdef", b"gh", b"i", b"")
    connection = RawConnection(socket, False)  # type: ignore[arg-type]
    assert [await connection.read(2), await connection.read(3), await connection.read(2)] == [b"ab", b"cde", b"f"]
    assert socket.asked == [hardening.READ_AHEAD]
    assert [await connection.read(1), await connection.read(), await connection.read(large)] == [b"g", b"h", b"i"]
    assert await connection.read(0) == b""
    assert socket.asked == [hardening.READ_AHEAD, hardening.READ_AHEAD, large]
    assert await connection.read(1) == b""
