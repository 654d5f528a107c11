"""`orchctl identity`."""

from __future__ import annotations

from typing import Any

from orchd.cli.command import Command
from orchd.cli.text import fields


def human_rotated(shown: dict[str, Any]) -> str:
    told = fields(
        [
            ("new key", shown["author"]),
            ("new peer", shown["peer_id"]),
            ("old key", f"{shown['old']}, which has signed the change and signs nothing more"),
            ("record", shown["rotation"]),
        ]
    )
    return (
        f"{told}\nWho has an address of this node in their settings needs the new one: `orchctl net status` shows it."
    )


COMMANDS = (
    Command(
        "show",
        "Who this node is: its key as author and as peer",
        lambda shown: fields([("author", shown["author"]), ("peer", shown["peer_id"])]),
        method="identity.show",
    ),
    Command(
        "rotate",
        "Give this node a new key; the old one signs the change",
        human_rotated,
        method="identity.rotate",
        changes=True,
        for_good="This node gets a new key for good; peers that have its address need the new one.",
        more="Others hear of it under the topics of this node's announcements, are warned loudly, and trust the new\n"
        "key as they did the old one. The old key is kept beside the new one, in a file of its own. There is no undo.",
    ),
)
