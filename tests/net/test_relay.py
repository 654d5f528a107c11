"""Nodes that nobody can reach, through one that everybody can: slots, circuits, limits, direct connections after."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamError
from multiaddr import Multiaddr

from orchd.errors import OrchdError, PeerRefused, PeerUnreachable
from orchd.identity import Identity
from orchd.net import punch, relayed
from orchd.net.circuit import Wire
from orchd.net.doctor import Finding
from orchd.net.host import is_through_relay, peer_id_of
from orchd.net.node import Node
from orchd.net.policy import relay as policy
from orchd.net.policy.rates import Bucket
from orchd.net.policy.rounds import Rounds
from orchd.net.relay_messages import (
    DCUTR,
    HOP,
    STOP,
    Answer,
    Connect,
    Meet,
    Status,
    decode_hop,
    decode_stop,
    encode_punch,
    encode_stop,
)
from tests.net.support import TOPIC, Cluster, Peer, cluster, until

NOBODY = peer_id_of(Identity.from_seed(bytes(32)).public_key)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots are asked for without waiting for who might come."""
    monkeypatch.setattr(relayed, "FIRST_S", 0.0)


def node_of(peer: Peer) -> Node:
    assert peer.network._node is not None
    return peer.network._node


def circuits(peer: Peer) -> list[str]:
    return [address for address in peer.network.addresses() if "/p2p-circuit/" in address]


def see_each_other(a: Peer, b: Peer) -> bool:
    return node_of(a).host.connected(node_of(b).host.id)


def record_waits(relay: Peer) -> list[float]:
    """From now on the relay's pace is slow; how long each portion would have to wait for it, in seconds."""
    waits: list[float] = []
    pace = node_of(relay).relay._pace
    pace.rate = 1_000.0
    reserve = pace.reserve

    def recorded(now: float, count: int) -> float:
        waits.append(reserve(now, count))
        return 0.0

    pace.reserve = recorded  # type: ignore[method-assign]
    return waits


@asynccontextmanager
async def hidden_pair(folder: Path, **settings: Any) -> AsyncIterator[tuple[Peer, Peer, Peer, Cluster]]:
    """A relay, and two nodes that listen nowhere and are connected through it; all in one topic."""
    async with cluster(folder) as made:
        relay = await made.start("relay", **settings)
        pair = [await made.start(name, listen=()) for name in ("here", "there")]
        for peer in (relay, *pair):
            await peer.network.join(TOPIC)
        here, there = pair
        await until(lambda: see_each_other(here, there), "the two are connected")
        await until(lambda: here.network.topics()[0].members == 2, "members")
        yield relay, here, there, made


async def test_two_that_nobody_can_reach_meet_and_fetch_over_the_stream(tmp_path: Path) -> None:
    async with hidden_pair(tmp_path) as (relay, here, there, _):
        waits = record_waits(relay)
        made = await here.publish(rank=64)
        admission = await there.network.fetch(made.id, peers=[here.network.peer_id])
        assert admission.verdict == "admitted"
        assert max(waits) > 0, "what is beyond the pace waits"
        assert relay.network.stats().counters["relay_bytes"] > made.record.size
        assert relay.network.stats().gauges["relay_circuits"] >= 1
        assert here.network.stats().counters["bulk_channels"] == 0
        assert here.network.stats().counters["bytes_served"] >= made.record.size
        for peer in (here, there):
            (shown,) = [one for one in peer.network.peers() if one.peer != relay.network.peer_id]
            assert "/p2p-circuit/" in shown.address
            counters = peer.network.stats().counters
            assert counters["inbound_from_afar"] == counters["inbound"] == 0, "nobody has reached it directly"
        checks = {check.name: check for check in await here.network.examine()}
        assert checks["through relays"].finding is Finding.OK
        assert relay.network.peer_id in checks["through relays"].found
        assert checks["reachable from outside"].finding is Finding.FAILED
        assert checks["hole punching"].finding is Finding.WARNING


