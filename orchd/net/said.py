"""What a peer last said of its own addresses.

The library's book of addresses holds more: what others say of a peer, what was dialled, and what it said an hour ago.
Where it matters how a peer can be reached *now*, that is no judge: who once had an address through a relay has it in
the book for two hours.
"""

from __future__ import annotations

from typing import Any

from libp2p.host import basic_host
from libp2p.identity.identify_push import identify_push as push_module
from libp2p.identity.update import update_peerstore_from_identify
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.net.bounds import ADDRESSES, reasonable
from orchd.net.hardening import Replacement, correction


@correction
def last_said_is_kept() -> list[Replacement]:
    """Of each peer that is identified the addresses of its last identify message are kept by themselves.

    Seen: a relay that had a slot at another relay for a moment, when both had just started, was asked for no slot by
    anybody until the address through the other one had expired.
    """
    return [
        (basic_host, "update_peerstore_from_identify", _update_and_keep),
        (push_module, "update_peerstore_from_identify", _update_and_keep),
    ]


async def _update_and_keep(peerstore: PeerStore, peer: ID, message: Any) -> None:
    await update_peerstore_from_identify(peerstore, peer, message)
    if (data := peerstore.peer_data_map.get(peer)) is not None:
        data.__dict__["orchd_said"] = tuple(
            map(str, reasonable([Multiaddr(one) for one in message.listen_addrs[:ADDRESSES]]))
        )


def addresses(peerstore: Any, peer: ID) -> tuple[str, ...]:
    """What `peer` said of itself last, as multiaddrs without its id; nothing when it has said nothing."""
    data = peerstore.peer_data_map.get(peer)
    return () if data is None else data.__dict__.get("orchd_said", ())
