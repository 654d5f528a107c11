"""`orchctl identity`."""

from __future__ import annotations

from orchd.cli.command import Command
from orchd.cli.text import fields

COMMANDS = (
    Command(
        "show",
        "Who this node is: its key as author and as peer",
        lambda shown: fields([("author", shown["author"]), ("peer", shown["peer_id"])]),
        method="identity.show",
    ),
)
