"""Where a connection leads to, and what a peer says of itself: over IPv6, after a reset, behind relays."""

from __future__ import annotations

from pathlib import Path

import pytest
from libp2p.host import basic_host
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.io.trio import TrioTCPStream
from libp2p.peer.peerstore import PeerStore
from multiaddr import Multiaddr

from orchd.errors import PeerUnreachable
from orchd.identity import Identity
from orchd.net import hardening, relayed, said
from orchd.net.context import address_of
from orchd.net.hardening import without
from orchd.net.host import Host, peer_id_of, run_host
from tests.net.support import Cluster, Peer, cluster, until
from tests.net.test_hardening import join
from tests.net.test_relay import circuits, node_of

IPV6 = ("/ip6/::1/tcp/0",)
SOMEBODY = peer_id_of(Identity.from_seed(bytes(32)).public_key)

# ---- over IPv6 -------------------------------------------------------------------------------------------------


async def addresses_over_ipv6() -> list[str]:
    """At both ends of one connection."""
    one, other = Identity.from_seed(bytes(32)), Identity.from_seed(bytes([1]) * 32)
    async with run_host(one, IPV6) as server, run_host(other, IPV6) as client:
        if not server.basic.get_transport_addrs():
            pytest.skip("not run: this machine has no IPv6")
        await join(client, server)
        await until(lambda: server.connected(client.id), "the other end")
        return [address_at(client, server), address_at(server, client)]


def address_at(host: Host, other: Host) -> str:
    return address_of(host.connections(other.id)[0])


async def test_an_ipv6_peer_has_an_address() -> None:
    assert [address.startswith("/ip6/::1/tcp/") for address in await addresses_over_ipv6()] == [True, True]
    with without(hardening.ipv6_addresses_are_known):
        with pytest.raises(BaseExceptionGroup) as caught:  # who has no address is not let in
            await addresses_over_ipv6()
        assert caught.group_contains(PeerUnreachable)


async def test_over_ipv6_a_lan_topic_a_slot_and_a_bulk_channel_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayed, "FIRST_S", 0.0)
    async with cluster(tmp_path, width=512) as made:
        giver = await made.start("giver", listen=IPV6)
        if not giver.network.addresses():
            pytest.skip("not run: this machine has no IPv6")
        taker = await made.start("taker", listen=())
        await until(lambda: circuits(taker), "a slot")
        for peer in (giver, taker):
            await peer.network.join("lan/here")
        await until(lambda: taker.network.topics()[0].members, "they are on one network")
        manifest = await giver.publish(rank=1024, topic="lan/here")
        await taker.network.fetch(manifest.id, peers=[giver.network.peer_id])
        assert taker.network.stats().counters["bulk_channels_used"] == 1


# ---- without an address ------------------------------------------------------------------------------------------


async def pair_that_tries(made: Cluster, monkeypatch: pytest.MonkeyPatch, ours: bool) -> tuple[Peer, Peer]:
    """Connections that end at the first one's port lose their address at one end, `ours`: where they were made."""
    a = await made.start("a")
    port = int(a.network.addresses()[0].split("/")[4])
    stock = hardening._remote_address

    def unknown(stream: TrioTCPStream) -> tuple[str, int] | None:
        here, there = stream.stream.socket.getsockname(), stock(stream)
        return None if port == (there[1] if ours and there else here[1]) else there

    monkeypatch.setattr(hardening, "_remote_address", unknown)
    return a, await made.start("b", bootstrap=())


@pytest.mark.parametrize("ours", [True, False], ids=["dialled", "taken"])
async def test_a_link_of_which_nobody_knows_where_it_leads_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    async with cluster(tmp_path) as made:
        a, b = await pair_that_tries(made, monkeypatch, ours)
        with pytest.raises(PeerUnreachable):
            await b.network.connect(a.network.addresses()[0])
        await until(lambda: not a.network.peers() and not b.network.peers(), "both know that it is gone")


# ---- what a peer says of itself ----------------------------------------------------------------------------------


async def test_what_was_said_last_is_what_counts() -> None:
    hardening.harden()
    peerstore = PeerStore()
    for told in (["/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.2/tcp/1"], ["/ip4/192.0.2.3/tcp/1"], []):
        message = Identify(listen_addrs=[b"\xff", *(Multiaddr(one).to_bytes() for one in told)])
        await basic_host.update_peerstore_from_identify(peerstore, SOMEBODY, message)
        assert said.addresses(peerstore, SOMEBODY) == tuple(told)
        assert list(map(str, peerstore.addrs(SOMEBODY))) == told, "garbage is kept nowhere"
    assert said.addresses(peerstore, peer_id_of(Identity.from_seed(bytes([3]) * 32).public_key)) == ()


async def test_a_relay_that_has_a_slot_itself_relays_where_it_was_dialled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayed, "FIRST_S", 0.0)
    async with cluster(tmp_path) as made:
        first = await made.start("first")
        second = await made.start("second")
        await until(lambda: circuits(second), "a slot at the first")
        here = await made.start("here", listen=(), bootstrap=(second.network.addresses()[0],))
        await until(lambda: circuits(here), "a slot")
        assert second.network.peer_id in circuits(here)[0]
        assert first.network.peer_id not in circuits(here)[0]


async def test_what_others_say_of_a_relay_and_what_it_said_before_is_no_reason_to_pass_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path) as made:
        relay = await made.start("relay")
        here = await made.start("here", listen=())
        target, host = node_of(relay).host.id, node_of(here).host
        await until(lambda: host.said_addresses(target), "identified")
        through = Multiaddr(f"/ip4/192.0.2.1/tcp/1/p2p/{SOMEBODY}/p2p-circuit")
        host.basic.get_peerstore().add_addrs(target, [through], 3600)
        assert through in host.known_addresses(target)
        assert node_of(here).relayed._may_relay(target)
        monkeypatch.setattr(Host, "said_addresses", lambda host, peer: (str(through), "/ip4/10.9.9.9/tcp/4001"))
        assert not node_of(here).relayed._may_relay(target), "it was reached through a hole"
