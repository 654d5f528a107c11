"""`orchctl net`."""

from __future__ import annotations

from typing import Any

from orchd.cli.command import Command, arg
from orchd.cli.text import fields, table


def human_status(shown: dict[str, Any]) -> str:
    topics = [f"{topic['name']} ({topic['members']} members)" for topic in shown["topics"]]
    return fields(
        [
            ("state", shown["state"]),
            ("error", shown["error"]),
            ("peer", shown["peer_id"]),
            ("addresses", "\n".join(shown["addresses"])),
            ("peers", f"{shown['peers']} connected, {shown['members']} in our topics"),
            ("routing table", f"{shown['dht_peers']} nodes"),
            ("topics", ", ".join(topics)),
            ("restarts", shown["restarts"] or None),
        ]
    )


def human_peers(shown: dict[str, Any]) -> str:
    return table(
        ("peer", "address", "who connected", "topics"),
        [(p["peer"], p["address"], "they" if p["inbound"] else "we", ", ".join(p["topics"])) for p in shown["peers"]],
        empty="no peer is connected",
    )


COMMANDS = (
    Command(
        "status",
        "The network: its state, addresses, topics, and why it is down if it is",
        human_status,
        method="net.status",
    ),
    Command("peers", "The connected peers and the topics shared with them", human_peers, method="net.peers"),
    Command(
        "connect",
        "Connect to a peer by its address",
        lambda shown: f"connected to {shown['peer']}",
        method="net.connect",
        arguments=(arg("address", "such as /ip4/192.0.2.7/tcp/4001/p2p/12D3Koo..."),),
    ),
)
