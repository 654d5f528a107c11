"""`orchctl adapter`."""

from __future__ import annotations

import argparse
from typing import Any

from orchd.cli.command import Argument, Command, Params, arg, opt, switch
from orchd.cli.context import Context
from orchd.cli.nouns import adapter_exchange, adapter_leak, adapter_scores, adapter_search, adapter_trust
from orchd.cli.nouns.net import called
from orchd.cli.nouns.topic import ALONE
from orchd.cli.text import counted, fields, number, percent, short, size, table, when
from orchd.errors import EXIT_REFUSED

ADAPTER = adapter_search.ADAPTER


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
            ", ".join(map(called, a["topics"])),
        )
        for a in shown["adapters"]
    ]
    offered = [
        (
            short(a["adapter"]),
            "",
            short(a["author"]),
            a["trust"],
            "revoked" if a["revoked"] else "announced",
            "",
            size(a["size"]),
            ", ".join(map(called, a["topics"])),
        )
        for a in shown["announced"]
    ]
    text = table(("id", "name", "author", "trust", "state", "rank", "size", "topics"), [*here, *offered])
    return "\n\n".join([text, *_more(shown)])


def _more(shown: dict[str, Any]) -> list[str]:
    """Where the list was cut off, what to do about it."""
    here, offered = shown["here"] - len(shown["adapters"]), shown["offered"] - len(shown["announced"])
    return [
        f"{count:,} more {what}"
        for count, what in (
            (here, "are here: `--limit` shows up to 500, `orchctl adapter search` goes through them by pages"),
            (offered, "are offered by peers: `--limit` shows up to 500, `--topic` those of one topic"),
        )
        if count > 0
    ]


def human_row(row: dict[str, Any]) -> str:
    """One adapter: what its author signed and what was decided here."""
    training, lineage = row["training"], row["lineage"]
    scores = "\n".join(_score(one, row) for one in row["evaluation"] if one["metric"] != "loss_interval")
    names = {leaf["id"]: leaf["name"] for leaf in row.get("leaves", ())}
    leaves = "\n".join(_leaf(leaf, names) for leaf in lineage["leaves"]) if lineage else ""
    return fields(
        [
            ("name", row["name"]),
            ("id", row["id"]),
            ("author", f"{row['author']} ({row['trust']})"),
            ("now signs as", _newer_key(row)),
            ("co-signed by", "\n".join(row.get("cosigners", ()))),
            ("state", " ".join(filter(None, [row["state"], row["reason"] and f"({row['reason']})"]))),
            ("origin", row["origin"]),
            ("about", row["description"]),
            ("base", " ".join(filter(None, [row["base"], _hint(row)]))),
            ("shape", f"rank {row['rank']}, alpha {row['alpha']:g}, {row['dtype']}, {row['parameters']:,} parameters"),
            ("size", size(row["size"])),
            ("modules", ", ".join(row["modules"])),
            ("can be", ", ".join(name.replace("_", " ") for name in row["capabilities"])),
            ("licence", row["licence"]),
            (
                "training",
                training and f"{training['method']}, {training['examples']} examples, {training['steps']} steps",
            ),
            ("scores" if row["trust"] == "self" else "its author claims", scores),
            ("leaks", _leak(row.get("leak"))),
            ("attested", "\n".join(map(_attestation, row.get("attestations", ())))),
            ("by those you follow", _standing(row.get("attested"))),
            ("average of", leaves),
            ("recipe", lineage and lineage["recipe"]),
            ("recomputed", row.get("recomputed")),
            ("tags", ", ".join(row["tags"])),
            ("topics", ", ".join(map(called, row["topics"]))),
            ("supersedes", row["supersedes"]),
            ("kept", "pinned: never thrown out to make room" if row["pinned"] else None),
            ("made", when(row["created_ms"])),
            ("received", when(row["received_ms"])),
        ]
    )


def _leaf(leaf: dict[str, Any], names: dict[str, str]) -> str:
    return "  ".join(filter(None, [number(leaf["weight"], 3), names.get(leaf["id"]), leaf["id"]]))


def _hint(row: dict[str, Any]) -> str:
    """A base's name is what its author called it; the fingerprint decides."""
    if not row["base_hint"]:
        return ""
    return f"({row['base_hint']})" if row["trust"] == "self" else f"(its author calls it {row['base_hint']!r})"


