"""The libp2p host: this node's key, TCP, Noise, Yamux, a DHT server, and nothing else of the library.

`run_host` is the only place that makes one. Reads are large and writes are 65,507 bytes at most: a Yamux header and
that many bytes fill one Noise message exactly; 65,536 would make two of them.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, WeakValueDictionary

import trio
from libp2p.connection_types import ConnectionType
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.crypto.ed25519 import create_new_key_pair as new_ed25519_key_pair
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.config import RetryConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore, PeerStoreError
from libp2p.tools.anyio_service import background_trio_service
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr  # type: ignore[import-untyped]
from multiaddr.utils import get_thin_waist_addresses  # type: ignore[import-untyped]

from orchd.errors import AddressInvalid, ListenFailed, PeerUnreachable
from orchd.identity import Identity
from orchd.net import hardening, said
from orchd.net.capture import Capture
from orchd.net.policy.reach import is_relayed, network_of
from orchd.net.policy.resting import Resting

if TYPE_CHECKING:
    from orchd.net.exchange import Channel

log = logging.getLogger(__name__)

#: Bytes of one write: 65,519 of a Noise message less 12 of a Yamux header.
WRITE_SIZE = 65_507
LISTEN_HINT = "`net.listen` takes addresses such as /ip4/0.0.0.0/tcp/4001: no /p2p/ in them, and a port up to 65535."
PEER_ID_HINT = "A peer id reads like 12D3Koo...: `orchctl net peers` shows those of connected peers."
READ_SIZE = 1 << 20
#: How long one address may take to be reached, and how long before the next one is tried beside it, in seconds.
DIAL_TIMEOUT_S, DIAL_STAGGER_S = 10.0, 1.0
#: How long a host may take to close, in seconds; after that it is cancelled.
STOP_S = 2.5
#: How long an address of a peer is remembered, in seconds.
ADDRESS_TTL_S = 3600
#: Addresses of one peer that are tried, and of them through relays.
ADDRESSES_PER_PEER, CIRCUITS_PER_PEER = 8, 2
#: A peer id is the multihash of a key: the identity of a small one, or SHA-256.
PEER_ID_FORMS = (b"\x00\x24\x08", b"\x00\x25\x08", b"\x12\x20")
#: Streams that are opened to one peer at once.
OPENING = 2
WILDCARDS = ("0.0.0.0", "::")


class Basic(BasicHost):
    """The library's host, which also tells others of its addresses through relays."""

    #: Each with this host's id at its end.
    circuits: tuple[Multiaddr, ...] = ()

    def get_addrs(self) -> list[Multiaddr]:
        """The library cuts an address off at the first peer id in it, so these are added here."""
        return [*super().get_addrs(), *self.circuits]


#: Connects to a peer at an address through a relay.
DialCircuit = Callable[[Multiaddr, ID], Awaitable[None]]


async def _no_circuits(address: Multiaddr, peer: ID) -> None:
    raise PeerUnreachable("this host uses no relays")


