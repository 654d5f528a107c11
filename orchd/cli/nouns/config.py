"""`orchctl config`."""

from __future__ import annotations

import argparse
from typing import Any

from orchd.cli.command import Command, Params
from orchd.cli.context import Context
from orchd.errors import DaemonUnreachable


def human(shown: dict[str, Any]) -> str:
    """As a `config.toml` of one's own may have it."""
    return "\n\n".join(
        f"# {one['meaning']}\n{one['key']} = {toml(one['value'])}  # {one['origin']}" for one in shown["settings"]
    )


def toml(value: Any) -> str:
    """A setting's value as TOML has it: its numbers, switches, texts and lists of texts are JSON's too."""
    import json

    return '""' if value is None else json.dumps(value, ensure_ascii=False)


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
    return {
        "settings": [
            {"key": s.key, "value": _plain(s.value), "origin": s.origin, "meaning": s.meaning} for s in settings
        ]
    }


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
        more="Of the running daemon; without one, those that it would start with. What is printed has the form of\n"
        "~/.config/orchd/config.toml (ORCHD_HOME/config.toml); the daemon reads that when it starts.",
    ),
)
