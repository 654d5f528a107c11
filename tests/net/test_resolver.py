"""Names in addresses."""

from __future__ import annotations

import socket

import pytest
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.net.resolver import Resolver


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("/dns4/localhost/tcp/4001", "/ip4/127.0.0.1/tcp/4001"),
        ("/ip4/192.0.2.7/tcp/1", "/ip4/192.0.2.7/tcp/1"),
        ("/ip6/::1", "/ip6/::1"),
    ],
)
async def test_what_the_machine_knows(given: str, wanted: str) -> None:
    assert [str(one) for one in await Resolver().resolve(Multiaddr(given))] == [wanted]


async def test_the_way_behind_the_name_stays() -> None:
    relayed = "/tcp/1/p2p/12D3KooWRFsxsR2rxG9yJ7N9bjin2hANiNQaocK4emSQ7VL8QUUW/p2p-circuit"
    (found,) = await Resolver().resolve(Multiaddr("/dns4/localhost" + relayed))
    assert str(found) == "/ip4/127.0.0.1" + relayed


async def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(socket.gaierror):
        await Resolver().resolve(Multiaddr("/dns/no-such-machine.invalid/tcp/1"))


async def test_a_list_kept_in_dns_is_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    from multiaddr.resolvers import DNSResolver  # the real one, loaded late

    async def resolve(self: object, address: Multiaddr, options: object = None) -> list[Multiaddr]:
        return [Multiaddr("/ip4/192.0.2.1/tcp/9")]

    monkeypatch.setattr(DNSResolver, "resolve", resolve)
    assert [str(one) for one in await Resolver().resolve(Multiaddr("/dnsaddr/example.org"))] == ["/ip4/192.0.2.1/tcp/9"]
