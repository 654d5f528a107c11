"""Each correction that tries again: the failure without it, and its absence with it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.peer.id import ID
from libp2p.pubsub.pubsub import Pubsub

from orchd.net import retries
from orchd.net.hardening import without
from orchd.net.host import Host
from tests.net.support import until
from tests.net.test_hardening import MESHSUB, a_host, join, two_that_gossip

#: How often opening a stream fails, as on a machine that is busy.
FAILURES = 2


class Busy:
    """A host on which the first streams of one protocol can't be opened. `failed` counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
        self.failed = 0
        self.gave_up = trio.Event()
        stock = BasicHost.new_stream

        async def new_stream(host: BasicHost, peer: ID, protocols: Any) -> Any:
            if protocol in protocols and self.failed < FAILURES:
                self.failed += 1
                raise StreamFailure(f"failed to open a stream to peer {peer}")
            return await stock(host, peer, protocols)

        monkeypatch.setattr(BasicHost, "new_stream", new_stream)

    def watch(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        """`gave_up` is set when what the library runs for a peer has ended."""
        run: Callable[..., Any] = getattr(owner, name)

        async def watched(*arguments: Any, **named: Any) -> None:
            await run(*arguments, **named)
            self.gave_up.set()

        monkeypatch.setattr(owner, name, watched)


def identified(host: Host, peer: Host) -> bool:
    return bool(host.protocols(peer.id))


async def test_a_peer_stays_unknown_without_the_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    with without(retries.identified_in_the_end):
        async with a_host(1) as server, a_host(2) as client:
            busy = Busy(monkeypatch, "/ipfs/id/1.0.0")
            busy.watch(monkeypatch, BasicHost, "_identify_task_entry")
            await join(client, server)
            await busy.gave_up.wait()
            assert busy.failed
            assert not (identified(client, server) and identified(server, client))


async def test_a_peer_is_identified_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSE_S", 0.05)
    async with a_host(1) as server, a_host(2) as client:
        busy = Busy(monkeypatch, "/ipfs/id/1.0.0")
        await join(client, server)
        await until(lambda: identified(client, server) and identified(server, client))
        assert busy.failed == FAILURES


async def test_who_has_gone_is_not_asked_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSE_S", 0.05)
    async with a_host(1) as server, a_host(2) as client:
        monkeypatch.setattr(Busy(monkeypatch, "/ipfs/id/1.0.0"), "failed", -1_000_000)
        await join(client, server)
        await until(lambda: server.id in client.basic._identify_inflight)
        await client.disconnect(server.id)
        await until(lambda: server.id not in client.basic._identify_inflight)


async def test_a_peer_never_gossips_without_the_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    with without(retries.gossip_reaches_in_the_end):
        busy = Busy(monkeypatch, MESHSUB)
        busy.watch(monkeypatch, Pubsub, "_handle_new_peer_with_retry")
        async with two_that_gossip(monkeypatch) as (ours, theirs):
            await busy.gave_up.wait()
            assert not (ours.peers and theirs.peers)


async def test_a_peer_gossips_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Busy(monkeypatch, MESHSUB)
    async with two_that_gossip(monkeypatch) as (ours, theirs):
        await until(lambda: bool(ours.peers and theirs.peers))
        assert busy.failed == FAILURES


def subscribe_while_greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has written its greeting, and not sent it yet, subscribes to a topic."""
    stock = Pubsub.get_hello_packet

    def hello(pubsub: Pubsub) -> Any:
        packet = stock(pubsub)
        trio.lowlevel.spawn_system_task(pubsub.subscribe, "late")
        return packet

    monkeypatch.setattr(Pubsub, "get_hello_packet", hello)


async def hear_of_the_last(ours: Pubsub, theirs: Pubsub) -> None:
    """Until each knows of a topic that the other subscribed to after they had met."""
    await until(lambda: bool(ours.peers and theirs.peers))
    await ours.subscribe("last")
    await theirs.subscribe("last")
    await until(lambda: bool(ours.peer_topics.get("last") and theirs.peer_topics.get("last")))


async def test_a_topic_is_missed_without_the_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    with without(retries.gossip_reaches_in_the_end):
        subscribe_while_greeting(monkeypatch)
        async with two_that_gossip(monkeypatch) as (ours, theirs):
            await hear_of_the_last(ours, theirs)
            assert not (ours.peer_topics.get("late") and theirs.peer_topics.get("late"))


async def test_a_topic_that_was_subscribed_to_meanwhile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    subscribe_while_greeting(monkeypatch)
    async with two_that_gossip(monkeypatch) as (ours, theirs):
        await hear_of_the_last(ours, theirs)
        await until(lambda: bool(ours.peer_topics.get("late") and theirs.peer_topics.get("late")))


async def test_who_does_not_gossip_is_not_asked_for_ever() -> None:
    async with a_host(1) as server, a_host(2) as client:
        await join(client, server)
        await until(lambda: identified(client, server))
        pubsub: Any = SimpleNamespace(host=client.basic, protocols=[MESHSUB])
        assert not retries._may_gossip(pubsub, server.id), "it has told what it speaks, and this is not in it"
        assert retries._may_gossip(pubsub, ID(b"\x12\x20" + bytes(32)))
