"""Below libp2p: connections without number, resets, half handshakes, and garbage where frames of Yamux should be."""

from __future__ import annotations

import os
import random
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from orchd.net.policy import gate
from tests.attacks.net.support import attacker, host_of, leaves_nothing, nobody_is_banned, still_serves
from tests.net.support import TOPIC, Peer, cluster, until

#: Connections that are begun; `ORCHD_SYNS=10000` for as many as were tried against the bare library.
SYNS = int(os.environ.get("ORCHD_SYNS", "200"))
FLOOD = "127.0.0.3"


def port_of(victim: Peer) -> int:
    return int(victim.network.addresses()[0].split("/")[4])


async def come(victim: Peer) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port_of(victim), local_address=FLOOD)


async def test_connections_that_come_and_go_at_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        async with leaves_nothing(victim):
            for _ in range(SYNS):
                with suppress(OSError):
                    await (await come(victim)).aclose()
        await still_serves(made, victim)


@pytest.mark.parametrize("said", [b"", b"\x13/multistream/1.0.0\n", b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20"])
async def test_connections_killed_by_a_reset(tmp_path: Path, said: bytes) -> None:
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        async with leaves_nothing(victim):
            for _ in range(20):
                stream = await come(victim)
                await stream.send_all(said)
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await stream.aclose()
        await still_serves(made, victim)


async def test_garbage_where_yamux_frames_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secured as it should be, and then nonsense: of headers, of lengths, of streams that nobody opened."""
    monkeypatch.setattr(gate, "ARRIVALS_BURST", 1e9)
    rng = random.Random(7)
    headers = [
        struct.pack(">BBHII", 0, kind, flags, stream, length)
        for kind, flags, stream, length in (
            (0, 1, 1, 0xFFFFFFFF),
            (0, 0, 999, 100),
            (1, 1, 1, 0xFFFFFFFF),
            (1, 0, 3, 0xFFFFFFFF),
            (2, 1, 0, 7),
            (3, 0, 0, 9),
            (9, 0xFFFF, 0xFFFFFFFF, 0),
        )
    ]
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        with nobody_is_banned():
            async with leaves_nothing(victim):
                for number in range(12):
                    async with attacker(victim, b"yamux %d" % number) as hostile:
                        (connection,) = hostile.swarm.get_connections(host_of(victim).id)
                        secured: Any = connection.muxed_conn.secured_conn
                        for _ in range(30):
                            with suppress(Exception):
                                await secured.write(rng.choice(headers) + rng.randbytes(rng.randint(0, 40)))
        await until(lambda: not host_of(victim).peers(), "they are gone")
        await still_serves(made, victim)
