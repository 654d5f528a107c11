"""`orchctl config`."""

from __future__ import annotations

import argparse
from typing import Any

from orchd.cli.command import Command, Params
from orchd.cli.context import Context
from orchd.cli.text import table
from orchd.errors import DaemonUnreachable


def human(shown: dict[str, Any]) -> str:
    return table(("setting", "value", "from"), [(s["key"], s["value"], s["origin"]) for s in shown["settings"]])


def show(context: Context, options: argparse.Namespace, params: Params) -> None:
    """The running daemon's settings, else those that it would start with."""
    try:
        client = context.client
    except DaemonUnreachable as error:
        shown = _settings_here(context)
        context.note(f"{error.message}\nThese are the settings that it would start with here:")
        context.show(shown, human)
    else:
        context.show(client.call("config.show"), human)


def _settings_here(context: Context) -> dict[str, Any]:
    """As `config.show` gives them. Raises `ConfigInvalid`."""
    from orchd.config import load
    from orchd.paths import Paths

    _, settings = load(Paths.from_env(context.environ).config_file, context.environ)
    return {"settings": [{"key": s.key, "value": _plain(s.value), "origin": s.origin} for s in settings]}


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value


COMMANDS = (
    Command(
        "show",
        "Every setting, its value and where it comes from",
        human,
        method="config.show",
        run=show,
        more="Of the running daemon; without one, those that it would start with.",
    ),
)
