"""`orchctl net`."""

from __future__ import annotations

import math
from typing import Any

from orchd.cli.command import Command, arg, opt, switch
from orchd.cli.text import counted, fields, size, table, when


def human_status(shown: dict[str, Any]) -> str:
    topics = [f"{called(topic['name'])} ({counted(topic['members'], 'member')})" for topic in shown["topics"]]
    return fields(
        [
            ("state", "off: net.enabled is false" if shown["state"] == "off" else shown["state"]),
            ("error", shown["error"]),
            ("peer", shown["peer_id"]),
            ("addresses", "\n".join(shown["addresses"])),
            ("peers", f"{shown['peers']} connected, {shown['members']} in our topics"),
            ("routing table", f"{shown['dht_peers']} nodes"),
            ("topics", ", ".join(topics)),
            ("restarts", shown["restarts"] or None),
            ("banned", "\n".join(map(human_ban, shown["bans"]))),
        ]
    )


def called(topic: str) -> str:
    """A topic as commands take it: a private one's name without its tag."""
    return topic.rpartition("/")[0] if topic.startswith("private/") else topic


def human_ban(ban: dict[str, Any]) -> str:
    until = f"until {when(ban['until_ms'])}" if ban["until_ms"] else "until it is lifted"
    return ", ".join(filter(None, [ban["subject"], until, ban["reason"]]))


def human_connected(shown: dict[str, Any]) -> str:
    if way := shown.get("already"):
        return f"{shown['peer']} is connected already, by {way}; this address was not tried"
    return f"connected to {shown['peer']}"


def hours(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def human_doctor(shown: dict[str, Any]) -> str:
    rows = [(check["name"], check["finding"], check["found"]) for check in shown["checks"]]
    todo = [f"{check['name']}: {check['next']}" for check in shown["checks"] if check["next"]]
    return "\n".join([table(("way", "finding", "found"), rows), *([""] if todo else []), *todo])


def verdict(shown: dict[str, Any]) -> int:
    return 0 if shown["ok"] else 1


def human_stats(shown: dict[str, Any]) -> str:
    if shown["text"] is not None:
        return str(shown["text"]).rstrip("\n")
    stats = shown["stats"]
    pairs = [*stats["gauges"].items(), *stats["counters"].items()]
    return fields([(name.replace("_", " "), size(value) if "bytes" in name else str(value)) for name, value in pairs])


def human_peers(shown: dict[str, Any]) -> str:
    return table(
        ("peer", "address", "who connected", "in", "out", "topics"),
        [
            (
                p["peer"],
                _way(p["address"]),
                "they" if p["inbound"] else "we",
                size(p["bytes_in"]),
                size(p["bytes_out"]),
                ", ".join(map(called, p["topics"])),
            )
            for p in shown["peers"]
        ],
        empty="no peer is connected",
    )


def _way(address: str) -> str:
    """As short as it is clear: of an address through a relay, the relay."""
    before, through, _ = address.partition("/p2p-circuit")
    return f"through {before.rpartition('/p2p/')[2]}" if through else address


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
        human_connected,
        method="net.connect",
        arguments=(arg("address", "such as /ip4/192.0.2.7/tcp/4001/p2p/12D3Koo..."),),
    ),
    Command(
        "doctor",
        "Try each way to others: what works, what does not, and what to do",
        human_doctor,
        method="net.doctor",
        verdict=verdict,
        more="Exit code 1 when a way that should work does not.",
    ),
    Command(
        "ban",
        "Have nothing to do with a peer or an IP address",
        lambda shown: f"{'would ban' if shown['preview'] else 'banned'} {human_ban(shown)}",
        method="net.ban",
        arguments=(
            arg("subject", "a peer id, or an IP address (of IPv6 its /64)"),
            opt("--hours", "for so long; without it until `net unban`", type=hours),
            opt("--reason", "a word to yourself"),
            switch("--dry-run", "only say what would be banned, and until when", dest="preview"),
        ),
    ),
    Command(
        "unban",
        "Lift a ban, made by hand or for what a peer did",
        lambda shown: f"{shown['subject']} is not banned any more",
        method="net.unban",
        changes=True,
        arguments=(arg("subject", "as `orchctl net status` shows it"),),
    ),
    Command(
        "stats",
        "What was counted since the daemon's start, and how it is now",
        human_stats,
        method="net.stats",
        arguments=(switch("--prometheus", "as Prometheus reads it"),),
        more="With --prometheus each counter stands below a line that says what it counts.",
    ),
)
