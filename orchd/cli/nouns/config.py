"""`orchctl config`."""

from __future__ import annotations

from typing import Any

from orchd.cli.command import Command
from orchd.cli.text import table


def human(shown: dict[str, Any]) -> str:
    return table(("setting", "value", "from"), [(s["key"], s["value"], s["origin"]) for s in shown["settings"]])


COMMANDS = (Command("show", "Every setting, its value and where it comes from", human, method="config.show"),)
