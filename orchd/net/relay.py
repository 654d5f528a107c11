"""Relaying for others: `policy/relay.py` on one host.

The library's relay is not used: it has limits by IP in its settings but does not look at them, takes a reservation for
whatever peer the message names, and kept its counters wrong (upstream: #1538). Here a slot is for the peer that asks
for it, over a direct connection, and is gone with that; all circuits together keep to `net.relay_limit`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from orchd.errors import OrchdError, PeerMisbehaved, PeerRefused
from orchd.net.circuit import Wire, break_off, end
from orchd.net.context import Context
from orchd.net.host import WRITE_SIZE, Host
from orchd.net.policy.rates import Pace
from orchd.net.policy.relay import CIRCUIT_BYTES, CIRCUIT_S, SLOT_S, Circuit, Refusal, Slots
from orchd.net.relay_messages import (
    HOP,
    STOP,
    Answer,
    Connect,
    Limit,
    Reserve,
    Status,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
)

log = logging.getLogger(__name__)

#: Bytes that are read at once, and seconds that one direction may outlive the other.
PORTION, HALF_OPEN_S = WRITE_SIZE, 10.0
#: Seconds that a circuit's opening may take at the other end.
OPEN_S = 10.0
STATUS = {
    Refusal.OFF: Status.RESERVATION_REFUSED,
    Refusal.FULL: Status.RESOURCE_LIMIT_EXCEEDED,
    Refusal.NO_SLOT: Status.NO_RESERVATION,
}


class Relay:
    """On one host. `is_member`: whether a peer shares a topic; `place_of`: where it comes from."""

    def __init__(
        self, host: Host, context: Context, is_member: Callable[[ID], bool], place_of: Callable[[ID], str]
    ) -> None:
        self._host, self._context = host, context
        self._is_member, self._place_of = is_member, place_of
        self.slots: Slots[ID] = Slots(is_on=context.relays)
        self._pace = Pace(context.relay_rate)

    def start(self) -> None:
        if self.slots.is_on:
            self._host.basic.set_stream_handler(TProtocol(HOP), self.handle)

    def lost(self, peer: ID) -> None:
        """It has no direct connection any more."""
        self.slots.gone(peer)

    async def handle(self, stream: Any) -> None:
        """One request: for a slot, or for a circuit."""
        wire = Wire(stream)
        try:
            request = decode_hop(await wire.receive())
            if wire.is_relayed:
                await self._refuse(wire, Status.PERMISSION_DENIED)
            elif isinstance(request, Reserve):
                await self._reserve(wire)
            elif isinstance(request, Connect):
                await self._connect(wire, request.peer)
            else:
                await self._refuse(wire, Status.UNEXPECTED_MESSAGE)
        except PeerMisbehaved:
            await self._refuse(wire, Status.MALFORMED_MESSAGE)
        except OrchdError as error:
            log.debug("relay for %s: %s", wire.peer, error)
            await break_off(stream)

    async def _refuse(self, wire: Wire, status: Status) -> None:
        await wire.send(encode_hop(Answer(status)))
        await end(wire.stream)

    async def _reserve(self, wire: Wire) -> None:
        place = self._place_of(wire.peer)
        refusal = self.slots.reserve(wire.peer, place, self._is_member(wire.peer), trio.current_time())
        if refusal is not None:
            await self._refuse(wire, STATUS[refusal])
            return
        addresses = tuple(self._host.direct_addresses())
        limit = Limit(CIRCUIT_S, CIRCUIT_BYTES)
        self._context.count("relay_slots_given")
        await wire.send(encode_hop(Answer(Status.OK, int(time.time()) + SLOT_S, addresses, limit)))
        await end(wire.stream)

    async def _connect(self, wire: Wire, target: ID) -> None:
        circuit = self.slots.connect(wire.peer, target, self._place_of(wire.peer), trio.current_time())
        if isinstance(circuit, Refusal):
            await self._refuse(wire, STATUS[circuit])
            return
        try:
            try:
                far = await self._open_far(wire.peer, target)
            except Exception as error:
                log.debug("circuit from %s to %s: %s", wire.peer, target, error)
                await self._refuse(wire, Status.CONNECTION_FAILED)
                return
            self._context.count("relay_circuits")
            await self._carry(circuit, wire, far)
        finally:
            self.slots.close(circuit)

    async def _open_far(self, source: ID, target: ID) -> Any:
        """A stream to the target, which has said yes."""
        with trio.fail_after(OPEN_S):
            stream = await self._host.basic.new_stream(target, [TProtocol(STOP)])
            try:
                wire = Wire(stream)
                await wire.send(encode_stop(Connect(source, Limit(CIRCUIT_S, CIRCUIT_BYTES))))
                answer = decode_stop(await wire.receive(OPEN_S))
                if not isinstance(answer, Answer) or answer.status != Status.OK:
                    raise PeerRefused(f"{target} does not want a circuit")
            except BaseException:
                await break_off(stream)
                raise
        return stream

    async def _carry(self, circuit: Circuit[ID], wire: Wire, far: Any) -> None:
        """Both directions, until both ends are done, or a limit is reached."""
        is_done = False
        try:
            await wire.send(encode_hop(Answer(Status.OK, limit=Limit(CIRCUIT_S, CIRCUIT_BYTES))))
            with trio.move_on_after(CIRCUIT_S) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._one_way, circuit, wire.stream, far, scope)
                    nursery.start_soon(self._one_way, circuit, far, wire.stream, scope)
                is_done = True
        finally:
            if not is_done:
                await break_off(wire.stream)
                await break_off(far)

    async def _one_way(self, circuit: Circuit[ID], come: Any, go: Any, both: trio.CancelScope) -> None:
        try:
            while data := await come.read(PORTION):
                if not self.slots.carry(circuit, len(data), trio.current_time()):
                    self._context.count("relay_limit_reached")
                    both.cancel()
                    return
                self._context.count("relay_bytes", len(data))
                if wait := self._pace.reserve(trio.current_time(), len(data)):
                    await trio.sleep(wait)
                await go.write(data)
        except Exception as error:  # the usual end of a stream, too
            log.debug("circuit from %s to %s: %s", circuit.source, circuit.target, error)
        both.deadline = min(both.deadline, trio.current_time() + HALF_OPEN_S)
        await end(go)
