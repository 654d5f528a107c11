"""Floods of half-open connections, refused places, and an honest peer that comes in between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from orchd.errors import PeerUnreachable
from orchd.net import hardening
from orchd.net.door import Door
from orchd.net.host import Host
from orchd.net.policy import gate
from tests.net.support import until
from tests.net.test_hardening import a_host, join

FLOOD = "127.0.0.2"


class Counted:
    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self.banned: set[str] = set()

    def count(self, what: str) -> None:
        self.seen[what] = self.seen.get(what, 0) + 1

    def guard(self, host: Host) -> None:
        hardening.guard_inbound(host.swarm, Door(self.banned.__contains__, self.count).passing)


@asynccontextmanager
async def half_open(host: Host, count: int) -> AsyncIterator[list[trio.SocketStream]]:
    """Connections from another address of loopback that say nothing."""
    port = int(host.addresses()[0].split("/")[4])
    held = [await trio.open_tcp_stream("127.0.0.1", port, local_address=FLOOD) for _ in range(count)]
    try:
        yield held
    finally:
        for stream in held:
            await stream.aclose()


def few_slots(host: Host) -> None:
    """As many connections as the library takes, made smaller so that the test is quick."""
    host.swarm._inbound_limiter.total_tokens = 20


async def test_a_half_open_flood_shuts_honest_peers_out_without_the_guard() -> None:
    async with a_host(1) as server, a_host(2) as honest:
        few_slots(server)
        async with half_open(server, 30):
            await until(lambda: server.swarm._inbound_limiter.borrowed_tokens == 20, "the slots are taken")
            with pytest.raises(PeerUnreachable):
                await join(honest, server)


async def test_an_honest_peer_comes_in_through_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "HALF_OPEN", 12)
    monkeypatch.setattr(gate, "HALF_OPEN_PER_PLACE", 8)
    counted = Counted()
    async with a_host(1) as server, a_host(2) as honest:
        few_slots(server)
        counted.guard(server)
        async with half_open(server, 60):
            await until(lambda: counted.seen.get("inbound_pushed_out", 0) >= 52, "the flood has come")
            await join(honest, server)
            assert server.connected(honest.id)
        await until(lambda: server.swarm._inbound_limiter.borrowed_tokens == 1, "the slots are given back")


async def test_a_flood_is_limited_by_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "ARRIVALS_BURST", 5.0)
    monkeypatch.setattr(gate, "ARRIVALS_RATE", 0.0)
    counted = Counted()
    async with a_host(1) as server, a_host(2) as honest:
        counted.guard(server)
        async with half_open(server, 50):
            await until(lambda: counted.seen.get("inbound_refused") == 45, "all but the first five")
            await join(honest, server)


async def test_a_banned_place_is_not_let_in() -> None:
    counted = Counted()
    counted.banned.add("127.0.0.1")
    async with a_host(1) as server, a_host(2) as banned:
        counted.guard(server)
        with pytest.raises(PeerUnreachable):
            await join(banned, server)
        assert counted.seen == {"inbound_refused": 1}
        counted.banned.clear()
        await join(banned, server)


async def test_places_are_counted_until_the_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "CONNECTIONS_PER_PLACE", 1)
    counted = Counted()
    async with a_host(1) as server, a_host(2) as first, a_host(3) as second:
        counted.guard(server)
        await join(first, server)
        with pytest.raises(PeerUnreachable):
            await join(second, server)
        await first.disconnect(server.id)
        await until(lambda: not server.connected(first.id), "the first has left")
        await join(second, server)
