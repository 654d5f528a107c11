"""A stream through a relay, used as if it were a socket, and the few words that are said on it before.

Noise runs over it from end to end: the relay carries bytes that it can't read or change, and each peer proves its key
to the other as on any connection.
"""

from __future__ import annotations

import logging
from typing import Any

import trio
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.errors import PeerMisbehaved, PeerTimeout, PeerUnreachable
from orchd.net.context import address_of
from orchd.net.policy.reach import is_relayed
from orchd.net.relay_messages import MESSAGE_LIMIT

log = logging.getLogger(__name__)

#: Seconds to wait for one message, and to say goodbye.
MESSAGE_S, GOODBYE_S = 15.0, 1.0


class Circuit(RawConnection):
    """`address` is that of the other end, through the relay."""

    def __init__(self, stream: Any, initiator: bool, address: Multiaddr) -> None:
        super().__init__(stream, initiator, ConnectionType.RELAYED, [address])

    def get_remote_address(self) -> tuple[str, int] | None:
        """None: the address below is the relay's, and says nothing of the peer."""
        return None

    async def read(self, n: int | None = None) -> bytes:
        try:
            return await super().read(n)
        except StreamEOF:
            return b""
        except Exception as error:
            raise ConnectionClosedError(f"the circuit has ended: {error}") from None

    async def write(self, data: bytes) -> None:
        try:
            await super().write(data)
        except Exception as error:
            raise ConnectionClosedError(f"the circuit has ended: {error}") from None

    async def close(self) -> None:
        await end(self.stream)


class Wire:
    """Messages over one stream, each behind its length; nothing after a message is read with it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.peer: ID = stream.muxed_conn.peer_id

    @property
    def is_relayed(self) -> bool:
        """Whether the stream itself is on a connection through a relay."""
        return is_relayed(self.address)

    @property
    def address(self) -> str:
        """The other end's."""
        return address_of(self.stream.muxed_conn)

    async def send(self, message: bytes) -> None:
        """Raises `PeerUnreachable` or `PeerTimeout`."""
        try:
            with trio.fail_after(MESSAGE_S):
                await self.stream.write(message)
        except trio.TooSlowError:
            raise PeerTimeout(f"{self.peer} did not read within {MESSAGE_S:.0f} s") from None
        except Exception as error:
            raise PeerUnreachable(f"{self.peer} is gone: {error}") from None

    async def receive(self, patience_s: float = MESSAGE_S) -> bytes:
        """The next message, without its length. Raises `PeerMisbehaved`, `PeerUnreachable` or `PeerTimeout`."""
        try:
            with trio.fail_after(patience_s):
                return await self._exactly(await self._length())
        except trio.TooSlowError:
            raise PeerTimeout(f"{self.peer} said nothing within {patience_s:.0f} s") from None

    async def _length(self) -> int:
        length = 0
        for shift in (0, 7):
            (byte,) = await self._exactly(1)
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                if length <= MESSAGE_LIMIT:
                    return length
                break
        raise PeerMisbehaved(f"{self.peer} announces a message of more than {MESSAGE_LIMIT} bytes")

    async def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                piece = await self.stream.read(count - len(data))
            except Exception as error:
                raise PeerUnreachable(f"{self.peer} is gone: {error or 'it ended the stream'}") from None
            if not piece:
                raise PeerUnreachable(f"{self.peer} ended the stream")
            data += piece
        return data


async def end(stream: Any) -> None:
    """Say goodbye; where that does not go through, break off."""
    with trio.CancelScope(shield=True), trio.move_on_after(GOODBYE_S):
        try:
            await stream.close()
        except Exception as error:
            log.debug("ending a circuit: %r", error)
            await break_off(stream)


async def break_off(stream: Any) -> None:
    with trio.CancelScope(shield=True), trio.move_on_after(GOODBYE_S):
        try:
            await stream.reset()
        except Exception as error:
            log.debug("breaking off a circuit: %r", error)
