"""Streams begun and not ended, questions that drip, answers that are not read: little is held, and not for long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.custom_types import TProtocol

from orchd.net import exchange, messages
from orchd.net.host import Host
from orchd.net.messages import PROTOCOL, REQUEST_LIMIT
from orchd.net.policy.scores import Offence
from orchd.net.policy.unfinished import OF_ONE
from tests.attacks.net.support import attacker, host_of, leaves_nothing, nobody_is_banned, node_of, serves, still_serves
from tests.net.support import PATIENCE_S, TOPIC, Peer, cluster, until

#: A frame of the largest size, which lacks its last byte.
ALMOST = messages.HEADER.pack(REQUEST_LIMIT) + bytes(REQUEST_LIMIT - 1)


async def begin(hostile: Host, victim: Peer, data: bytes) -> Any:
    """A stream on our protocol, with these bytes on it."""
    stream = await hostile.basic.new_stream(host_of(victim).id, [TProtocol(PROTOCOL)])
    await stream.write(data)
    return stream


async def ended(stream: Any) -> None:
    """When the other side has ended it."""
    with trio.fail_after(PATIENCE_S):
        try:
            while await stream.read(1 << 16):
                pass
        except Exception:
            pass


async def test_questions_that_lack_their_last_byte_do_not_fill_the_memory(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        unfinished = node_of(victim)._server._unfinished
        highest = 0
        async with leaves_nothing(victim), attacker(victim) as hostile, trio.open_nursery() as nursery:

            async def one(stream: Any) -> None:
                nonlocal highest
                try:
                    for start in range(0, len(ALMOST), 32 << 10):
                        await stream.write(ALMOST[start : start + (32 << 10)])
                        highest = max(highest, unfinished.total)
                except Exception:
                    pass

            streams = [await begin(hostile, victim, b"") for _ in range(16)]
            for stream in streams:
                nursery.start_soon(one, stream)
            await until(lambda: sum(stream.muxed_stream.reset_received for stream in streams) >= 12, "most must go")
            nursery.cancel_scope.cancel()
        assert highest <= OF_ONE + (1 << 20), "its share, and what one read brings"
        assert unfinished.total == 0
        await still_serves(made, victim)


async def test_a_question_that_drips_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "IDLE_S", 0.5)
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        async with leaves_nothing(victim), attacker(victim) as hostile, trio.open_nursery() as nursery:
            stream = await begin(hostile, victim, ALMOST[:100])

            async def drip() -> None:
                while True:
                    await stream.write(b"x")
                    await trio.sleep(0.05)

            nursery.start_soon(drip)
            await ended(stream)
            nursery.cancel_scope.cancel()
        monkeypatch.undo()
        await still_serves(made, victim)


async def test_answers_that_nobody_reads(tmp_path: Path) -> None:
    """Every upload slot is asked for, and no byte is read: the slots are free again."""
    async with cluster(tmp_path, width=512) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        honest = await still_serves(made, victim)
        manifest = await victim.publish(seed=1, rank=512)
        entry = max(manifest.record.files, key=lambda entry: entry.size)
        question = messages.GetRange(adapter=manifest.digest, blob=entry.sha256, offset=0, length=entry.chunk_size)
        with nobody_is_banned():
            async with attacker(victim) as hostile:
                for _ in range(32):
                    await begin(hostile, victim, messages.encode(question) * 8)
                await serves(victim, honest, 98)
            await until(lambda: not node_of(victim).host.connected(hostile.id))
        uploads = node_of(victim)._uploads
        await until(lambda: uploads._turns.free == uploads._transfers.slots, "every slot is free again")
        await serves(victim, honest, 97)


async def test_who_asks_on_and_on_after_busy_is_banned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "QUESTIONS_BURST", 5.0)
    monkeypatch.setattr(exchange, "QUESTIONS_RATE", 0.0)
    monkeypatch.setattr(exchange, "REFUSED_BURST", 10.0)
    monkeypatch.setattr(exchange, "REFUSED_RATE", 0.0)
    question = messages.encode(messages.Hello(topics=()))
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join(TOPIC)
        async with leaves_nothing(victim), attacker(victim) as hostile:
            await begin(hostile, victim, question * 80)
            banned = await victim.events.wait("net.peer.banned", subject=str(hostile.id))
            assert "told to wait" in banned["reason"]
            await victim.events.wait("net.peer.lost", peer=str(hostile.id))
        assert victim.network.stats().counters[f"offences_{Offence.FLOODED.name.lower()}"] >= 5
        monkeypatch.undo()
        await still_serves(made, victim)
