"""`orchctl adapter`."""

from __future__ import annotations

import argparse
from typing import Any

from orchd.cli.command import Argument, Command, Params, arg, opt, switch
from orchd.cli.context import Context
from orchd.cli.text import fields, number, percent, short, size, table, when
from orchd.errors import EXIT_REFUSED

ADAPTER = arg("adapter", "its name, or its id or the beginning of it")
ADAPTERS = arg("adapters", "names, ids, or beginnings of ids", nargs="+", metavar="ADAPTER")


def human_list(shown: dict[str, Any]) -> str:
    here = [
        (
            short(a["id"]),
            a["name"],
            short(a["author"]),
            a["trust"],
            a["state"],
            a["rank"],
            size(a["size"]),
            ", ".join(a["topics"]),
        )
        for a in shown["adapters"]
    ]
    offered = [
        (short(a["adapter"]), "", short(a["author"]), "", "announced", "", size(a["size"]), ", ".join(a["topics"]))
        for a in shown["announced"]
    ]
    return table(("id", "name", "author", "trust", "state", "rank", "size", "topics"), [*here, *offered])


def human_row(row: dict[str, Any]) -> str:
    """One adapter: what its author signed and what was decided here."""
    training, lineage = row["training"], row["lineage"]
    scores = "\n".join(map(_score, row["evaluation"]))
    leaves = "\n".join(f"{number(leaf['weight'], 3)}  {leaf['id']}" for leaf in lineage["leaves"]) if lineage else ""
    return fields(
        [
            ("name", row["name"]),
            ("id", row["id"]),
            ("author", f"{row['author']} ({row['trust']})"),
            ("state", " ".join(filter(None, [row["state"], row["reason"] and f"({row['reason']})"]))),
            ("origin", row["origin"]),
            ("about", row["description"]),
            ("base", row["base"]),
            ("shape", f"rank {row['rank']}, alpha {row['alpha']:g}, {row['dtype']}, {row['parameters']:,} parameters"),
            ("size", size(row["size"])),
            ("licence", row["licence"]),
            (
                "training",
                training and f"{training['method']}, {training['examples']} examples, {training['steps']} steps",
            ),
            ("scores", scores),
            ("average of", leaves),
            ("recipe", lineage and lineage["recipe"]),
            ("topics", ", ".join(row["topics"])),
            ("made", when(row["created_ms"])),
            ("received", when(row["received_ms"])),
        ]
    )


def _score(metric: dict[str, Any]) -> str:
    base = f"base {number(metric['base_value'], 4)}, " if metric["base_value"] is not None else ""
    return f"{metric['split']} {metric['metric']} {number(metric['value'], 4)} ({base}{metric['examples']} examples)"


def human_published(shown: dict[str, Any]) -> str:
    told = (
        f"{shown['members']} connected now"
        if shown["members"]
        else "nobody else is there yet; who joins later hears of it"
    )
    return f"announced {shown['adapter']['name']} on {', '.join(shown['topics'])} ({told})"


def human_scores(shown: dict[str, Any]) -> str:
    return table(
        ("adapter", "id", "loss", "exact match", "examples"),
        [
            (r["name"] or "base", short(r["id"]), number(r["loss"]), percent(r["exact_match"]), r["examples"])
            for r in shown["rows"]
        ],
    )


def human_checks(shown: dict[str, Any]) -> str:
    rows = [("ok" if check["ok"] else "FAILED", check["name"], check["detail"]) for check in shown["checks"]]
    return table(("", "check", "detail"), rows)


def list_adapters(context: Context, options: argparse.Namespace, params: Params) -> None:
    only_offered = params.pop("announced", False)
    shown = context.call("adapter.list", **params)
    if only_offered:
        shown["adapters"] = []
    context.show(shown, human_list)
    if params.get("topic") and not context.json:
        _note_unless_joined(context, params["topic"])


def _note_unless_joined(context: Context, topic: str) -> None:
    """Of a topic that this node isn't in it hears nothing."""
    if topic not in [joined["name"] for joined in context.call("topic.list")["topics"]]:
        import shlex

        context.note(f"This node is not in {topic!r}; `orchctl topic join {shlex.quote(topic)}` joins it.")


def what_would_be_lost(context: Context, params: Params) -> list[str]:
    """Why one may not want to remove an adapter."""
    row = context.call("adapter.show", adapter=params["adapter"])
    found = []
    if row["origin"] != "fetched" and not row["topics"]:
        found.append(f"{row['name']} was never published: this may be the only copy")
    for other in context.call("adapter.list")["adapters"]:
        if other["lineage"] and row["id"] in [leaf["id"] for leaf in other["lineage"]["leaves"]]:
            average = f"{other['name']} ({short(other['id'])})"
            found.append(f"{average} is an average of it, which can't be recomputed without it")
    return found


LIST: tuple[Argument, ...] = (
    opt("--state", "only these", choices=("admitted", "quarantined")),
    opt("--topic", "only those announced there"),
    switch("--announced", "only what peers offer and this node doesn't have"),
)

COMMANDS = (
    Command(
        "list",
        "Adapters that are here, and those that peers offer",
        human_list,
        method="adapter.list",
        run=list_adapters,
        arguments=LIST,
    ),
    Command("show", "One adapter", human_row, method="adapter.show", arguments=(ADAPTER,)),
    Command(
        "publish",
        "Sign an announcement of an adapter and tell the topic's members",
        human_published,
        method="adapter.publish",
        changes=True,
        subject=("adapter.show", "adapter"),
        arguments=(
            ADAPTER,
            opt("--topic", "where; may be given more than once", dest="topics", action="append", required=True),
        ),
    ),
    Command(
        "fetch",
        "Fetch an adapter from peers, check every chunk, and admit it",
        lambda shown: human_row(shown["adapter"]),
        method="adapter.fetch",
        job=True,
        arguments=(
            arg("adapter", "its id, or the beginning of an announced one"),
            opt("--peer", "only from this peer; may be given more than once", dest="peers", action="append"),
        ),
    ),
    Command(
        "evaluate",
        "Loss and exact match of adapters on a data set",
        human_scores,
        method="adapter.evaluate",
        job=True,
        arguments=(
            ADAPTERS,
            opt("--dataset", "what to score on", required=True),
            opt("--split", "which part (test)", choices=("train", "validation", "test")),
            switch("--no-base", "leave out the base model", dest="base", const=False),
        ),
    ),
    Command(
        "verify",
        "Check an adapter's signature and bytes again, as they lie here",
        human_checks,
        method="adapter.verify",
        verdict=lambda shown: 0 if shown["ok"] else EXIT_REFUSED,
        arguments=(ADAPTER,),
    ),
    Command(
        "remove",
        "Remove an adapter and the bytes that no other one shares",
        lambda gone: f"removed {gone['adapter']}",
        method="adapter.remove",
        changes=True,
        warnings=what_would_be_lost,
        subject=("adapter.show", "adapter"),
        arguments=(ADAPTER,),
    ),
)