@dataclass
class Host:
    """A running host with its DHT. `dial_circuit` is set by who knows of relays.

    `opening` counts the streams that are being opened to ask a peer: as long as that takes they have no protocol.
    `resting` are the channels of those that have answered (`asking.py`), `idle` streams, of both directions, on which
    no question is open.
    """

    basic: Basic
    dht: KadDHT
    swarm: Any
    dial_circuit: DialCircuit = _no_circuits
    opening: Counter[ID] = field(default_factory=Counter)
    resting: Resting[ID, Channel] = field(default_factory=Resting)
    idle: WeakSet[Any] = field(default_factory=WeakSet)
    _opening_turns: WeakValueDictionary[ID, trio.Semaphore] = field(default_factory=WeakValueDictionary)
    _dialling: WeakValueDictionary[ID, trio.Lock] = field(default_factory=WeakValueDictionary)

    @property
    def id(self) -> ID:
        return self.basic.get_id()

    def addresses(self) -> list[str]:
        """Where this node can be reached, each with its peer id; none while the host is falling."""
        try:
            return [str(address) for address in self.basic.get_addrs()]
        except OSError:  # its sockets are closed already
            return []

    def direct_addresses(self) -> list[Multiaddr]:
        """Without those through relays."""
        return [Multiaddr(address) for address in self.addresses() if not is_relayed(address)]

    def opening_turns(self, peer: ID) -> trio.Semaphore:
        """Held while a stream to a peer is opened."""
        return self._opening_turns.setdefault(peer, trio.Semaphore(OPENING))

    def connected(self, peer: ID) -> bool:
        return any(not connection.is_closed for connection in self.swarm.get_connections(peer))

    def connections(self, peer: ID) -> list[Any]:
        """Open ones to a peer, direct ones first."""
        found = [connection for connection in self.swarm.get_connections(peer) if not connection.is_closed]
        return sorted(found, key=is_through_relay)

    def is_direct(self, peer: ID) -> bool:
        """Whether there is a connection to a peer without a relay."""
        return any(not is_through_relay(connection) for connection in self.connections(peer))

    def peers(self) -> list[ID]:
        """Peers with an open connection."""
        return [peer for peer in self.swarm.connections if self.connected(peer)]

    def protocols(self, peer: ID) -> list[str]:
        """What a peer says that it speaks, nothing before it is identified."""
        try:
            return list(self.basic.get_peerstore().get_protocols(peer))
        except PeerStoreError:
            return []

    def known_addresses(self, peer: ID) -> list[Multiaddr]:
        """Addresses of a peer that have not expired."""
        try:
            return list(self.basic.get_peerstore().addrs(peer))
        except PeerStoreError:
            return []

    def said_addresses(self, peer: ID) -> tuple[str, ...]:
        """What a peer said last of its own addresses."""
        return said.addresses(self.basic.get_peerstore(), peer)

    async def disconnect(self, peer: ID) -> None:
        await hardening.close_peer(self.swarm, peer)

    async def connect(self, peer: ID, addresses: Sequence[Multiaddr]) -> None:
        """Reach `peer` at the first address that answers. Raises `PeerUnreachable`."""
        lock = self._dialling.setdefault(peer, trio.Lock())  # a lock goes when nobody dials the peer any more
        async with lock:
            if not self.connected(peer):
                await self._dial(peer, _worth_trying(addresses))
            elif not self.is_direct(peer):  # what is through a relay is not worth having twice
                await self._dial(peer, [one for one in _worth_trying(addresses) if not _is_circuit(one)])

    async def _dial(self, peer: ID, addresses: Sequence[Multiaddr]) -> None:
        hardening.forget_failed_dial(self.swarm, peer)
        if addresses:
            self.basic.get_peerstore().add_addrs(peer, list(addresses), ADDRESS_TTL_S)
        failures: list[str] = []
        async with trio.open_nursery() as nursery:

            async def attempt(address: Multiaddr, failed: trio.Event) -> None:
                try:
                    with trio.fail_after(DIAL_TIMEOUT_S):
                        if is_relayed(str(address)):
                            await self.dial_circuit(address, peer)
                        else:
                            await self.swarm.dial_addr(address, peer)
                    nursery.cancel_scope.cancel()
                except trio.TooSlowError:
                    failures.append(f"{address}: no answer within {DIAL_TIMEOUT_S:.0f} s")
                except Exception as error:
                    failures.append(f"{address}: {error}")
                failed.set()

            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(DIAL_STAGGER_S):
                    await failed.wait()
        if not self.connected(peer):
            cut_off = "it hung up at once: it may have banned this node, or where it is is banned here"
            why = "; ".join(failures) or (cut_off if addresses else "no address is known")
            raise PeerUnreachable(f"{peer} can't be reached: {why[:400]}")


