"""Streams that are filled while nobody reads them, with more than their windows allow: little is kept of it."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from libp2p.stream_muxer.yamux.yamux import DEFAULT_WINDOW_SIZE, TYPE_DATA, YAMUX_HEADER_FORMAT, Yamux

from orchd.net import messages, windows
from orchd.net.hardening import without
from tests.attacks.net.support import attacker, host_of, node_of, serves, still_serves
from tests.attacks.net.test_slow_loris import begin
from tests.net.support import TOPIC, cluster, until

#: Streams, frames on each, and bytes of one: 16 MB.
STREAMS, FRAMES, SIZE = 8, 32, 60_000


async def flood(stream: Any) -> None:
    """Data without regard to the window, until the connection ends."""
    muxed = stream.muxed_stream
    header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, muxed.stream_id, SIZE)
    try:
        for _ in range(FRAMES):
            await muxed.conn._write_frame(header + bytes(SIZE))
    except Exception:
        return


async def kept_of_a_flood(folder: Path) -> int:
    """The bytes that a victim keeps at the most: it is busy with answers that the same peer does not read."""
    most = 0
    async with cluster(folder, width=512) as made:
        victim = await made.start("victim", bulk=False)
        await victim.network.join(TOPIC)
        honest = await still_serves(made, victim)
        manifest = await victim.publish(seed=1, rank=512)
        entry = max(manifest.record.files, key=lambda entry: entry.size)
        question = messages.GetRange(adapter=manifest.digest, blob=entry.sha256, offset=0, length=entry.chunk_size)
        async with attacker(victim) as hostile:
            (connection,) = host_of(victim).connections(hostile.id)
            muxer: Yamux = connection.muxed_conn
            for _ in range(STREAMS):
                with suppress(Exception):  # its connection is closed
                    await flood(await begin(hostile, victim, messages.encode(question) * 64))
                most = max(most, windows.held_of(muxer))
            await until(lambda: muxer.is_closed or windows.held_of(muxer) > STREAMS * DEFAULT_WINDOW_SIZE, "an end")
            most = max(most, windows.held_of(muxer))
        await until(lambda: not node_of(victim).host.connected(hostile.id), "it has gone")
        await serves(victim, honest, 98)
    return most


async def test_what_is_sent_beyond_all_windows_is_not_kept(tmp_path: Path) -> None:
    assert await kept_of_a_flood(tmp_path) <= STREAMS * DEFAULT_WINDOW_SIZE


async def test_it_is_kept_without_the_bound(tmp_path: Path) -> None:
    with without(windows.windows_hold):
        assert await kept_of_a_flood(tmp_path) > STREAMS * DEFAULT_WINDOW_SIZE
