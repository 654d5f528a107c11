"""`orchctl topic`."""

from __future__ import annotations

from typing import Any

from orchd.cli.command import Command, arg
from orchd.cli.text import table, when

ALONE = (
    "0 peers are connected: `orchctl net connect ADDRESS` with the address that another's `orchctl net status` shows"
)
TOPIC = arg("topic", "its name")


def human_list(shown: dict[str, Any]) -> str:
    return table(
        ("topic", "members", "adapters", "last announced"),
        [(t["name"], t["members"], t["adapters"], when(t["announced_ms"])) for t in shown["topics"]],
        empty="in no topic yet",
    )


COMMANDS = (
    Command(
        "join",
        "Announce this node under a topic and look for others there",
        lambda shown: f"joined {shown['topic']}{'' if shown['peers'] else f'; {ALONE}'}",
        method="topic.join",
        changes=True,
        arguments=(TOPIC,),
    ),
    Command(
        "leave",
        "Leave a topic",
        lambda shown: f"left {shown['topic']}",
        method="topic.leave",
        changes=True,
        arguments=(TOPIC,),
    ),
    Command("list", "The topics that this node is in", human_list, method="topic.list"),
)