@asynccontextmanager
async def run_host(identity: Identity, listen: Sequence[str], capture: Capture | None = None) -> AsyncIterator[Host]:
    """A host that listens, inside the block; everything of it is closed after.

    `listen` are multiaddrs of TCP. Raises `AddressInvalid` or `ListenFailed`.
    """
    hardening.harden()
    _quiet_library()
    wanted = [listen_address(text) for text in listen]
    for address in wanted:
        _check_free(address)
    basic = _make_host(identity)
    swarm: Any = basic.get_network()
    if capture is not None:
        swarm.register_notifee(capture.notifee())
    dht = KadDHT(basic, DHTMode.SERVER)
    hardening.fill_routing_table(basic, dht)
    host, stop = Host(basic, dht, swarm), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(_serve, host, wanted, stop)
        try:
            yield host
        finally:
            stop.set()


async def _serve(host: Host, wanted: Sequence[Multiaddr], stop: trio.Event, *, task_status: Any) -> None:
    """Run the library until `stop`. Shielded: connections that are cancelled can't be closed any more."""
    with trio.CancelScope(shield=True) as scope:
        async with host.basic.run(wanted):
            _check_listening(host.basic, wanted)
            async with background_trio_service(host.dht):
                task_status.started()
                await stop.wait()
                scope.deadline = trio.current_time() + STOP_S
                await hardening.close_everything(host.basic)


class _DirectTCP(TCP):
    """The library's would dial the relay in an address through a relay, and find another peer there."""

    def can_dial(self, maddr: Multiaddr) -> bool:
        return super().can_dial(maddr) and not _is_circuit(maddr)


def _is_circuit(address: Multiaddr) -> bool:
    return is_relayed(str(address))


def _worth_trying(addresses: Sequence[Multiaddr]) -> list[Multiaddr]:
    """Those through relays last."""
    circuits = [address for address in addresses if _is_circuit(address)][:CIRCUITS_PER_PEER]
    direct = [address for address in addresses if not _is_circuit(address)]
    return direct[: ADDRESSES_PER_PEER - len(circuits)] + circuits


def is_through_relay(connection: Any) -> bool:
    """Of a swarm's connection."""
    return bool(connection.get_connection_type() == ConnectionType.RELAYED)


def _make_host(identity: Identity) -> Basic:
    key_pair = new_ed25519_key_pair(identity.private_seed())
    peer = ID.from_pubkey(key_pair.public_key)
    peerstore = PeerStore()
    peerstore.add_key_pair(peer, key_pair)
    swarm = Swarm(
        peer,
        peerstore,
        TransportUpgrader(hardening.noise_only(key_pair), hardening.yamux_only(), 10),
        transports=[_DirectTCP()],
        retry_config=RetryConfig(max_retries=0),
        connection_config=hardening.connection_config(),
    )
    hardening.no_auto_connect(swarm)
    return Basic(
        network=swarm,
        negotiate_timeout=10,
        addrs_factory=_reachable,
        # What a peer says it saw of us is the port of an outgoing connection, where nobody listens.
        disable_identify_address_discovery=True,
    )


def peer_id_of(public_key: bytes) -> ID:
    """The peer id of an Ed25519 public key of 32 bytes: an author and a node with the same key are one."""
    return ID.from_pubkey(Ed25519PublicKey.from_bytes(public_key))


def parse_peer_id(text: str, field: str = "peers") -> ID:
    """Raises `AddressInvalid`: the library takes any base58 text."""
    try:
        peer = ID.from_string(text)
    except Exception:
        peer = ID(b"")
    if not peer.to_bytes().startswith(PEER_ID_FORMS):
        raise AddressInvalid(f"{text[:80]!r} is no peer id", hint=PEER_ID_HINT, field=field)
    return peer


