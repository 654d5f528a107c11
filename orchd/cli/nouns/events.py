"""`orchctl events`."""

from __future__ import annotations

import argparse
import time
from typing import Any

from orchd.cli.command import Command, Params, opt
from orchd.cli.context import Context

EMPTY: tuple[object, ...] = (None, "", [], {})


def human(event: dict[str, Any]) -> str:
    """One line: time, number, kind, job, and what was told."""
    clock = time.strftime("%H:%M:%S", time.localtime(event["time_ms"] / 1000))
    told = " ".join(f"{name}={_brief(value)}" for name, value in event.get("data", {}).items() if value not in EMPTY)
    return "  ".join(filter(None, [clock, str(event["seq"]), event["kind"], event.get("job"), told]))


def follow(context: Context, options: argparse.Namespace, params: Params) -> None:
    events = context.client.events(params.get("after"), params.get("job"), tuple(params.get("kinds", ())))
    for event in events:
        context.show(event, human)


def _brief(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
    if isinstance(value, dict):
        return ",".join(f"{name}:{_brief(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ",".join(map(_brief, value))
    return str(value)


COMMANDS = (
    Command(
        "subscribe",
        "What happens on this node, as it happens; Ctrl-C ends it",
        human,
        method="events.subscribe",
        run=follow,
        arguments=(
            opt("--after", "first what is kept after event number N (0: everything)", type=int, metavar="N"),
            opt("--job", "only of this job"),
            opt("--kind", "only of this kind; may be given more than once", dest="kinds", action="append"),
        ),
    ),
)
