"""Names in addresses (`/dns4/HOST/tcp/…`), resolved as every other program of the machine does."""

from __future__ import annotations

import importlib
import socket
from typing import Any

import trio
from multiaddr import Multiaddr  # type: ignore[import-untyped]

#: Where the library has its own resolver.
LIBRARY = "multiaddr.resolvers"
FAMILIES = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}


class Resolver:
    """Stands for the library's `DNSResolver`, which asks a DNS server alone: it knows neither `/etc/hosts` nor
    `laptop.local`, and costs every daemon 98 modules (4 MB). It is loaded for `/dnsaddr`, a list kept in DNS."""

    async def resolve(self, address: Multiaddr, options: dict[str, Any] | None = None) -> list[Multiaddr]:
        """The addresses with an IP address instead of the name. Raises `OSError` for a name that nobody knows."""
        _, kind, name, rest = [*str(address).split("/", 3), "", ""][:4]
        if kind == "dnsaddr":
            library = importlib.import_module(LIBRARY).DNSResolver()
            return list(await library.resolve(address, options))
        if kind not in FAMILIES:
            return [address]
        found = await trio.socket.getaddrinfo(name, None, family=FAMILIES[kind], type=socket.SOCK_STREAM)
        return [
            Multiaddr(f"/{'ip6' if family == socket.AF_INET6 else 'ip4'}/{place[0]}/{rest}")
            for family, _, _, _, place in found
        ]
