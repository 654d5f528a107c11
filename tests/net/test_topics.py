"""Topics on the DHT: the library's lookup beside ours, on real hosts."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from orchd.identity import Identity
from orchd.net import topics
from orchd.net.host import Host, run_host
from tests.net.support import LOOPBACK, until

NAME = "test/topic"


async def hosts(stack: AsyncExitStack, count: int) -> list[Host]:
    """Hosts that are all connected to the first one, and know it."""
    found = [
        await stack.enter_async_context(run_host(Identity.from_seed(bytes([9, number]) * 16), LOOPBACK))
        for number in range(count)
    ]
    for host in found[1:]:
        await host.connect(found[0].id, found[0].basic.get_transport_addrs())
        await until(lambda host=host: host.dht.get_routing_table_size() >= 1)  # type: ignore[misc]
    await until(lambda: found[0].dht.get_routing_table_size() == count - 1)
    return found


def somebody(number: int) -> PeerInfo:
    """A provider that nobody could reach."""
    return PeerInfo(ID(b"\x12\x20" + bytes([number]) * 32), [Multiaddr(f"/ip4/192.0.2.1/tcp/{number + 1}")])


async def test_everybody_who_announced_is_found() -> None:
    async with AsyncExitStack() as stack:
        everybody = await hosts(stack, 4)
        for host in everybody:
            assert await topics.announce(host.dht, NAME)
        for host in everybody:
            found = await topics.lookup(host.dht, NAME)
            assert set(found) == {other.id for other in everybody} - {host.id}
            assert all(addresses for addresses in found.values())


async def test_a_node_that_announced_finds_others_and_not_only_itself() -> None:
    async with AsyncExitStack() as stack:
        server, client = await hosts(stack, 2)
        server.dht.provider_store.add_provider(topics.provider_key(NAME), somebody(1))
        assert await topics.announce(client.dht, NAME)
        stock = await client.dht.provider_store.find_providers(topics.provider_key(NAME))
        assert [info.peer_id for info in stock] == [client.id]
        assert list(await topics.lookup(client.dht, NAME)) == [somebody(1).peer_id]


async def test_every_provider_of_a_server_is_found_not_the_first_twenty() -> None:
    async with AsyncExitStack() as stack:
        server, client = await hosts(stack, 2)
        for number in range(60):
            server.dht.provider_store.add_provider(topics.provider_key(NAME), somebody(number))
        stock = await client.dht.provider_store.find_providers(topics.provider_key(NAME))
        assert len(stock) == 20
        client.dht.provider_store.providers.clear()
        assert len(await topics.lookup(client.dht, NAME)) == 60


async def test_in_a_small_network_it_is_announced_again_without_a_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        server, client = await hosts(stack, 2)
        await until(lambda: client.dht.get_routing_table_size() == 1, "it is known")
        key = topics.provider_key(NAME)

        async def no_lookup(wanted: bytes) -> list[ID]:
            raise AssertionError("it asks others")

        monkeypatch.setattr(client.dht.peer_routing, "find_closest_peers_network", no_lookup)
        assert await topics.announce(client.dht, NAME, again=True)
        await until(lambda: client.id in [one.peer_id for one in server.dht.provider_store.get_providers(key)])
        monkeypatch.setattr(topics, "SMALL_NETWORK", 0)
        with pytest.raises(AssertionError, match="asks others"):
            await topics.announce(client.dht, NAME, again=True)


async def test_nobody_to_ask() -> None:
    async with AsyncExitStack() as stack:
        (alone,) = await hosts(stack, 1)
        assert await topics.lookup(alone.dht, NAME) == {}
        assert not await topics.announce(alone.dht, NAME)


async def test_who_holds_all_places_around_the_key_hides_nobody_from_peers_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The closest servers are hostile here: they take no announcement and answer nothing."""

    async def nobody_takes_it(key: bytes) -> bool:
        return False

    async with AsyncExitStack() as stack:
        server, client = await hosts(stack, 2)
        monkeypatch.setattr(topics, "_first_servers", lambda dht, key: [])
        monkeypatch.setattr(client.dht.provider_store, "provide", nobody_takes_it)
        await topics.announce(client.dht, NAME, [server.id])
        key = topics.provider_key(NAME)
        await until(lambda: client.id in [info.peer_id for info in server.dht.provider_store.get_providers(key)])
        server.dht.provider_store.add_provider(key, somebody(1))
        assert await topics.lookup(client.dht, NAME) == {}
        assert list(await topics.lookup(client.dht, NAME, aside=[server.id])) == [somebody(1).peer_id]