def parse_peer_address(text: str) -> tuple[ID, Multiaddr]:
    """The peer and the way there of `/ip4/…/tcp/…/p2p/…`, also of `…/p2p/RELAY/p2p-circuit/p2p/…`.

    Raises `AddressInvalid`.
    """
    address = _parse(text)
    way, _, name = str(address).rpartition("/p2p/")
    if not way or "/" in name:
        raise AddressInvalid(f"{text[:120]!r} names no peer: it lacks /p2p/ and an id", field="address")
    return parse_peer_id(name), _parse(way)


def ban_subject(text: str) -> str:
    """A peer id or a place, as bans name them. Raises `AddressInvalid`."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if text.endswith("/64") and ":" in text:
            return text
        if text.strip("0123456789./") == "" or ":" in text:
            hint = "Give one address, such as 192.0.2.7 or 2001:db8::7, or a peer id."
            raise AddressInvalid(f"{text[:80]!r} is no IP address", hint=hint, field="subject") from None
        return str(parse_peer_id(text, field="subject"))
    return network_of(text)


def listen_address(text: str) -> Multiaddr:
    """A multiaddr to listen on. Raises `AddressInvalid`."""
    address = _parse(text, LISTEN_HINT, "net.listen")
    names = [protocol.name for protocol in address.protocols()]
    if names not in (["ip4", "tcp"], ["ip6", "tcp"]):
        raise AddressInvalid(
            f"can't listen on {text[:120]!r}: only /ip4/…/tcp/… and /ip6/…/tcp/…", hint=LISTEN_HINT, field="net.listen"
        )
    return address


def _parse(text: str, hint: str | None = None, field: str = "address") -> Multiaddr:
    try:
        return Multiaddr(text)
    except Exception as error:
        why = str(error).removeprefix(f"Invalid MultiAddr {text!r}: ").removesuffix(f" (string: {text})")
        told = f"{text[:120]!r} is no address: {ascii(why)[1:-1][:200]}"
        raise AddressInvalid(told, hint=hint, field=field) from None


def _host_and_port(address: Multiaddr) -> tuple[int, str, int]:
    family, name = (socket.AF_INET6, "ip6") if "ip6" in str(address) else (socket.AF_INET, "ip4")
    return family, str(address.value_for_protocol(name)), int(str(address.value_for_protocol("tcp")))


def _check_free(address: Multiaddr) -> None:
    """Two daemons on one port would silently share its connections, because the library sets SO_REUSEPORT."""
    family, host, port = _host_and_port(address)
    if port == 0:
        return
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ListenFailed(f"port {port} of {host} is in use by another program", field="net.listen") from None
        if family == socket.AF_INET:
            raise ListenFailed(f"can't listen on {address}: {error.strerror}", field="net.listen") from None


def _check_listening(basic: BasicHost, wanted: Sequence[Multiaddr]) -> None:
    """IPv6 is missing on some machines: that alone is no failure."""
    if wanted and not basic.get_transport_addrs():
        text = ", ".join(str(address) for address in wanted)
        raise ListenFailed(f"can't listen on any of {text}", field="net.listen")
    for address in wanted:
        if "/ip4/" in str(address) and str(address) not in basic.get_network().listeners:
            raise ListenFailed(f"can't listen on {address}", field="net.listen")


def _reachable(addresses: list[Multiaddr]) -> list[Multiaddr]:
    """The concrete addresses behind wildcards; loopback only where nothing else is."""
    found: list[Multiaddr] = []
    for address in addresses:
        _, host, port = _host_and_port(address)
        if host in WILDCARDS:
            found += get_thin_waist_addresses(address)
        else:
            found.append(address)
    if not found and addresses:
        _, _, port = _host_and_port(addresses[0])
        found.append(Multiaddr(f"/ip4/127.0.0.1/tcp/{port}"))
    return list(dict.fromkeys(found))


def _quiet_library() -> None:
    """The library logs a stranger's every mistake as an error, to standard error when nobody listens."""
    if "LIBP2P_DEBUG" in os.environ:  # the library's own switch
        return
    logger = logging.getLogger("libp2p")
    logger.setLevel(logging.CRITICAL)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
