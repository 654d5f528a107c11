"""Bytes that mean nothing, on every door that a stranger finds: the node stays up and serves honest peers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import varint
from libp2p.custom_types import TProtocol
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service

from orchd.errors import PeerRefused
from orchd.identity import Identity
from orchd.net import asking, exchange, hardening, messages
from orchd.net.host import Host, run_host
from orchd.net.messages import PROTOCOL, Failed, Push
from tests.attacks.net.frames import OFFERED
from tests.attacks.net.support import MESHSUB, send, still_serves
from tests.net.support import LOOPBACK, PATIENCE_S, cluster, until


async def test_random_bytes_on_the_exchange_protocol(tmp_path: Path) -> None:
    rng = random.Random(0)
    good = messages.encode(messages.GetManifest(adapter=bytes(32)))
    async with cluster(tmp_path) as made, run_host(Identity.from_seed(b"x" * 32), LOOPBACK) as attacker:
        victim = await made.start("victim")
        await victim.network.join("test/topic")
        node = victim.network._node
        assert node is not None
        await attacker.connect(node.host.id, node.host.basic.get_transport_addrs())
        for number in range(60):
            mutated = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                mutated[rng.randrange(len(mutated))] = rng.randrange(256)
            data = bytes(mutated) if number % 2 else rng.randbytes(rng.randint(1, 200))
            await send(attacker, victim, PROTOCOL, data)
        await until(lambda: not node.host.basic.__dict__.get("orchd_inbound_streams"), "every stream has ended")
        await still_serves(made, victim)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff" + b"x" * 1000,
        b"\x00\x00\x00\x00",
        messages.HEADER.pack(5) + b"\x81",
        messages.HEADER.pack(100_000) + b"\x91" * 100_000,
        messages.encode(messages.Done())[: messages.HEADER.size] + msgspec.msgpack.encode({"op": "done"}),
    ],
    ids=["4 GB", "empty", "cut off", "nested", "a reply"],
)
async def test_frames_that_are_none_are_answered_so(tmp_path: Path, data: bytes) -> None:
    async with cluster(tmp_path) as made, run_host(Identity.from_seed(b"x" * 32), LOOPBACK) as attacker:
        victim = await made.start("victim")
        node = victim.network._node
        assert node is not None
        await attacker.connect(node.host.id, node.host.basic.get_transport_addrs())
        frames = messages.Frames(messages.REPLY_LIMIT)
        frames.feed(await send(attacker, victim, PROTOCOL, data))
        body = frames.next()
        assert body is None or messages.decode_reply(body) == Failed(reason=messages.MALFORMED)
        await asking.ask(attacker, node.host.id, messages.Hello(topics=()), messages.Hello)


async def test_forged_announcements_are_refused_and_their_bringer_is_banned(tmp_path: Path) -> None:
    async with (
        cluster(tmp_path) as made,
        run_host(Identity.from_seed(b"x" * 32), LOOPBACK) as attacker,
        run_host(Identity.from_seed(b"y" * 32), LOOPBACK) as messenger,
    ):
        victim = await made.start("victim")
        await victim.network.join("test/topic")
        node = victim.network._node
        assert node is not None
        await attacker.connect(node.host.id, node.host.basic.get_transport_addrs())
        author = made.make("author")
        good = author.announcement(author.make()).envelope
        for forged in (good[:-1] + b"\x00", good.replace(b"test/topic", b"test/tonic"), b"", good + b"x"):
            reply = await send(attacker, victim, PROTOCOL, messages.encode(Push(records=(forged,))))
            assert b"malformed" in reply or reply == b""
        assert victim.registry.announcements() == []
        await victim.events.wait("net.peer.banned", subject=str(attacker.id))
        await victim.events.wait("net.peer.lost", peer=str(attacker.id))
        await messenger.connect(node.host.id, node.host.basic.get_transport_addrs())
        await asking.ask(messenger, node.host.id, Push(records=(good,)), messages.Done)
        assert len(victim.registry.announcements()) == 1
        await still_serves(made, victim)


async def test_a_peer_that_asks_without_end_is_told_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "QUESTIONS_BURST", 5.0)
    monkeypatch.setattr(exchange, "QUESTIONS_RATE", 0.0)
    async with cluster(tmp_path) as made, run_host(Identity.from_seed(b"x" * 32), LOOPBACK) as attacker:
        victim = await made.start("victim")
        node = victim.network._node
        assert node is not None
        await attacker.connect(node.host.id, node.host.basic.get_transport_addrs())
        await victim.network.join("test/topic")
        for _ in range(5):
            await asking.ask(attacker, node.host.id, messages.Hello(topics=()), messages.Hello)
        with pytest.raises(PeerRefused, match="busy"):
            await asking.ask(attacker, node.host.id, messages.Hello(topics=()), messages.Hello)
        monkeypatch.undo()
        await still_serves(made, victim)


async def test_bytes_on_the_port_that_are_no_libp2p(tmp_path: Path) -> None:
    rng = random.Random(1)
    async with cluster(tmp_path) as made:
        victim = await made.start("victim")
        await victim.network.join("test/topic")
        port = int(victim.network.addresses()[0].split("/")[4])
        for data in (
            b"GET / HTTP/1.1\r\n\r\n",
            rng.randbytes(500),
            b"\x13/multistream/1.0.0\n\x07/noise\n" + rng.randbytes(99),
        ):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(data)
        await still_serves(made, victim)


async def test_garbage_on_every_protocol_that_is_offered(tmp_path: Path) -> None:
    rng = random.Random(2)
    async with cluster(tmp_path) as made, run_host(Identity.from_seed(b"x" * 32), LOOPBACK) as attacker:
        victim = await made.start("victim")
        await victim.network.join("test/topic")
        node = victim.network._node
        assert node is not None
        await attacker.connect(node.host.id, node.host.basic.get_transport_addrs())
        for protocol in sorted({*OFFERED} - {PROTOCOL}):
            for _ in range(10):
                body = rng.randbytes(rng.randint(1, 60))
                await send(attacker, victim, protocol, varint.encode(len(body)) + body)
        await still_serves(made, victim)


@pytest.mark.parametrize("guarded", [True, False])
async def test_one_frame_of_garbage_for_pubsub(guarded: bool) -> None:
    """One frame of fifty-two bytes ended the whole process."""

    async def attack() -> None:
        async with (
            run_host(Identity.from_seed(b"v" * 32), LOOPBACK) as victim,
            run_host(Identity.from_seed(b"x" * 32), LOOPBACK) as attacker,
        ):
            pubsub = Pubsub(victim.basic, GossipSub([TProtocol(MESHSUB)], 3, 2, 4, heartbeat_interval=1))
            async with background_trio_service(pubsub):
                await pubsub.wait_until_ready()
                await attacker.connect(victim.id, victim.basic.get_transport_addrs())
                await send(attacker, victim, MESHSUB, b"\x32" + b"\xff" * 50)
                assert await answers_a_ping(attacker, victim)

    if guarded:
        await attack()
    else:
        with hardening.without(hardening.guarded_stream_handlers), pytest.raises(BaseExceptionGroup):
            await attack()


async def answers_a_ping(client: Host, server: Host) -> bool:
    with trio.fail_after(PATIENCE_S):
        stream: Any = await client.basic.new_stream(server.id, [TProtocol("/ipfs/ping/1.0.0")])
        await stream.write(b"p" * 32)
        return bytes(await stream.read(32)) == b"p" * 32
