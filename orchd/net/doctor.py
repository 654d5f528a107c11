"""Each way to others, tried: what works, what does not, what can't be known from here, and what to do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum

import msgspec
import trio

from orchd.config import NetConfig
from orchd.errors import OrchdError
from orchd.net.context import Context
from orchd.net.host import parse_peer_address
from orchd.net.node import Node
from orchd.net.policy import reach
from orchd.net.policy.names import Kind, kind_of

#: Remembered peers that are dialled, at most.
REMEMBERED_TRIED = 3
LISTEN = "Set net.listen, such as /ip4/0.0.0.0/tcp/4001."


class Finding(StrEnum):
    OK = "ok"
    #: It works less than it could.
    WARNING = "warning"
    FAILED = "failed"
    #: The user has turned it off, or not set it up.
    OFF = "off"
    #: Nothing here can tell.
    UNKNOWN = "unknown"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """`next` is what to do about it, empty where nothing is to be done."""

    name: str
    finding: Finding
    found: str
    next: str = ""


async def examine(node: Node | None, context: Context, config: NetConfig, error: str | None) -> list[Check]:
    """In the order in which a node comes to others."""
    if node is None:
        if not config.enabled:
            return [_check("network", Finding.OFF, "turned off in the settings", "Set net.enabled = true.")]
        found = error or "it is starting"
        return [_check("network", Finding.FAILED, found, "It is started again by itself; the log says more.")]
    checks: dict[int, Check] = {}
    steps: list[Callable[[Node, Context, NetConfig], Awaitable[Check]]] = [
        _listening,
        _settings_peers,
        _remembered,
        _lan,
        _dht,
        _topics,
        _from_outside,
        _relays,
        _holes,
        _for_others,
    ]
    async with trio.open_nursery() as nursery:

        async def run(number: int) -> None:
            checks[number] = await steps[number](node, context, config)

        for number in range(len(steps)):
            nursery.start_soon(run, number)
    return [checks[number] for number in range(len(steps))]


async def _listening(node: Node, context: Context, config: NetConfig) -> Check:
    addresses = list(map(str, node.host.direct_addresses()))
    if not addresses:
        return _check("listening", Finding.FAILED, "on no address", LISTEN)
    shown = ", ".join(address.partition("/p2p/")[0] for address in addresses)
    if all(map(reach.is_this_machine, addresses)):
        found = f"{shown}: nobody but programs of this machine can connect"
        return _check("listening", Finding.WARNING, found, LISTEN)
    return _check("listening", Finding.OK, shown)


async def _settings_peers(node: Node, context: Context, config: NetConfig) -> Check:
    name = "peers of the settings"
    if not config.bootstrap:
        return _check(name, Finding.OFF, "none", "Needed only where no other way works: net.bootstrap = [ADDRESS].")
    others = [text for text in config.bootstrap if parse_peer_address(text)[0] != node.host.id]
    if not others:
        return _check(name, Finding.WARNING, "none but this node itself", "Put another's address in net.bootstrap.")
    failures = [why for text in others if (why := await _dial(node, text))]
    reached = f"{len(others) - len(failures)} of {len(others)} reached"
    if failures:
        finding = Finding.WARNING if len(failures) < len(others) else Finding.FAILED
        return _check(name, finding, f"{reached}; {failures[0]}", "Is that node up, and its port open to this machine?")
    return _check(name, Finding.OK, reached)


async def _remembered(node: Node, context: Context, config: NetConfig) -> Check:
    name = "remembered peers"
    entries = context.book.peers()
    if not entries:
        return _check(name, Finding.OFF, "none yet: nobody was ever reached from here")
    tried = entries[:REMEMBERED_TRIED]
    failures = []
    for entry in tried:
        why = await _dial(node, *(f"{address}/p2p/{entry.peer}" for address in entry.addresses))
        failures += [why] if why else []
    found = f"{len(entries)} known; of the last {len(tried)}, {len(tried) - len(failures)} can be reached"
    finding = Finding.OK if len(failures) < len(tried) else Finding.WARNING
    return _check(name, finding, found, "" if finding is Finding.OK else "They may be off; they are tried again.")


async def _dial(node: Node, *addresses: str) -> str:
    """Why a peer is reached at none of its addresses; nothing if it is."""
    try:
        ways = [parse_peer_address(address) for address in addresses]
        peer = ways[0][0]
        if node.host.connected(peer):
            return ""
        await node.company.connect(peer, [way for _, way in ways])
    except OrchdError as error:
        return error.message
    return ""


async def _lan(node: Node, context: Context, config: NetConfig) -> Check:
    name = "local network"
    if not config.mdns:
        return _check(name, Finding.OFF, "mDNS is turned off in the settings", "Set net.mdns = true.")
    if node.mdns_failure is not None:
        found = f"mDNS can't be used: {node.mdns_failure}"
        return _check(name, Finding.FAILED, found, "Does this machine have a network, and may UDP port 5353 be used?")
    near = sum(node.company.is_near(peer) for peer in node.host.peers())
    if near:
        return _check(name, Finding.OK, f"advertised by mDNS; {near} peers of this network are connected")
    return _check(
        name,
        Finding.UNKNOWN,
        "advertised by mDNS; nobody of this network is connected",
        "If a node runs there, multicast is filtered between the two: `orchctl net connect ADDRESS` does without.",
    )


async def _dht(node: Node, context: Context, config: NetConfig) -> Check:
    size = node.host.dht.get_routing_table_size()
    if size:
        return _check("DHT", Finding.OK, f"{size} nodes in the routing table")
    return _check("DHT", Finding.FAILED, "no node is known, so topics can't be looked up", "Connect to any node first.")


async def _topics(node: Node, context: Context, config: NetConfig) -> Check:
    joined = list(context.topics.values())
    if not joined:
        return _check("topics", Finding.OFF, "none joined", "Run `orchctl topic join NAME`.")
    on_dht = [topic for topic in joined if kind_of(topic.name) is not Kind.LAN]
    announced = sum(topic.announced_ms is not None for topic in on_dht)
    found = f"{announced} of {len(on_dht)} announced on the DHT; members connected: {len(node.members.members())}"
    if announced < len(on_dht):
        return _check("topics", Finding.WARNING, found, "They are announced as soon as a DHT node is connected.")
    return _check("topics", Finding.OK, found)


async def _from_outside(node: Node, context: Context, config: NetConfig) -> Check:
    name = "reachable from outside"
    came = context.counters.get("inbound_from_afar", 0)
    if came:
        return _check(name, Finding.OK, f"{came} connections came from other networks since the start")
    ports = sorted({str(address).split("/")[4] for address in node.host.direct_addresses()})
    if not ports:
        return _check(name, Finding.FAILED, "it listens on no address", LISTEN)
    return _check(
        name,
        Finding.UNKNOWN,
        "no connection has come from another network since the start",
        f"Peers elsewhere can be dialled from here; for them to dial this node, forward TCP port {' or '.join(ports)}"
        " on the router.",
    )


async def _relays(node: Node, context: Context, config: NetConfig) -> Check:
    name = "through relays"
    slots = node.relayed.slots
    if slots:
        shown = ", ".join(str(slot.relay.peer) for slot in slots)
        return _check(name, Finding.OK, f"others reach this node through {shown}")
    if context.counters.get("inbound_from_afar", 0):
        return _check(name, Finding.OFF, "not needed: this node is reached directly")
    if node.relayed.refusal:
        found = f"no relay has a slot for this node; the last one said: {node.relayed.refusal}"
        return _check(name, Finding.WARNING, found, "It is asked again in ten minutes, others as they are met.")
    if context.counters.get("inbound", 0):
        return _check(name, Finding.OFF, "none asked: it is reached on its own network, and knows no relay outside")
    return _check(
        name,
        Finding.UNKNOWN,
        "no slot, because no connected peer is one that relays and was dialled from here",
        "It is asked for by itself, ten seconds after the start, when such a peer is connected.",
    )


async def _holes(node: Node, context: Context, config: NetConfig) -> Check:
    name = "hole punching"
    tried, done = context.counters.get("punches", 0), context.counters.get("punches_done", 0)
    if not tried:
        return _check(
            name, Finding.UNKNOWN, "not tried yet: nobody came through a relay", "It is tried by itself then."
        )
    found = f"{done} of {tried} tries have made a direct connection of one through a relay"
    if done:
        return _check(name, Finding.OK, found)
    return _check(
        name,
        Finding.WARNING,
        f"{found}: what passes through relays is slow and limited",
        "Forward a port on the router of one of the two (see `reachable from outside`).",
    )


async def _for_others(node: Node, context: Context, config: NetConfig) -> Check:
    name = "relaying for others"
    if not config.relay:
        return _check(name, Finding.OFF, "turned off in the settings", "Set net.relay = true to help others.")
    slots = node.relay.slots
    use = f"peers with a slot: {slots.held}, connections: {slots.open}"
    found = f"on, {use}; at most {config.relay_limit} kB a second"
    return _check(name, Finding.OK, found)


def _check(name: str, finding: Finding, found: str, next: str = "") -> Check:
    return Check(name=name, finding=finding, found=found, next=next)
