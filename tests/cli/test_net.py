"""Peers, as they are shown."""

from __future__ import annotations

from typing import Any

from orchd.cli.nouns.net import human_peers

RELAY, PEER = (
    "12D3KooWDkaV6CVDKnPiQqaGRjzBfzT6H27MmhQE9YjkEB98vK3j",
    "12D3KooWFef6QFUXLDSM2UGqUEPFarhPRZUf2dN7PT7G3AR2VpWu",
)


def peer(address: str) -> dict[str, Any]:
    return {"peer": PEER, "address": address, "inbound": True, "bytes_in": 1, "bytes_out": 1, "topics": [], "score": 0}


def test_a_peer_through_a_relay_takes_one_line() -> None:
    direct = "/ip4/192.0.2.7/tcp/4001"
    shown = human_peers({"peers": [peer(direct), peer(f"{direct}/p2p/{RELAY}/p2p-circuit/p2p/{PEER}")]})
    assert f"through {RELAY} " in shown
    assert "p2p-circuit" not in shown
    assert f"{direct} " in shown
