"""From a connection through a relay to a direct one: DCUtR, with holes punched into the routers of both sides.

(https://github.com/libp2p/specs/blob/master/relay/DCUtR.md) Who was reached through the relay begins. First it dials
what the other tells of itself; that is enough where only one of them is behind a router. Else both tell where they
are seen from outside, and dial at the same moment from the port that they listen on, so that each router takes what
comes for the answer to what has just gone out. Routers that give every destination another port defeat that; the
connection through the relay stays then.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.errors import OrchdError, PeerBusy, PeerMisbehaved, PeerUnreachable
from orchd.net import pulse
from orchd.net.circuit import Wire, break_off, end
from orchd.net.context import Context, address_of
from orchd.net.host import Host, is_through_relay
from orchd.net.outside import Outside
from orchd.net.policy import reach
from orchd.net.policy.rates import Bucket
from orchd.net.relay_messages import DCUTR, Meet, Now, decode_punch, encode_punch

log = logging.getLogger(__name__)

#: Times that it is tried, seconds that one try may take, and seconds to wait to hear of the peer's addresses.
TRIES, TRY_S, IDENTIFIED_S = 3, 5.0, 3.0
#: Addresses of the peer that are dialled.
ADDRESSES = 8
#: Peers choose where this node knocks: so seldom a second, and so often at once after a silence.
PUNCHES_RATE, PUNCHES_BURST = 0.2, 16.0
#: A connection through a relay that is not needed any more is closed when it is quiet, looked at every so many seconds
#: and closed after so many looks in any case.
QUIET_LOOK_S, QUIET_LOOKS = 2.0, 30


class Punch:
    """On one host."""

    def __init__(self, host: Host, context: Context) -> None:
        self._host, self._context = host, context
        self._outside = Outside(host)
        self._bucket = Bucket(PUNCHES_RATE, PUNCHES_BURST, trio.current_time())
        self._busy: set[ID] = set()
        self._identified: dict[ID, trio.Event] = {}

    def start(self) -> None:
        self._host.basic.set_stream_handler(TProtocol(DCUTR), self.handle)

    def identified(self, peer: ID) -> None:
        """It has told its addresses."""
        if peer in self._identified:
            self._identified[peer].set()

    # ---- the side that was reached ------------------------------------------------------------------------------

    async def upgrade(self, connection: Any) -> None:
        """Somebody has come through a relay: try to be connected directly."""
        peer = connection.muxed_conn.peer_id
        if peer in self._busy or self._host.is_direct(peer) or not self._bucket.take(trio.current_time()):
            return
        self._busy.add(peer)
        self._context.count("punches")
        try:
            if await self._plainly(peer, connection) or await self._by_holes(peer, connection):
                self._context.count("punches_done")
        except OrchdError as error:
            log.info("no direct connection to %s: %s", peer, error)
        finally:
            self._busy.discard(peer)

    async def _plainly(self, peer: ID, connection: Any) -> bool:
        """Whether it is reached at what it tells of itself."""
        with trio.move_on_after(IDENTIFIED_S):
            if not self._host.protocols(peer):
                await self._identified.setdefault(peer, trio.Event()).wait()
        self._identified.pop(peer, None)
        addresses = self._worth_trying(self._host.known_addresses(peer), connection)
        return await self._dial(peer, addresses, self._host.swarm.dial_addr, None)

    async def _by_holes(self, peer: ID, connection: Any) -> bool:
        for _ in range(TRIES):
            if connection.is_closed or self._host.is_direct(peer):
                break
            stream = await self._open(peer)
            try:
                wire = Wire(stream)
                seen = await self._seen_from_outside(connection)
                begun = trio.current_time()
                await wire.send(encode_punch(Meet(seen)))
                answer = decode_punch(await wire.receive())
                if not isinstance(answer, Meet):
                    raise PeerMisbehaved(f"{peer} did not tell its addresses")
                there_and_back = trio.current_time() - begun
                await wire.send(encode_punch(Now()))
                await trio.sleep(there_and_back / 2)
                addresses = self._worth_trying(answer.addresses, connection)
                # If both dials become one connection, the other side is the client on it.
                if await self._dial(peer, addresses, self._host.swarm.dial_addr_as_responder, self._outside.source):
                    return True
            finally:
                await end(stream)
        return self._host.is_direct(peer)

    # ---- the side that came -------------------------------------------------------------------------------------

    async def handle(self, stream: Any) -> None:
        """The other side wants to be connected directly."""
        wire = Wire(stream)
        connection = next((one for one in self._host.connections(wire.peer) if is_through_relay(one)), None)
        try:
            if connection is None or not wire.is_relayed:
                raise PeerMisbehaved(f"{wire.peer} punches a hole without a relay")
            request = decode_punch(await wire.receive())
            if not isinstance(request, Meet):
                raise PeerMisbehaved(f"{wire.peer} did not tell its addresses")
            if not self._bucket.take(trio.current_time()):
                raise PeerBusy("too many holes are wanted")
            await wire.send(encode_punch(Meet(await self._seen_from_outside(connection))))
            if not isinstance(decode_punch(await wire.receive()), Now):
                raise PeerMisbehaved(f"{wire.peer} did not say when")
            addresses = self._worth_trying(request.addresses, connection)
            self._context.count("punches")
            is_done = await self._dial(wire.peer, addresses, self._host.swarm.dial_addr, self._outside.source)
            self._context.count("punches_done", int(is_done))
        except OrchdError as error:
            log.info("hole punching: %s", error)
        finally:
            await break_off(stream)

    # ---- both ---------------------------------------------------------------------------------------------------

    def _worth_trying(self, addresses: Sequence[Multiaddr], connection: Any) -> list[Multiaddr]:
        relay = _relay_of(connection)
        texts = [str(address).partition("/p2p/")[0] for address in addresses if not reach.is_relayed(str(address))]
        return [Multiaddr(text) for text in dict.fromkeys(texts) if reach.is_punchable(text, relay)][:ADDRESSES]

    async def _dial(
        self,
        peer: ID,
        addresses: Sequence[Multiaddr],
        dial: Callable[..., Awaitable[Any]],
        source: Callable[[Multiaddr], tuple[str, int] | None] | None,
    ) -> bool:
        """All at once, for a while; whether there is a direct connection then."""
        with trio.move_on_after(TRY_S):
            async with trio.open_nursery() as nursery:

                async def one(address: Multiaddr) -> None:
                    try:
                        await dial(address, peer, source(address) if source else None)
                        nursery.cancel_scope.cancel()
                    except Exception as error:
                        log.debug("%s at %s: %s", peer, address, error)

                for address in addresses:
                    nursery.start_soon(one, address)
        return self._host.is_direct(peer)

    async def _seen_from_outside(self, connection: Any) -> tuple[Multiaddr, ...]:
        """Where the relay sees this node's listening port, and what it tells of itself."""
        own = [Multiaddr(str(address).partition("/p2p/")[0]) for address in self._host.direct_addresses()]
        seen = await self._outside.seen_by(_relay_of(connection))
        return tuple(dict.fromkeys([seen, *own] if seen else own))

    async def _open(self, peer: ID) -> Any:
        try:
            return await self._host.basic.new_stream(peer, [TProtocol(DCUTR)])
        except Exception as error:
            raise PeerUnreachable(f"{peer} punches no holes: {error}") from None

    async def retire(self, peer: ID) -> None:
        """There is a direct connection: those through relays are closed as soon as nobody waits on them."""
        for _ in range(QUIET_LOOKS):
            await trio.sleep(QUIET_LOOK_S)
            if not self._host.is_direct(peer):
                return
            relayed = [one for one in self._host.connections(peer) if is_through_relay(one)]
            for connection in relayed:
                if not pulse.is_waited_for(self._host, connection):
                    await connection.close()


def _relay_of(connection: Any) -> str:
    """The relay's address with its id, of a connection through it."""
    return address_of(connection).rpartition("/p2p-circuit")[0]
