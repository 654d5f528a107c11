"""From where a peer comes, by its address."""

from __future__ import annotations

import ipaddress


def ip_of(address: str) -> str:
    """The IP address in a multiaddr, or nothing: of a relayed connection it would be the relay's."""
    parts = address.split("/")
    return parts[2] if len(parts) > 2 and parts[1] in ("ip4", "ip6") and not is_relayed(address) else ""


def is_relayed(address: str) -> bool:
    """Whether a multiaddr goes through a relay."""
    return "p2p-circuit" in address.split("/")


def is_near(address: str) -> bool:
    """Whether a multiaddr is one of this machine or of a private network.

    A machine of the same LAN may also come from an address of the whole internet; then it is taken for a stranger.
    """
    try:
        ip = ipaddress.ip_address(ip_of(address))
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if ip.version == 6 else None
    return (mapped or ip).is_private


def is_this_machine(address: str) -> bool:
    try:
        return ipaddress.ip_address(ip_of(address)).is_loopback
    except ValueError:
        return False


def why_not_a_place(ip: str) -> str:
    """Why a ban of an IP address, or of its /64, would be of no effect; nothing where it has one."""
    try:
        found = ipaddress.ip_address(ip.partition("/")[0])
    except ValueError:
        return ""
    found = (found.ipv4_mapped if found.version == 6 else None) or found
    if found.is_loopback:
        return "is this machine, which is never banned by its address"
    if found.is_unspecified or found.is_multicast:
        return "is no address that a peer comes from"
    return ""


def network_of(ip: str) -> str:
    """What counts as one place: an IPv4 address, or the /64 that one customer has of IPv6."""
    try:
        found = ipaddress.ip_address(ip)
    except ValueError:
        return ip
    if found.version == 4:
        return ip
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))


def is_punchable(address: str, relay: str) -> bool:
    """Whether an address that a peer gave through the relay at `relay` may be dialled to punch a hole.

    One of this machine or of a private network only where the relay is in one, too: a stranger must not make this
    node knock at doors of its own network.
    """
    if not ip_of(address) or "/tcp/" not in address:
        return False
    if is_this_machine(address):
        return is_this_machine(relay)
    return not is_near(address) or is_near(relay)
