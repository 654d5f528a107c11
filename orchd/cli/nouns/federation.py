"""`orchctl federation`."""

from __future__ import annotations

import argparse
import re
from typing import Any

from orchd.cli.command import Command, arg, opt, switch
from orchd.cli.text import duration, fields, number, percent, short, table, when

UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds(text: str) -> int:
    """`90s`, `10m`, `2h`, `1d`, or seconds."""
    found = re.fullmatch(r"([0-9]+)([smhd]?)", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time like 90s, 10m or 2h")
    return int(found[1]) * UNITS[found[2] or "s"]


def human_made(shown: dict[str, Any]) -> str:
    told = _about(shown)
    if shown["joined"]:
        return f"{told}\n\n{shown['limit']}\n`orchctl federation status` says how far it is"
    return f"{told}\n\nothers join it, and so do you, with\n`orchctl federation join {shown['id']} --dataset NAME`"


def _about(shown: dict[str, Any]) -> str:
    return fields(
        [
            ("federation", shown["id"]),
            ("topic", shown["topic"]),
            ("base", shown["base"] or "not here"),
            (
                "rounds",
                f"{shown['rounds']} of {shown['steps']} steps, one each {duration(shown['every_s'])} at the most",
            ),
            ("members", f"{shown['min_peers']} at least in each round"),
            ("adapter", f"rank {shown['rank']}, outer step {shown['outer']}"),
        ]
    )


def human_left(shown: dict[str, Any]) -> str:
    return f"left {shown['topic']} ({short(shown['id'])}); `orchctl federation join {shown['id']}` goes on with it"


def human_list(shown: dict[str, Any]) -> str:
    rows = [
        (
            short(one["id"]),
            one["topic"],
            one["base"] or "not here",
            f"{one['round']}/{one['rounds']}" if one["joined"] else one["rounds"],
            one["min_peers"],
            duration(one["every_s"]),
            one["phase"] or ("" if one["joined"] else "not joined"),
            one["trust"],
        )
        for one in shown["federations"]
    ]
    heads = ("federation", "topic", "base", "rounds", "least", "each", "now", "by")
    return table(heads, rows, empty="no federation was heard of; `orchctl federation create` makes one")


def human_status(shown: dict[str, Any]) -> str:
    """Where it is, who is in it, and what came of each round."""
    head = fields(
        [
            ("federation", f"{shown['topic']} ({shown['id']})"),
            ("round", f"{shown['round']} of {shown['rounds']}"),
            ("now", shown["now"] if shown["joined"] else "left"),
            ("deadline", when(shown["deadline_ms"])),
            ("global", shown["adapter"]),
            ("data set", shown["dataset"]),
            ("trouble", shown["reason"]),
        ]
    )
    members = table(
        ("member", "trust", "round", "its increment", ""),
        [(short(one["author"]), one["trust"], one["round"], one["state"], one["reason"]) for one in shown["members"]],
        empty="nobody has announced anything yet",
    )
    rounds = table(
        ("round", "outcome", "took", "loss before", "after", "members", "refused", ""),
        [_round(one) for one in shown["history"]],
        empty="no round is over yet",
    )
    parts = [head, members, rounds, *(_shares(one) for one in shown["history"][-1:])]
    return "\n\n".join(filter(None, parts))


def _round(one: dict[str, Any]) -> tuple[object, ...]:
    own = one["own"] or {}
    return (
        one["round"],
        one["outcome"],
        duration(one["seconds"]),
        number(own.get("before")),
        number(own.get("after")),
        len(one["shares"]) or "",
        len(one["refused"]) or "",
        one["reason"],
    )


def _shares(one: dict[str, Any]) -> str:
    """Who is in the last average, and what each says of it."""
    told = {loss["author"]: loss for loss in (*one["others"], *filter(None, [one["own"]]))}
    rows = [
        (
            short(share["author"]),
            percent(share["weight"]),
            percent(share["taken"]),
            share["vote"] or "none",
            share["age"],
            number(told.get(share["author"], {}).get("before")),
            number(told.get(share["author"], {}).get("after")),
        )
        for share in one["shares"]
    ]
    heads = (f"in round {one['round']}", "weight", "taken", "vote", "late by", "its loss before", "after")
    refused = [
        f"refused: {short(away['author'])} {short(away['adapter'])}: {away['reason']}" for away in one["refused"]
    ]
    return "\n".join([table(heads, rows, empty=""), *refused]) if rows or refused else ""


NAMED = arg("federation", "its id, the beginning of it, or its topic", nargs="?")
DATASET = opt("--dataset", "what to train on; it stays here", metavar="NAME")
AGREE = switch("--agree", "agree that adapters trained on it are published within the leak limit")
COMMANDS = (
    Command(
        "create",
        "Invite a topic to train one adapter together, in rounds, with no server",
        human_made,
        method="federation.create",
        arguments=(
            opt("--topic", "under which members find each other", required=True),
            opt("--base", "the base that the adapter is for (demo)"),
            opt("--rounds", "how many (5)", type=int, metavar="N"),
            opt("--every", "the longest that a round waits: 90s, 10m (the default), 2h", type=seconds, metavar="TIME"),
            opt("--min-peers", "fewest members of a round, you among them (3)", type=int, metavar="N"),
            opt("--rank", "of the adapter (16)", type=int, metavar="N"),
            opt("--steps", "of each member in each round (100)", type=int, metavar="N"),
            opt("--learning-rate", "of all members; else each plans its own", type=float, metavar="X"),
            opt("--outer", "outer step: auto (momentum from four members on), plain, momentum or strength"),
            DATASET,
            AGREE,
        ),
        more="Example: orchctl federation create --topic lan/choir --rounds 5 --every 10m --min-peers 3\n"
        "With --dataset you join it at once. A round goes on as soon as all members of the last one are in, and at\n"
        "its deadline without those who are late; never with fewer than --min-peers, however long that takes.",
    ),
    Command(
        "join",
        "Take part in a federation with your own data, or again after you left",
        human_made,
        method="federation.join",
        arguments=(arg("federation", "its id, the beginning of it, or its topic"), DATASET, AGREE),
        more="Example: orchctl federation join lan/choir --dataset songs --agree\n"
        "Your data stays here; the adapters that are trained on it in each round are published by themselves as\n"
        "long as their leak report is within the limit, which is shown once, and to which --agree agrees.",
    ),
    Command(
        "status",
        "How far it is, who is in it with which weight, who was refused and why, losses before and after",
        human_status,
        method="federation.status",
        arguments=(NAMED,),
        more="Example: orchctl federation status",
    ),
    Command(
        "leave",
        "Take part no more; what was published stays so",
        human_left,
        method="federation.leave",
        arguments=(NAMED,),
        more="Example: orchctl federation leave lan/choir",
    ),
    Command(
        "list",
        "Federations that were heard of, and those that you are in",
        human_list,
        method="federation.list",
        more="Example: orchctl federation list",
    ),
)
