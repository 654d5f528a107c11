"""The bulk channel: used where it is reached, left where it is not, and open to nobody without a token."""

from __future__ import annotations

import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.peer.id import ID

from orchd.errors import PeerBusy, PeerUnreachable
from orchd.net import asking, bulk, bulk_server, messages
from orchd.net.bulk import host_of
from orchd.net.bulk_server import CHANNELS_EACH, TOKENS_EACH, make_context
from orchd.net.messages import BulkAt, GetManifest, GetRange, OpenBulk, Range
from orchd.records import Manifest, Verified
from tests.net.support import TOPIC, Cluster, Peer, cluster, until


async def giver_and_taker(made: Cluster, **settings: Any) -> tuple[Peer, Peer, Verified[Manifest]]:
    giver, taker = await made.start("giver", **settings), await made.start("taker")
    for peer in (giver, taker):
        await peer.network.join(TOPIC)
    manifest = await giver.publish(rank=512)
    await until(lambda: taker.network.topics()[0].members == 1, "they meet")
    return giver, taker, manifest


async def way_in(giver: Peer, taker: Peer, manifest: Verified[Manifest]) -> BulkAt:
    assert taker.network._node is not None
    peer = ID.from_string(giver.network.peer_id)
    return await asking.ask(taker.network._node.host, peer, OpenBulk(adapter=manifest.digest), BulkAt)


async def try_out(way: BulkAt, *questions: GetRange | GetManifest) -> list[bytes]:
    """The bytes that a way in gives. Raises what the line does."""
    answers: list[bytes] = []

    def talk() -> None:
        bulk.enter(line, way)
        for question in questions:
            line.send(question)
            answers.append(line.read_exactly(line.reply(Range).length))

    line = await bulk.reach("127.0.0.1", way, ID(b"giver"))
    await line.run(talk)
    return answers


def question(manifest: Verified[Manifest], length: int = 1000) -> GetRange:
    entry = max(manifest.record.files, key=lambda entry: entry.size)
    return GetRange(adapter=manifest.digest, blob=entry.sha256, offset=0, length=length)


