"""Being reached through relays, and reaching others through theirs (Circuit Relay v2).

A node that nobody has reached directly asks peers that it has dialled itself for a slot: those of the settings and
those that share a topic first (`policy/relay.py`, `choose`). Its addresses through them are then told like its other
ones, on the DHT too; a slot is renewed at half its time, and is gone with the connection to the relay.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.errors import OrchdError, PeerRefused, PeerUnreachable
from orchd.net.circuit import Circuit, Wire, break_off, end
from orchd.net.company import Company
from orchd.net.context import Context, address_of
from orchd.net.host import Host, is_through_relay, parse_peer_address
from orchd.net.policy import reach
from orchd.net.policy.relay import FAILED_PAUSE_S, REFUSED_PAUSE_S, SLOT_S, WANTED, Candidate, choose, is_needed
from orchd.net.relay_messages import (
    HOP,
    STOP,
    Answer,
    Connect,
    Reserve,
    Status,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
)

log = logging.getLogger(__name__)

#: Seconds after the start in which peers may show that this node can be reached directly.
FIRST_S = 10.0
#: A slot is taken to last so long at least, whatever the relay's clock says; in seconds.
SHORTEST_S = 120.0
#: Addresses of one relay that are told.
ADDRESSES = 2
#: Connections through relays that others may have with this node, and how many may be shaking hands.
INBOUND, SHAKING = 64, 8


@dataclass(frozen=True)
class Slot:
    """At a relay. `renew_at` and `until` in seconds of trio's clock; `addresses` of this node, with its id."""

    relay: Candidate[ID]
    addresses: tuple[Multiaddr, ...]
    renew_at: float
    until: float