def _score(metric: dict[str, Any], row: dict[str, Any]) -> str:
    name, as_text = metric["metric"], adapter_scores.shown_as(metric["metric"])
    base = f"the base {as_text(metric['base_value'])}, " if metric["base_value"] is not None else ""
    half = next((one["value"] for one in row["evaluation"] if one["metric"] == f"{name}_interval"), None)
    between = "" if half is None else f"difference ± {as_text(half)}, "
    called = adapter_scores.NAMES.get(name, name)
    return f"{metric['split']} {called} {as_text(metric['value'])} ({base}{between}{metric['examples']} examples)"


def _leak(leak: dict[str, Any] | None) -> str:
    """What its author says that it gives away."""
    if leak is None:
        return ""
    return f"{leak['verdict']}{'; its data is said to be of nobody' if leak['synthetic'] else ''}"


def _newer_key(row: dict[str, Any]) -> str:
    """Of an author whose key has changed since."""
    now = row.get("author_now", row["author"])
    return "" if now == row["author"] else str(now)


def _standing(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    keys = counted(found["evaluators"], "key")
    return f"{found['gain']:+.3f} nats a token better than the base, at least {found['low']:+.3f}; by {keys}"


def _attestation(one: dict[str, Any]) -> str:
    as_text = number if one["metric"] == "loss" else percent
    base = f", the base {as_text(one['base_value'])}" if one["base_value"] is not None else ""
    figure = f"{one['metric']} {as_text(one['value'])} ± {as_text(one['interval'])}{base}, {one['examples']} examples"
    return f"{figure}, by {short(one['evaluator'])} ({one['trust']})"


def human_published(shown: dict[str, Any]) -> str:
    where = ", ".join(f"{called(one['topic'])} ({one['members']} connected now)" for one in shown["under"])
    if not shown["members"]:
        where = f"{', '.join(map(called, shown['topics']))} (nobody else is there yet; who joins later hears of it)"
    if shown.get("preview"):
        joins = f"; would join {', '.join(shown['joins'])} for it" if shown["joins"] else ""
        return f"would announce {shown['adapter']['name']} on {where}{joins}{_signed(shown['adapter'])}{_forgot(shown)}"
    return f"announced {shown['adapter']['name']} on {where}{_signed(shown['adapter'])}{_forgot(shown)}"


def _signed(row: dict[str, Any]) -> str:
    """What everybody reads about leaks in its manifest."""
    return "" if row.get("leak") is None else f"\nits manifest says: {_leak(row['leak'])}"


UNMEASURED = (
    "its manifest does not say what it unlearnt, and nothing was held against the ceiling: that is measured when an\n"
    "adapter is trained, not when it is averaged or imported; `orchctl adapter evaluate` measures it here"
)


def _forgot(shown: dict[str, Any]) -> str:
    """What its manifest says that it unlearnt, where that is more than the ceiling or is not said."""
    told = shown.get("forgot")
    if not told:
        return f"\n{UNMEASURED}"
    if not told["above"]:
        return ""
    return f"\nit has unlearnt much: its loss on the base's own answers rose by {number(told['rise'])} nats a token"


def human_checks(shown: dict[str, Any]) -> str:
    rows = [("ok" if check["ok"] else "FAILED", check["name"], check["detail"]) for check in shown["checks"]]
    return table(("", "check", "detail"), rows)


def human_scan(shown: dict[str, Any]) -> str:
    scan = shown["scan"]
    rows = [(module["verdict"], module["module"], *_figures(module)) for module in scan["modules"]]
    headers = ("", "module", "norm", "largest", "share of it", "effective rank")
    about = fields(
        [
            ("verdict", f"{scan['verdict']}: {scan['reason']}"),
            ("compared with", ", ".join(map(short, scan["compared"])) or "nothing"),
            ("note", scan["note"]),
        ]
    )
    if all(module["verdict"] == "unknown" for module in scan["modules"]):
        return f"{about}\n{counted(len(rows), 'module')}; --json shows their figures"
    return f"{table(headers, rows)}\n\n{about}"


def _figures(module: dict[str, Any]) -> list[str]:
    """Each figure, and in brackets the smallest and largest of the known adapters."""
    known = module["known"]
    return [
        f"{number(value)}{'' if known is None else _range(known, name)}{' !' if name in module['unlike'] else ''}"
        for name, value in module["figures"].items()
    ]


def _range(known: dict[str, Any], name: str) -> str:
    return f" ({number(known['least'][name])} to {number(known['most'][name])})"


def list_adapters(context: Context, options: argparse.Namespace, params: Params) -> None:
    only_offered = params.pop("announced", False)
    shown = context.call("adapter.list", **params)
    if only_offered:
        shown["adapters"], shown["here"] = [], 0
    context.show(shown, human_list)
    if params.get("topic") and not context.json:
        _note_alone(context, params["topic"])


def _note_alone(context: Context, topic: str) -> None:
    """Of a topic that this node isn't in it hears nothing, nor while nobody is connected."""
    if not any(topic in (joined["name"], joined["label"]) for joined in context.call("topic.list")["topics"]):
        import shlex

        context.note(f"This node is not in {topic!r}; `orchctl topic join {shlex.quote(topic)}` joins it.")
    elif not context.call("net.peers")["peers"]:
        context.note(f"{ALONE}.")


LIST: tuple[Argument, ...] = (
    opt("--state", "only these", choices=("admitted", "quarantined")),
    opt("--topic", "only those announced there"),
    switch("--announced", "only what peers offer and this node doesn't have"),
    opt("--limit", "so many of either, the newest (50, at most 500)", type=int, metavar="N"),
)


def human_removed(gone: dict[str, Any]) -> str:
    told = [f"removed {gone['name']} ({gone['adapter']}); `orchctl undo {gone['adapter']}` brings it back"]
    if gone["others"]:
        told.append(f"{gone['others']} more of this name stay; `orchctl adapter versions {gone['name']}` lists them")
    for name in gone["deployments"]:
        told.append(f"{name} goes on answering with it, until `orchctl deployment remove {name}`")
    return "\n".join(told)


COMMANDS = (
    Command(
        "list",
        "The newest adapters that are here, and those that peers offer",
        human_list,
        method="adapter.list",
        run=list_adapters,
        arguments=LIST,
    ),
    Command("show", "One adapter", human_row, method="adapter.show", arguments=(ADAPTER,)),
    *adapter_search.COMMANDS,
    Command(
        "publish",
        "Sign an announcement of an adapter and tell the topic's members",
        human_published,
        method="adapter.publish",
        arguments=(
            ADAPTER,
            opt("--topic", "where; may be given more than once", dest="topics", action="append", required=True),
            switch("--despite-forgetting", "also what has unlearnt much of what its base knew"),
            switch("--dry-run", "only say where it would be announced, and which topics joined", dest="preview"),
            switch("--despite-leak", "also where its leak report is above the limit, or can't be made"),
            opt("--candidate", "its name: also an average that your held-out data did not find better", metavar="NAME"),
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
    *adapter_scores.COMMANDS,
    *adapter_leak.COMMANDS,
    Command(
        "verify",
        "Check an adapter's signature and bytes again, as they lie here",
        human_checks,
        method="adapter.verify",
        verdict=lambda shown: 0 if shown["ok"] else EXIT_REFUSED,
        arguments=(ADAPTER,),
    ),
    *adapter_trust.COMMANDS,
    *adapter_exchange.COMMANDS,
    Command(
        "scan",
        "Spectral figures by module, beside those of known adapters of the base",
        human_scan,
        method="adapter.scan",
        arguments=(ADAPTER,),
        more="Known are admitted adapters of yours and of authors that you follow. Verdicts: alike, unlike (a figure\n"
        "is beyond twice or below half of all known ones, marked !), unknown (there is too little to compare with).\n"
        "None of them says that an adapter does no harm.",
    ),
    Command(
        "pin",
        "Keep an adapter whatever the quota says",
        lambda row: f"{row['name']} is pinned",
        method="adapter.pin",
        changes=True,
        subject=("adapter.show", "adapter"),
        arguments=(ADAPTER,),
    ),
    Command(
        "unpin",
        "Let an adapter go when room has to be made",
        lambda row: f"{row['name']} is not pinned any more",
        method="adapter.unpin",
        changes=True,
        subject=("adapter.show", "adapter"),
        arguments=(ADAPTER,),
    ),
    Command(
        "release",
        "Let an adapter out of quarantine by hand",
        lambda row: f"{row['name']} is {row['state']}",
        method="adapter.release",
        changes=True,
        subject=("adapter.show", "adapter"),
        arguments=(ADAPTER,),
    ),
    Command(
        "remove",
        "Move an adapter to the trash, where `orchctl undo` finds it for 30 days",
        human_removed,
        method="adapter.remove",
        changes=True,
        subject=("adapter.show", "adapter"),
        arguments=(ADAPTER,),
    ),
)