async def test_its_address_is_in_an_invitation_and_is_enough_to_meet(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        relay = await made.start("relay")
        here = await made.start("here", listen=())
        await until(lambda: circuits(here), "a slot")
        assert circuits(here)[0] in here.network.invite_addresses()
        there = await made.start("there", listen=(), bootstrap=())
        await there.network.connect(circuits(here)[0])
        assert see_each_other(here, there)
        assert see_each_other(relay, there), "the relay itself was dialled first"
        assert [entry.peer for entry in there.network._context.book.peers()] in ([], [relay.network.peer_id])


async def test_who_relays_for_nobody_says_so_and_is_not_asked(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        relay = await made.start("relay", relay=False)
        here = await made.start("here", listen=())
        await until(lambda: node_of(here).host.protocols(node_of(relay).host.id), "identified")
        await node_of(here).relayed.look()
        assert circuits(here) == []
        checks = {check.name: check for check in await here.network.examine()}
        assert checks["through relays"].finding is Finding.UNKNOWN
        checks = {check.name: check for check in await relay.network.examine()}
        assert checks["relaying for others"].finding is Finding.OFF


async def test_a_slot_goes_with_the_connection_and_another_relay_is_asked(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        relays = [await made.start(f"relay{number}", bootstrap=()) for number in range(3)]
        # (they don't know each other: one that takes a slot at another on a slow machine counts as hidden)
        bootstrap = tuple(relay.network.addresses()[0] for relay in relays)
        here = await made.start("here", listen=(), bootstrap=bootstrap)
        await until(lambda: len(node_of(here).relayed.slots) == policy.WANTED, "two slots")
        held = {slot.relay.peer for slot in node_of(here).relayed.slots}
        (lost,) = [relay for relay in relays if node_of(relay).host.id in held][:1]
        made.stop(lost)
        await until(lambda: made.stopped(lost))
        await until(lambda: not any(lost.network.peer_id in address for address in circuits(here)), "it is gone")
        await until(lambda: len(circuits(here)) == policy.WANTED, "another one")


async def test_a_relay_with_no_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "SLOTS", 0)
    async with cluster(tmp_path) as made:
        await made.start("relay")
        here = await made.start("here", listen=())
        await until(lambda: node_of(here).relayed.refusal, "it is refused")
        check = {check.name: check for check in await here.network.examine()}["through relays"]
        assert (check.finding, "resource limit exceeded" in check.found) == (Finding.WARNING, True)


async def test_a_circuit_that_has_carried_its_share_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hidden_pair(tmp_path) as (relay, here, there, _):
        spent = set(node_of(relay).relay.slots._circuits)  # two, if both have dialled
        for circuit in spent:
            circuit.left = 1000
        manifest = await here.publish(rank=64)
        with pytest.raises(OrchdError):
            await node_of(there).manifest_from(manifest.digest, node_of(here).host.id)
        await until(lambda: relay.network.stats().counters["relay_limit_reached"], "the limit")
        await until(lambda: not spent & node_of(relay).relay.slots._circuits, "it is given back")
        await until(lambda: see_each_other(here, there), "they have sought each other again")
        admission = await there.network.fetch(manifest.id, peers=[here.network.peer_id])
        assert admission.verdict == "admitted", "a new one carries again"


async def test_members_whose_circuit_ends_seek_each_other_again(tmp_path: Path) -> None:
    async with hidden_pair(tmp_path) as (relay, here, there, _):
        for peer in (relay, here, there):
            node_of(peer)._rounds = Rounds(1e6, 1e6, random.Random(0))  # no lookup finds anybody
        before = node_of(here).host.connections(node_of(there).host.id)
        await node_of(here).host.disconnect(node_of(there).host.id)
        await until(lambda: all(one.is_closed for one in before) and see_each_other(here, there), "again")


async def test_the_user_gives_a_direct_address_of_a_peer_behind_a_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(punch.Punch, "upgrade", nothing)
    async with cluster(tmp_path) as made:
        await made.start("relay")
        here = await made.start("here")
        await until(lambda: circuits(here), "a slot")
        there = await made.start("there")
        target = node_of(here).host.id
        await node_of(there).host.connect(target, [Multiaddr(circuits(here)[0])])
        assert not node_of(there).host.is_direct(target)
        await there.network.connect(here.network.addresses()[0])
        assert node_of(there).host.is_direct(target)


async def nothing(self: Any, connection: Any) -> None:
    pass


async def test_nobody_relays_over_a_relay_and_strangers_bring_nobody(tmp_path: Path) -> None:
    async with hidden_pair(tmp_path) as (relay, here, there, _):
        beyond = node_of(here).host.id
        with pytest.raises(PeerUnreachable):
            await node_of(there).relayed._ask(beyond, b"")
        stream = await node_of(there).host.basic.new_stream(beyond, [TProtocol(HOP)])
        wire = Wire(stream)
        await wire.send(b"\x02\x08\x00")  # reserve
        answer = decode_hop(await wire.receive())
        assert isinstance(answer, Answer)
        assert answer.status == Status.PERMISSION_DENIED
        stream = await node_of(there).host.basic.new_stream(beyond, [TProtocol(STOP)])
        wire = Wire(stream)
        await wire.send(encode_stop(Connect(node_of(relay).host.id)))
        refused = decode_stop(await wire.receive())
        assert isinstance(refused, Answer)
        assert refused.status == Status.PERMISSION_DENIED


async def test_a_peer_can_not_make_a_node_knock_again_and_again(tmp_path: Path) -> None:
    async with hidden_pair(tmp_path) as (_, here, there, _):
        target = node_of(here)
        target._punch._bucket = Bucket(0.0, 0.0, trio.current_time())
        (connection, *_) = target.host.connections(node_of(there).host.id)
        before = here.network.stats().counters["punches"]
        await target._punch.upgrade(connection)
        wire = Wire(await node_of(there).host.basic.new_stream(target.host.id, [TProtocol(DCUTR)]))
        await wire.send(encode_punch(Meet(())))
        with pytest.raises(PeerUnreachable):
            await wire.receive()
        assert here.network.stats().counters["punches"] == before


async def test_a_slot_is_renewed_while_it_is_needed(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        await made.start("relay")
        here = await made.start("here", listen=())
        await until(lambda: circuits(here), "a slot")
        ways = node_of(here).relayed
        for inbound in (0, 1):
            here.network._context.counters["inbound"] = inbound
            (slot,) = ways.slots
            ways._slots[slot.relay.peer] = replace(slot, renew_at=0.0)
            await ways.look()
            assert len(circuits(here)) == 1 - inbound
        assert here.network.stats().counters["relay_slots_taken"] == 2


async def test_who_has_no_slot_is_not_reached(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        relay = await made.start("relay")
        there = await made.start("there", listen=())
        address = Multiaddr(f"{relay.network.addresses()[0]}/p2p-circuit")
        with pytest.raises(PeerRefused, match="no reservation"):
            await node_of(there).relayed.dial(address, NOBODY)


async def test_garbage_on_its_protocols_costs_a_stream(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        relay = await made.start("relay")
        here = await made.start("here", listen=())
        await until(lambda: circuits(here), "a slot")
        sent = (b"\xff" * 50, b"\x05\x08\x07\x12\x01\x00", b"\x00", b"\x81\x80\x01", b"\x02\x08\x02")
        for protocol, garbage in product((HOP, STOP, DCUTR), sent):
            stream = await node_of(here).host.basic.new_stream(node_of(relay).host.id, [TProtocol(protocol)])
            with suppress(StreamError):
                await stream.write(garbage)
                await stream.close()
        await until(lambda: relay.network.stats().gauges["relay_slots"] == 1, "still there")
        assert relay.network.status().restarts == 0
        there = await made.start("there", listen=())
        await there.network.connect(circuits(here)[0])
        assert see_each_other(here, there)


async def direct_after_relayed(made: Cluster) -> tuple[Peer, Peer]:
    """Two nodes that listen, and meet through a relay all the same; connected directly afterwards."""
    await made.start("relay")
    here = await made.start("here")
    await until(lambda: circuits(here), "a slot")
    there = await made.start("there")
    target = node_of(here).host.id
    await node_of(there).host.connect(target, [Multiaddr(circuits(here)[0]).decapsulate_code(421)])
    await until(lambda: node_of(there).host.is_direct(target), "a direct connection")
    return here, there


def has_relayed(one: Peer, other: Peer) -> bool:
    return any(map(is_through_relay, node_of(one).host.connections(node_of(other).host.id)))


async def test_a_direct_connection_takes_the_relayed_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(punch, "QUIET_LOOK_S", 0.1)
    async with cluster(tmp_path) as made:
        here, there = await direct_after_relayed(made)
        await until(lambda: here.network.stats().counters["punches_done"], "counted")
        await until(lambda: not has_relayed(here, there) and not has_relayed(there, here), "the relayed one is closed")
        assert node_of(there).host.is_direct(node_of(here).host.id)
        check = {check.name: check for check in await here.network.examine()}["hole punching"]
        assert (check.finding, check.found[:7]) == (Finding.OK, "1 of 1 ")


async def test_holes_are_punched_where_plain_dials_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On loopback there are no routers: that both sides tell addresses and dial at once, and that one connection
    comes of it, is all that this shows. `test_ways.py` has routers."""

    async def fails(self: Any, peer: Any, connection: Any) -> bool:
        return False

    monkeypatch.setattr(punch.Punch, "_plainly", fails)
    async with cluster(tmp_path) as made:
        here, there = await direct_after_relayed(made)
        await until(lambda: here.network.stats().counters["punches_done"], "counted here")
        await until(lambda: there.network.stats().counters["punches"], "and there")


async def test_a_relay_that_refused_is_no_reason_to_look_again_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: a node with all the slots that it wants looked for more, without a pause, for hours."""
    monkeypatch.setattr(relayed, "WANTED", 1)
    async with cluster(tmp_path) as made:
        await made.start("relay")
        here = await made.start("here")
        await until(lambda: circuits(here), "a slot")
        slots = node_of(here).relayed
        slots._refused[NOBODY] = trio.current_time()
        await slots.look()
        assert slots._next_look() > trio.current_time() + 1