class Relayed:
    """On one host. `is_trusted`: whether a peer is one of the settings or shares a topic; `moved` is called when the
    addresses of this node have changed."""

    def __init__(
        self,
        host: Host,
        context: Context,
        company: Company,
        is_trusted: Callable[[ID], bool],
        moved: Callable[[], None],
    ) -> None:
        self._host, self._context, self._company = host, context, company
        self._is_trusted, self._moved = is_trusted, moved
        self._slots: dict[ID, Slot] = {}
        #: When a relay that refused, or did not answer, may be asked again.
        self._refused: dict[ID, float] = {}
        #: What the last relay said that gave no slot.
        self.refusal = ""
        self._wake = trio.Event()
        self._inbound = trio.CapacityLimiter(INBOUND)
        self._shaking = trio.CapacityLimiter(SHAKING)

    def start(self) -> None:
        self._host.basic.set_stream_handler(TProtocol(STOP), self.handle)
        self._host.dial_circuit = self.dial

    @property
    def slots(self) -> list[Slot]:
        return list(self._slots.values())

    def has(self, relay: ID) -> bool:
        """Whether this node has a slot there."""
        return relay in self._slots

    def wake(self) -> None:
        """A peer has come whose slots might be asked for."""
        self._wake.set()
        self._wake = trio.Event()

    def lost(self, peer: ID) -> None:
        """It has no direct connection any more."""
        if self._slots.pop(peer, None):
            self._tell()
            self.wake()

    # ---- slots --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        await trio.sleep(FIRST_S)
        while True:
            wake = self._wake
            await self.look()
            with trio.CancelScope(deadline=self._next_look()):
                await wake.wait()

    async def look(self) -> None:
        """Renew what is due, and ask for what is missing."""
        now = trio.current_time()
        self._refused = {peer: until for peer, until in self._refused.items() if until > now}
        counters = self._context.counters
        reached = counters.get("inbound", 0), counters.get("inbound_from_afar", 0)
        for slot in self.slots:
            if slot.renew_at <= now and is_needed(slot.relay, *reached):
                await self._reserve(slot.relay)
            elif slot.renew_at <= now:
                self.lost(slot.relay.peer)
        held = [slot.relay for slot in self._slots.values()]
        if len(held) < WANTED:
            for candidate in choose(self._candidates(), held, *reached):
                await self._reserve(candidate)

    def _next_look(self) -> float:
        due = (*(slot.renew_at for slot in self.slots), *self._refused.values())
        return min(due, default=float("inf"))

    def _candidates(self) -> list[Candidate[ID]]:
        return [
            Candidate(
                peer,
                self._company.place_of(peer),
                reach.is_near(address_of(self._dialled(peer))),
                self._is_trusted(peer),
            )
            for peer in self._host.peers()
            if peer not in self._refused and self._may_relay(peer)
        ]

    def _may_relay(self, peer: ID) -> bool:
        """Whether others reach it as this node has: it was dialled, and needs no relay itself.

        Who says that it is reached through a relay may be reached here through a hole; not where it listens by its own
        word at the address by which it was reached.
        """
        way, said = address_of(self._dialled(peer)), self._host.said_addresses(peer)
        is_hidden = any(map(reach.is_relayed, said)) and way not in said
        return HOP in self._host.protocols(peer) and bool(way) and not is_hidden

    def _dialled(self, peer: ID) -> Any:
        """The connection that this node has made to a peer without a relay, if there is one."""
        connections = [one for one in self._host.connections(peer) if not is_through_relay(one)]
        return next((one for one in connections if "outbound" in str(one.direction).lower()), None)

    async def _reserve(self, relay: Candidate[ID]) -> None:
        peer = relay.peer
        try:
            answer = await self._ask(peer, encode_hop(Reserve()))
            addresses = self._through(peer, answer)
            now = trio.current_time()
            lasts = min(max(answer.expire - time.time(), SHORTEST_S), SLOT_S)
            self._slots[peer] = Slot(relay, addresses, now + lasts / 2, now + lasts)
            self._context.count("relay_slots_taken")
        except OrchdError as error:
            log.info("no slot at %s: %s", peer, error)
            self.refusal = error.message
            self._slots.pop(peer, None)
            pause = REFUSED_PAUSE_S if isinstance(error, PeerRefused) else FAILED_PAUSE_S
            self._refused[peer] = trio.current_time() + pause
        self._tell()

    def _through(self, peer: ID, answer: Answer) -> tuple[Multiaddr, ...]:
        """This node's addresses through a relay: that at which it was dialled, and those that it tells of itself."""
        dialled = address_of(self._dialled(peer))
        if not dialled:
            raise PeerUnreachable(f"{peer} is not connected directly any more")
        told = [str(address).partition("/p2p/")[0] for address in answer.addresses]
        ways = dict.fromkeys([dialled, *(way for way in told if reach.is_punchable(way, dialled))])
        return tuple(Multiaddr(f"{way}/p2p/{peer}/p2p-circuit/p2p/{self._host.id}") for way in list(ways)[:ADDRESSES])

    def _tell(self) -> None:
        circuits = tuple(address for slot in self._slots.values() for address in slot.addresses)
        if circuits != self._host.basic.circuits:
            self._host.basic.circuits = circuits
            self._moved()

    async def _ask(self, relay: ID, message: bytes) -> Answer:
        """The relay's answer, which is yes. Raises `PeerRefused`, `PeerUnreachable` and the like."""
        stream = await self._open(relay)
        try:
            answer = await self._agreed(Wire(stream), message)
        except BaseException:
            await break_off(stream)
            raise
        await end(stream)
        return answer

    async def _agreed(self, wire: Wire, message: bytes) -> Answer:
        await wire.send(message)
        answer = decode_hop(await wire.receive())
        if not isinstance(answer, Answer) or answer.status != Status.OK:
            raise PeerRefused(f"the relay {wire.peer} says no: {_status(answer)}")
        return answer

    async def _open(self, relay: ID) -> Any:
        if not self._host.is_direct(relay):
            raise PeerUnreachable(f"{relay} is not connected directly")
        try:
            return await self._host.basic.new_stream(relay, [TProtocol(HOP)])
        except Exception as error:
            raise PeerUnreachable(f"{relay} opens no stream for relaying: {error}") from None

    # ---- circuits -----------------------------------------------------------------------------------------------

    async def dial(self, address: Multiaddr, peer: ID) -> None:
        """Connect to a peer through the relay in `address`. Raises `PeerUnreachable`, `PeerRefused` and the like."""
        relay, way = parse_peer_address(str(address).rpartition("/p2p-circuit")[0])
        if reach.is_relayed(str(way)) or relay in (peer, self._host.id):
            raise PeerUnreachable(f"{address} is no way to {peer}")
        if not self._host.is_direct(relay):
            await self._company.connect(relay, [way])
        stream = await self._open(relay)
        try:
            await self._agreed(Wire(stream), encode_hop(Connect(peer)))
            circuit = Circuit(stream, True, Multiaddr(f"{way}/p2p/{relay}/p2p-circuit/p2p/{peer}"))
            await self._host.swarm.upgrade_outbound_raw_conn(circuit, peer)
        except BaseException:
            await break_off(stream)
            raise
        self._context.count("dials_relayed")

    async def handle(self, stream: Any) -> None:
        """A relay brings somebody. Lasts as long as the connection."""
        wire = Wire(stream)
        try:
            request = decode_stop(await wire.receive())
            if not isinstance(request, Connect) or not self._may_bring(wire.peer, request.peer):
                await wire.send(encode_stop(Answer(Status.PERMISSION_DENIED)))
                await end(stream)
                return
            async with self._inbound:
                await self._accept(wire, request.peer)
        except OrchdError as error:
            log.debug("circuit from %s: %s", wire.peer, error)
        finally:
            await break_off(stream)

    def _may_bring(self, relay: ID, peer: ID) -> bool:
        room = self._inbound.available_tokens and self._shaking.available_tokens
        return bool(room) and relay in self._slots and not self._company.is_unwelcome(peer)

    async def _accept(self, wire: Wire, peer: ID) -> None:
        async with self._shaking:
            await wire.send(encode_stop(Answer(Status.OK)))
            address = Multiaddr(f"{wire.address}/p2p/{wire.peer}/p2p-circuit/p2p/{peer}")
            circuit = Circuit(wire.stream, False, address)
            muxed: Any = await self._host.swarm.upgrade_inbound_raw_conn(circuit, address)
        if muxed.peer_id == peer:  # else the relay has brought somebody else, who is on no list of it
            await muxed.event_closed.wait()
        else:
            await muxed.close()


def _status(answer: object) -> str:
    """In words."""
    if not isinstance(answer, Answer):
        return "it answers with another kind of message"
    known = {status.value: status.name for status in Status}
    return known.get(answer.status, f"status {answer.status}").replace("_", " ").lower()