async def test_large_files_come_in_bulk(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made:
        giver, taker, manifest = await giver_and_taker(made)
        await taker.network.fetch(manifest.id)
        assert giver.network.stats().counters["bulk_channels"] == 1
        assert taker.network.stats().counters["bulk_channels_used"] == 1
        assert giver.network.stats().counters["bytes_served"] == manifest.record.size
        assert taker.registry.is_whole(manifest.id)


@pytest.mark.parametrize("is_bulk", [True, False])
async def test_a_port_that_is_taken_is_told_at_the_start(
    tmp_path: Path, is_bulk: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with cluster(tmp_path) as made:
            await made.start("a", bulk=is_bulk, bulk_port=port)
        told = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert any(f"net.bulk_port = {port} can't be listened on at 127.0.0.1" in text for text in told) == is_bulk


@pytest.mark.parametrize("settings", [{"bulk": False}, {"capture": "seen"}])
async def test_it_can_be_turned_off(tmp_path: Path, settings: dict[str, Any]) -> None:
    """And is off where every outbound byte is to be seen."""
    if "capture" in settings:
        settings = {"capture": str(tmp_path / "seen")}
    async with cluster(tmp_path, width=512) as made:
        giver, taker, manifest = await giver_and_taker(made, **settings)
        await taker.network.fetch(manifest.id)
        assert giver.network.stats().counters["bulk_channels"] == 0
        assert taker.registry.is_whole(manifest.id)


async def test_where_the_port_is_not_reached_the_stream_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreachable(host: str, way: BulkAt, peer: ID) -> bulk.Line:
        raise PeerUnreachable("planted")

    monkeypatch.setattr(bulk, "reach", unreachable)
    async with cluster(tmp_path, width=512) as made:
        giver, taker, manifest = await giver_and_taker(made)
        await taker.network.fetch(manifest.id)
        assert giver.network.stats().counters["bulk_channels"] == 0


async def test_somebody_on_the_way_is_noticed_and_the_stream_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another certificate than the one that was told: no byte of the token leaves, and the peer is not blamed."""
    context, _ = await trio.to_thread.run_sync(make_context)
    got: list[bytes] = []

    async def impostor(stream: trio.SocketStream) -> None:
        secured = trio.SSLStream(stream, context, server_side=True)
        try:
            got.append(await secured.receive_some(100))
        except (trio.BrokenResourceError, ssl.SSLError):
            got.append(b"")

    async with cluster(tmp_path, width=512) as made, trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, impostor, [listener])
        port = listener.socket.getsockname()[1]
        real = bulk.reach

        async def diverted(host: str, way: BulkAt, peer: ID) -> bulk.Line:
            return await real(host, BulkAt(port=port, token=way.token, certificate=way.certificate), peer)

        monkeypatch.setattr(bulk, "reach", diverted)
        _, taker, manifest = await giver_and_taker(made)
        await taker.network.fetch(manifest.id)
        await until(lambda: got, "the impostor has seen the end")
        assert got == [b""]
        assert taker.events.of("adapter.refused") == []
        nursery.cancel_scope.cancel()


async def test_a_token_is_for_one_use_and_one_adapter(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made:
        giver, taker, manifest = await giver_and_taker(made)
        other = await giver.publish(seed=1, rank=512)
        way = await way_in(giver, taker, manifest)
        assert [len(data) for data in await try_out(way, question(manifest), question(manifest, 2000))] == [1000, 2000]
        with pytest.raises(PeerUnreachable):
            await try_out(way, question(manifest))
        for wrong in (question(other), GetManifest(adapter=manifest.digest)):
            with pytest.raises(PeerUnreachable):
                await try_out(await way_in(giver, taker, manifest), wrong)
        guessed = await way_in(giver, taker, manifest)
        with pytest.raises(PeerUnreachable):
            await try_out(
                BulkAt(port=guessed.port, token=bytes(32), certificate=guessed.certificate), question(manifest)
            )


async def test_without_a_token_nobody_gets_a_byte_out_of_it(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made:
        giver, taker, manifest = await giver_and_taker(made)
        way = await way_in(giver, taker, manifest)
        await try_out(way)

        def knock() -> bytes:
            with socket.create_connection(("127.0.0.1", way.port), 20) as knocking:
                knocking.settimeout(20)
                try:
                    return knocking.recv(1)
                except ConnectionResetError:
                    return b""

        assert await trio.to_thread.run_sync(knock) == b"", "closed at once, without a hello"


async def test_ways_in_have_a_bound(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made:
        giver, taker, manifest = await giver_and_taker(made)
        for _ in range(TOKENS_EACH):
            await way_in(giver, taker, manifest)
        with pytest.raises(Exception, match="busy"):
            await way_in(giver, taker, manifest)
        await taker.network.fetch(manifest.id)


async def enter(way: BulkAt, leave: trio.Event, nursery: trio.Nursery, *, then: bytes = b"") -> None:
    """A channel that is open, says `then`, and reads nothing, until `leave`."""
    entered = trio.Event()

    def talk() -> None:
        bulk.enter(line, way)
        line.write(then)
        trio.from_thread.run_sync(entered.set)
        trio.from_thread.run(leave.wait)

    line = await bulk.reach("127.0.0.1", way, ID(b"giver"))
    nursery.start_soon(line.run, talk)
    await entered.wait()


async def test_one_peer_has_few_channels(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made, trio.open_nursery() as nursery:
        giver, taker, manifest = await giver_and_taker(made)
        node, leave = giver.network._node, trio.Event()
        assert node is not None
        for _ in range(CHANNELS_EACH):
            await enter(await way_in(giver, taker, manifest), leave, nursery)
        await until(lambda: node._bulk._peers_in.total() == CHANNELS_EACH, "all are in")
        with pytest.raises(PeerBusy):
            await way_in(giver, taker, manifest)
        leave.set()
        await until(lambda: not node._bulk._peers_in and not node._bulk._hosts_in, "all have left")
        assert await try_out(await way_in(giver, taker, manifest), question(manifest))


async def test_one_address_has_half_of_the_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_server, "CHANNELS_AT", 1)
    async with cluster(tmp_path, width=512) as made, trio.open_nursery() as nursery:
        giver, taker, manifest = await giver_and_taker(made)
        first, second, leave = await way_in(giver, taker, manifest), await way_in(giver, taker, manifest), trio.Event()
        await enter(first, leave, nursery)
        with pytest.raises(PeerUnreachable):
            await try_out(second, question(manifest))
        with pytest.raises(PeerBusy):
            await way_in(giver, taker, manifest)
        leave.set()


@pytest.mark.parametrize("loris", ["token", "question", "answer"])
async def test_who_goes_on_for_ever_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loris: str) -> None:
    """Half a token, half a question, or an answer that nobody reads: the thread is free again soon."""
    async with cluster(tmp_path, width=512) as made, trio.open_nursery() as nursery:
        giver, taker, manifest = await giver_and_taker(made)
        way, node = await way_in(giver, taker, manifest), giver.network._node
        assert node is not None
        asking, then = messages.encode(question(manifest, 2 << 20)), b""
        if loris == "token":
            way = BulkAt(port=way.port, token=way.token[:9], certificate=way.certificate)
        else:
            then = asking * 64 if loris == "answer" else asking[:9]
        monkeypatch.setattr(bulk, "LOOK_S", 0.01)
        monkeypatch.setattr(bulk, "CONNECT_S", 3600.0)
        limit = {"token": (bulk_server, "TOKEN_S"), "question": (bulk, "SILENCE_S"), "answer": (bulk, "DRIP_S")}[loris]
        monkeypatch.setattr(*limit, 0.5)
        await enter(way, trio.Event(), nursery, then=then)
        await until(lambda: not node._bulk._hosts_in, "it is out")
        nursery.cancel_scope.cancel()


async def test_questions_have_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_server, "QUESTIONS_BURST", 3.0)
    monkeypatch.setattr(bulk_server, "QUESTIONS_RATE", 1e-6)
    async with cluster(tmp_path, width=512) as made:
        giver, taker, manifest = await giver_and_taker(made)
        asking = [question(manifest)] * 4
        assert len(await try_out(await way_in(giver, taker, manifest), *asking[:3])) == 3
        with pytest.raises(PeerBusy, match="busy"):
            await try_out(await way_in(giver, taker, manifest), *asking)


async def test_what_is_not_published_has_no_way_in(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made:
        giver, taker, _ = await giver_and_taker(made)
        with pytest.raises(Exception, match="unknown"):
            await way_in(giver, taker, giver.make(seed=3))


def test_hosts_of_addresses() -> None:
    assert host_of("/ip4/192.0.2.7/tcp/4001") == "192.0.2.7"
    assert host_of("/ip6/2001:db8::1/tcp/4001/p2p/x") == "2001:db8::1"
    assert host_of("/ip4/192.0.2.7/tcp/4001/p2p/relay/p2p-circuit/p2p/x") is None
    assert host_of("/dns4/example.org/tcp/1") is None
    assert host_of("") is None


async def test_connections_that_are_reset_at_once_do_not_close_the_port(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made:
        giver, taker, manifest = await giver_and_taker(made)
        way = await way_in(giver, taker, manifest)
        assert giver.network._node is not None
        (listener,) = giver.network._node._bulk._listeners.values()
        for _ in range(3):
            with socket.create_connection(listener.socket.getsockname()) as knocking:
                knocking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        (data,) = await try_out(way, question(manifest))
        assert len(data) == 1000
