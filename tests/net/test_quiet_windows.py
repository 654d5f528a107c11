"""Windows of Yamux streams: opened again in batches, and always in time."""

from __future__ import annotations

import random
from contextlib import nullcontext
from typing import Any

import pytest
from libp2p.custom_types import TProtocol
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import YamuxStream

from orchd.net.hardening import without
from orchd.net.host import READ_SIZE, WRITE_SIZE, Host
from orchd.net.quiet import windows_in_batches
from tests.net.test_hardening import ECHO, two_hosts

SINK = TProtocol("/test/sink/1")
SMALL, LARGE = 300, 4 << 20


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes by which windows were opened, in both hosts."""
    sent: list[int] = []
    send = YamuxStream.send_window_update

    async def send_window_update(self: YamuxStream, increment: int, skip_lock: bool = False) -> None:
        sent.append(increment)
        await send(self, increment, skip_lock)

    monkeypatch.setattr(YamuxStream, "send_window_update", send_window_update)
    return sent


async def read_by_the_byte(client: Host, server: Host) -> None:
    stream = await client.basic.new_stream(server.id, [ECHO])
    await stream.write(random.Random(1).randbytes(SMALL))
    for _ in range(SMALL):
        assert len(await stream.read(1)) == 1
    await stream.close()


@pytest.mark.parametrize("corrected", [True, False])
async def test_small_reads_are_not_answered_one_by_one(corrected: bool, updates: list[int]) -> None:
    with nullcontext() if corrected else without(windows_in_batches):
        async with two_hosts() as (server, client):
            updates.clear()
            await read_by_the_byte(client, server)
            assert (updates == []) if corrected else (len(updates) > SMALL)


async def test_more_than_a_window_gets_through(updates: list[int]) -> None:
    """Windows are opened before the writer has to wait five seconds, and for no more than was read."""

    async def swallow(stream: Any) -> None:
        left = LARGE
        while left:
            left -= len(await stream.read(READ_SIZE))
        await stream.write(b"!")

    async with two_hosts() as (server, client):
        server.basic.set_stream_handler(SINK, swallow)
        stream = await client.basic.new_stream(server.id, [SINK])
        updates.clear()
        for start in range(0, LARGE, WRITE_SIZE):
            await stream.write(bytes(min(WRITE_SIZE, LARGE - start)))
        assert await stream.read(1) == b"!"
        assert LARGE - 2 * yamux.DEFAULT_WINDOW_SIZE < sum(updates) <= LARGE + yamux.MAX_WINDOW_SIZE
        assert len(updates) <= 2 * LARGE // yamux.DEFAULT_WINDOW_SIZE
        await stream.close()
