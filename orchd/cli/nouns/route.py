"""`orchctl route`."""

from __future__ import annotations

import argparse
from typing import Any

from orchd.cli.command import Command, Params, arg, opt
from orchd.cli.context import Context
from orchd.cli.text import short, table

BASE = opt("--base", "of which base (that of the most adapters that are deployed)")
PLAIN = "(plain base)"


def human_explained(shown: dict[str, Any]) -> str:
    rows = [
        (
            "→" if one["deployment"] == shown["deployment"] else "",
            one["deployment"],
            short(one["adapter"]) if one["adapter"] else PLAIN,
            f"{one['distance']:.1f}",
        )
        for one in shown["distances"]
    ]
    told = [f"{shown['deployment']}: {shown['why']}"]
    if rows:
        told.append(table(("", "deployment", "adapter", "distance"), rows))
        told.append(f"{shown['tokens']} tokens looked at, {shown['ms']:.1f} ms")
    return "\n".join([*told, *_left_out(shown)])


def human_status(shown: dict[str, Any]) -> str:
    rows = table(
        ("deployment", "adapter", "chosen", "corrections"),
        [
            (
                one["deployment"],
                short(one["adapter"]) if one["adapter"] else PLAIN,
                str(one["chosen"]),
                str(one["corrections"]),
            )
            for one in shown["rows"]
        ],
    )
    return "\n".join([rows, *_left_out(shown)])


def human_corrected(shown: dict[str, Any]) -> str:
    if shown["was"] == shown["deployment"]:
        return f"{shown['deployment']} it was; that is noted"
    return f"{shown['deployment']} instead of {shown['was']} from now on; `orchctl undo` takes it back"


def _left_out(shown: dict[str, Any]) -> list[str]:
    return [f"{one['name']} does not take part: {one['reason']}" for one in shown["left_out"]]


def explain(context: Context, options: argparse.Namespace, params: Params) -> None:
    params["text"] = " ".join(params["text"])
    context.show(context.call("route.explain", **params), human_explained)


COMMANDS = (
    Command(
        "explain",
        "Who would answer a text, and how near each is to it",
        human_explained,
        method="route.explain",
        run=explain,
        more='For example: orchctl route explain "how do I say this abroad?"',
        arguments=(arg("text", "what would be asked; several words are put together", nargs="+"), BASE),
    ),
    Command(
        "status",
        "Who takes part in routing, and how often each was chosen since the daemon started",
        human_status,
        method="route.status",
        arguments=(BASE,),
    ),
    Command(
        "correct",
        "That was the wrong one: say who should have answered",
        human_corrected,
        method="route.correct",
        more="It is about what was asked last with `orchctl chat --route`, or about --text; what is like it goes the\n"
        "same way, on this machine only. Without DEPLOYMENT the next nearest is meant. `orchctl undo` takes it back.",
        changes=True,
        arguments=(
            arg("deployment", "who should have answered", nargs="?"),
            opt("--text", "the request, where it was not the last one"),
            BASE,
        ),
    ),
)
