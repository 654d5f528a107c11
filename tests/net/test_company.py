"""Bans of real peers, remembered ones, and what is counted."""

from __future__ import annotations

import ast
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from orchd.errors import AddressInvalid, NotBanned, PeerBlocked, PeerIsSelf, PeerUnreachable
from orchd.identity import Identity
from orchd.net import figures, prometheus, remembering
from orchd.net.host import parse_peer_address, peer_id_of
from orchd.net.policy import rooms
from orchd.net.policy.book import Book
from orchd.net.policy.scores import Offence
from tests.net.support import TOPIC, Peer, cluster, joined_cluster, until

SOMEBODY = str(peer_id_of(Identity.from_seed(bytes(32)).public_key))


def blame(peer: Peer, other: Peer, offence: Offence) -> None:
    assert peer.network._node is not None
    assert other.network._node is not None
    peer.network._node.company.blame(other.network._node.host.id, offence, "planted")


async def test_enough_offences_are_a_ban_and_unban_lifts_it(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        blame(a, b, Offence.MALFORMED)
        assert a.network.bans() == []
        assert a.network.peers()[0].score in (54, 55)
        blame(a, b, Offence.MALFORMED)
        await a.events.wait("net.peer.lost", peer=b.network.peer_id)
        told = await a.events.wait("net.peer.banned", subject=b.network.peer_id)
        assert (told["reason"], told["seconds"]) == ("planted", 600)
        (ban,) = a.network.bans()
        assert (ban.subject, ban.by_user) == (b.network.peer_id, False)
        with pytest.raises(PeerUnreachable, match="hung up at once: it may have banned this node"):
            await b.network.connect(a.network.addresses()[0])
        assert not b.network.peers()
        assert await a.network.unban(b.network.peer_id) == b.network.peer_id
        await b.network.connect(a.network.addresses()[0])
        await until(lambda: a.network.topics()[0].members, "back")
        assert a.network.stats().counters["bans"] == 1


async def test_a_ban_by_the_user_holds_over_a_restart(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        await a.network.ban(b.network.peer_id, reason="rude")
        await a.events.wait("net.peer.lost", peer=b.network.peer_id)
        with pytest.raises(PeerBlocked, match="banned"):
            await a.network.connect(b.network.addresses()[0])
        assert remembering.load(a.registry.data).is_banned(b.network.peer_id, 0)
        (ban,) = a.network.status().bans
        assert (ban.subject, ban.until_ms, ban.reason, ban.by_user) == (b.network.peer_id, None, "rude", True)


async def test_a_peer_that_hangs_up_at_once_is_not_said_to_be_connected(tmp_path: Path) -> None:
    """Also where it was greeted on an earlier connection."""
    async with cluster(tmp_path) as made:
        a, b = await made.start("a", bootstrap=()), await made.start("b", bootstrap=())
        await a.network.connect(b.network.addresses()[0])
        for peer in (a, b):
            await peer.network.join(TOPIC)
        await until(lambda: a.network.topics()[0].members and b.network.topics()[0].members, "both have greeted")
        await a.network.ban(b.network.peer_id)
        await b.events.wait("net.peer.lost", peer=a.network.peer_id)
        with pytest.raises(PeerUnreachable, match="hung up at once: it may have banned this node"):
            await b.network.connect(a.network.addresses()[0])


async def test_a_place_can_be_banned_and_ends_by_itself(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a")
        ban = await a.network.ban("2001:db8:1:2:3::4", seconds=3600)
        assert ban.subject == "2001:db8:1:2::/64"
        assert ban.until_ms is not None
        assert await a.network.unban("2001:db8:1:2::/64") == ban.subject
        await a.network.ban("192.0.2.7", seconds=0)
        assert a.network.bans() == []
        with pytest.raises(NotBanned):
            await a.network.unban("192.0.2.7")
        for subject in ("nobody", "", "300.1.1.1"):
            with pytest.raises(AddressInvalid):
                await a.network.ban(subject)


async def test_a_ban_of_this_machine_is_refused(tmp_path: Path) -> None:
    """It would say "banned" and hold for nobody."""
    async with cluster(tmp_path) as made:
        a = await made.start("a")
        for subject in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
            with pytest.raises(AddressInvalid, match="is this machine"):
                await a.network.ban(subject)
        for subject in ("0.0.0.0", "::", "::/64", "224.0.0.1"):
            with pytest.raises(AddressInvalid, match="is no address that a peer comes from"):
                await a.network.ban(subject)
        assert a.network.bans() == []


async def test_a_node_does_not_meet_itself(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = made.make("a")
        a.network._context.book.reached(a.network.peer_id, "/ip4/127.0.0.1/tcp/1", 1)  # as an earlier orchd did
        await made.run(a)
        assert a.network._context.book.peers() == []
        own = a.network.addresses()[0]
        with pytest.raises(PeerIsSelf, match="is this node"):
            await a.network.connect(own)
        with pytest.raises(PeerIsSelf, match="is this node"):
            await a.network.ban(a.network.peer_id)
        assert a.network._node is not None
        peer, way = parse_peer_address(own)
        with suppress(PeerUnreachable):  # where something else of this process dials it
            await a.network._node.host.connect(peer, [way])
        await until(lambda: not a.network.peers(), "it hangs up on itself")
        assert (a.network.bans(), a.events.of("net.peer.connected")) == ([], [])


async def test_who_is_at_a_banned_place_is_banned_and_not_unreachable(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a")
        await a.network.ban("192.0.2.2")
        with pytest.raises(PeerBlocked, match="is banned here") as told:
            await a.network.connect(f"/ip4/192.0.2.2/tcp/4001/p2p/{SOMEBODY}")
        assert told.value.message.startswith("192.0.2.2, where")
        assert "net unban 192.0.2.2" in str(told.value.hint)
        assert a.network.stats().counters["dials"] == 0


async def test_peers_are_remembered_and_found_again_without_a_configured_address(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a", bootstrap=())
        b = await made.start("b", bootstrap=())
        for peer in (a, b):
            await peer.network.join(TOPIC)
        await b.network.connect(a.network.addresses()[0])
        await until(lambda: b.network.topics()[0].members, "met")
        await until(lambda: b.network.stats().gauges["remembered_peers"], "remembered")
        assert a.network.stats().gauges["remembered_peers"] == 0, "what the other end's address is, is not known"
        made.stop(b)
        await until(lambda: made.stopped(b))
        assert [entry.peer for entry in remembering.load(b.registry.data).peers()] == [a.network.peer_id]
        b.events.seen.clear()
        await made.run(b)
        await b.events.wait("net.peer.connected", peer=a.network.peer_id)


async def test_given_addresses_are_tried_and_kept(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a", bootstrap=())
        b = await made.start("b", bootstrap=())
        await b.network.remember([*a.network.addresses(), *b.network.addresses()])
        await b.events.wait("net.peer.connected", peer=a.network.peer_id)
        assert [entry.peer for entry in remembering.load(b.registry.data).peers()] == [a.network.peer_id]
        with pytest.raises(AddressInvalid):
            await b.network.remember(["/ip4/192.0.2.1/tcp/1"])


async def test_an_address_by_hand_that_is_none_is_passed_over(tmp_path: Path) -> None:
    book = Book()
    book.told("nonsense", ("also nonsense",))
    book.told(SOMEBODY, ("/ip4/127.0.0.1/tcp/1",))
    async with cluster(tmp_path) as made:
        peer = made.make("a")
        remembering.save(peer.registry.data, book)
        a = await made.start("b")
        remembered = {entry.peer for entry in remembering.load(peer.registry.data).peers()}
        assert remembered == {"nonsense", SOMEBODY}
        assert a.network._node is not None
        for entry in book.peers():
            a.network._node.company.meet_remembered(entry)
        await until(lambda: a.network.stats().counters["dials_failed"] == 1, "only the other one was dialled")


async def test_members_stay_and_strangers_go_when_there_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "STRANGERS", 1)
    monkeypatch.setattr(rooms, "CROWDED", 2)
    async with cluster(tmp_path) as made:
        a, member = await joined_cluster(made, 2)
        strangers = [await made.start(f"stranger{number}") for number in range(2)]
        await until(lambda: a.network.stats().counters["strangers_let_go"], "one goes")
        await strangers[0].events.wait("net.peer.lost", peer=a.network.peer_id)
        assert member.network.peer_id in {peer.peer for peer in a.network.peers()}
        assert not member.events.of("net.peer.lost")


async def test_bytes_of_what_is_open_and_of_what_has_ended_are_counted_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        (seen,) = a.network.peers()
        assert seen.bytes_in > 0
        assert a.network.stats().counters["bytes_in"] >= seen.bytes_in
        made.stop(b)
        await a.events.wait("net.peer.lost", peer=b.network.peer_id)
        counted = a.network.stats().counters
        assert counted["bytes_in"] >= seen.bytes_in
        assert counted["bytes_out"] > 0
        assert counted["bytes_in"] < 10 * seen.bytes_in + 100_000


async def test_prometheus_text(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a")
        text = prometheus(a.network.stats())
        assert "# TYPE orchd_net_bytes_in_total counter\norchd_net_bytes_in_total 0\n" in text
        assert "# TYPE orchd_net_up gauge\norchd_net_up 1\n" in text
        with trio.fail_after(5), pytest.raises(PeerUnreachable):
            await a.network.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{SOMEBODY}")
        assert "\norchd_net_dials_failed_total 1\n" in prometheus(a.network.stats())
        for line in text.splitlines():
            assert line.startswith("# ") or line.split(" ")[1].isdigit()


def test_every_counter_has_a_meaning() -> None:
    """Read from the source: `count("…")` in any file of the network."""
    counted = set()
    for file in Path(figures.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and "count" in node.func.attr:
                counted |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and arg.value != 1}
    assert len(counted) > 5
    assert {name for name in counted if isinstance(name, str)} - set(figures.MEANINGS) == set()
