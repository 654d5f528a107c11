"""`orchctl base`."""

from __future__ import annotations

from typing import Any

from orchd.cli.command import Command, arg
from orchd.cli.text import fields, short, size, table


def human_list(shown: dict[str, Any]) -> str:
    return table(
        ("name", "architecture", "parameters", "size", "licence", "fingerprint"),
        [
            (
                b["name"],
                b["architecture"],
                f"{b['parameters']:,}",
                size(b["size"]),
                b["licence"],
                short(b["fingerprint"]),
            )
            for b in shown["bases"]
        ],
    )


def human_show(base: dict[str, Any]) -> str:
    return fields(
        [
            ("name", base["name"]),
            ("fingerprint", base["fingerprint"]),
            ("architecture", base["architecture"]),
            ("parameters", f"{base['parameters']:,}"),
            ("size", size(base["size"])),
            ("licence", base["licence"]),
            ("path", base["path"]),
        ]
    )


COMMANDS = (
    Command("list", "The base models that this node has", human_list, method="base.list"),
    Command(
        "show",
        "One base",
        human_show,
        method="base.show",
        arguments=(arg("base", "its name or fingerprint"),),
    ),
)
