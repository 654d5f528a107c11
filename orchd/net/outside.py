"""How this node's listening port looks from outside: a second connection to a relay, made from that port.

The ports of other connections that this node makes are of no use to anybody. The second connection is kept, so that a
router on the way keeps what it has noted of the port.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.utils.varint import read_length_prefixed_protobuf
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.net.circuit import break_off
from orchd.net.host import Host, parse_peer_address
from orchd.net.policy import reach

log = logging.getLogger(__name__)

IDENTIFY = TProtocol("/ipfs/id/1.0.0")
#: Seconds for a connection and an answer, and bytes of that.
PATIENCE_S, ANSWER_LIMIT = 5, 64 << 10


@dataclass(frozen=True)
class _View:
    connection: Any
    address: Multiaddr | None


class Outside:
    """Of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._views: dict[ID, _View] = {}

    def source(self, towards: Multiaddr) -> tuple[str, int] | None:
        """The address and port that this node listens on, of the kind that `towards` is of."""
        kind = "/ip6/" if "/ip6/" in str(towards) else "/ip4/"
        listening = [text for text in map(str, self._host.basic.get_transport_addrs()) if text.startswith(kind)]
        if not listening:
            return None
        parts = listening[0].split("/")
        return parts[2], int(parts[4])

    async def seen_by(self, text: str) -> Multiaddr | None:
        """Where the relay at an address with its id sees the listening port, None where that can't be found out."""
        relay, way = parse_peer_address(text)
        source = self.source(way)
        if source is None:
            return None
        self._views = {peer: view for peer, view in self._views.items() if not view.connection.is_closed}
        if relay not in self._views:
            try:
                with trio.fail_after(PATIENCE_S):
                    connection = await self._host.swarm.dial_addr(way, relay, source)
                    self._views[relay] = _View(connection, await _ask(connection))
            except Exception as error:
                log.info("how %s sees this node: %r", relay, error)
        return self._views[relay].address if relay in self._views else None


async def _ask(connection: Any) -> Multiaddr | None:
    """What the other end of this very connection says of our end."""
    stream = await connection.new_stream()
    try:
        await MultiselectClient().select_one_of([IDENTIFY], MultiselectCommunicator(stream), PATIENCE_S)
        answer = Identify()
        answer.ParseFromString(await read_length_prefixed_protobuf(stream, max_length=ANSWER_LIMIT))
        if not answer.observed_addr:
            return None
        address = Multiaddr(answer.observed_addr)
        return address if reach.ip_of(str(address)) else None
    finally:
        await break_off(stream)
