"""Nodes on the same LAN find each other by mDNS (RFC 6762), with nothing configured.

libp2p's format (https://github.com/libp2p/specs/blob/master/discovery/mdns.md) under the private network name
`orchd`: one `dnsaddr=` text record for each concrete address. The library's own broadcaster is not used: it also
advertises itself as `0.0.0.0`, learns its address by a socket towards 8.8.8.8, and blocks the event loop.
"""

from __future__ import annotations

import logging
import random
import string
from collections.abc import Callable
from contextlib import suppress

import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]
from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from orchd.errors import AddressInvalid
from orchd.net.capture import Capture
from orchd.net.host import parse_peer_address
from orchd.net.node import Node
from orchd.net.policy.reach import is_relayed

log = logging.getLogger(__name__)

SERVICE = "_p2p-orchd._udp.local."
#: How long to wait for the records of a service, in milliseconds, and for the goodbye, in seconds.
RESOLVE_MS, GOODBYE_S = 3000, 1.0
#: Addresses of ours that are advertised.
ADDRESSES = 8

Found = Callable[[ID, list[Multiaddr]], None]


async def run(node: Node, capture: Capture | None = None) -> None:
    """Advertise this node and meet those that are heard, until cancelled. Without multicast: log it, do nothing."""
    token = trio.lowlevel.current_trio_token()

    meets = [node.company.meet]

    def found(peer: ID, addresses: list[Multiaddr]) -> None:
        """Called in a thread of zeroconf."""
        with suppress(trio.RunFinishedError, IndexError):
            token.run_sync_soon(meets[0], peer, addresses)

    name = "".join(random.SystemRandom().choices(string.ascii_lowercase + string.digits, k=32))
    try:
        addresses = list(map(str, node.host.direct_addresses()))
        stop = await trio.to_thread.run_sync(start, name, addresses, found, capture)
    except OSError as error:
        log.warning("no mDNS on this machine: %s", error)
        node.mdns_failure = str(error)
        return
    try:
        await trio.sleep_forever()
    finally:
        # Threads of zeroconf may outlive the daemon's end; they must not hold the node and all that it has open.
        meets.clear()
        with trio.CancelScope(shield=True), trio.move_on_after(GOODBYE_S):
            await trio.to_thread.run_sync(stop, abandon_on_cancel=True)  # type: ignore[call-arg]


def start(name: str, addresses: list[str], found: Found, capture: Capture | None) -> Callable[[], None]:
    """What ends it all again, with its threads. Blocks for about a second: the name is probed for first."""
    zeroconf = Zeroconf()
    if capture is not None:
        _tap(zeroconf, capture)
    info = service_info(name, addresses)
    zeroconf.register_service(info)

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed or name == info.name:
            return
        if heard := zeroconf.get_service_info(service_type, name, RESOLVE_MS):
            for peer, ways in peers_in(heard).items():
                found(peer, ways)

    browser = ServiceBrowser(zeroconf, SERVICE, handlers=[changed])

    def stop() -> None:
        browser.cancel()  # `close` leaves its thread
        zeroconf.close()

    return stop


def service_info(name: str, addresses: list[str]) -> ServiceInfo:
    """What is advertised: random names, and addresses as text records; no name of the machine."""
    texts = {f"dnsaddr{number or ''}": address for number, address in enumerate(addresses[:ADDRESSES])}
    return ServiceInfo(
        type_=SERVICE,
        name=f"{name}.{SERVICE}",
        port=_port(addresses),
        properties=texts,
        server=f"{name}.local.",
        parsed_addresses=[_ip(address) for address in addresses[:ADDRESSES]],
    )


def peers_in(info: ServiceInfo) -> dict[ID, list[Multiaddr]]:
    """The peers and their addresses in what somebody advertises. Anybody can send it: nothing is believed."""
    peers: dict[ID, list[Multiaddr]] = {}
    for key, value in list(info.properties.items())[:ADDRESSES]:
        if not key.startswith(b"dnsaddr") or value is None:
            continue
        try:
            peer, address = parse_peer_address(value.decode())
        except (AddressInvalid, UnicodeDecodeError):
            continue
        if not is_relayed(str(address)):
            peers.setdefault(peer, []).append(address)
    return peers


def _ip(address: str) -> str:
    return address.split("/")[2]


def _port(addresses: list[str]) -> int:
    return int(addresses[0].split("/")[4]) if addresses else 0


def _tap(zeroconf: Zeroconf, capture: Capture) -> None:
    send = zeroconf.async_send

    def recorded(out, *arguments, **named):  # type: ignore[no-untyped-def]
        for packet in out.packets():
            capture.mdns(packet)
        send(out, *arguments, **named)

    zeroconf.async_send = recorded  # type: ignore[method-assign]
