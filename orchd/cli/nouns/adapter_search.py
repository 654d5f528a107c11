"""`orchctl adapter search|why|versions|diff`: finding adapters, and asking what they are."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from typing import Any

from orchd.cli.command import Argument, Command, Params, arg, opt, switch
from orchd.cli.context import Context
from orchd.cli.text import fields, number, percent, short, size, table, when

ADAPTER = arg("adapter", "its name, NAME@AUTHOR, or its id or the beginning of it")
SORTS = ("best", "newest", "received", "used", "name", "size", "rank", "attested", "loss", "exact_match")
LEVELS = ("self", "followed", "allowed", "stranger", "blocked")
BOUND = re.compile(r"\A(loss|exact_match)(<=|>=)(\d+(?:\.\d+)?)\Z", re.ASCII)
UP = {
    "leaf": "leaf",
    "initial": "its training began here",
    "relative_to": "it is an increment over this",
    "previous": "the round before",
}
DOWN = {
    "leaf": "average",
    "initial": "training that began here",
    "relative_to": "increment over this",
    "previous": "the round after",
}
"""What `why` says of an edge, seen from either end."""


# ---- search -------------------------------------------------------------------------------------------------


def human_found(shown: dict[str, Any]) -> str:
    rows = [
        (
            short(row["id"]),
            row["name"],
            short(row["author"]),
            row["trust"],
            row["state"],
            row["base_hint"],
            row["rank"],
            size(row["size"]),
            number(_figure(row, "loss")),
            percent(_figure(row, "exact_match")),
            attested(shown.get("attested", {}).get(row["id"])),
            ", ".join(row["tags"]),
        )
        for row in shown["adapters"]
    ]
    headers = (
        "id",
        "name",
        "author",
        "trust",
        "state",
        "base",
        "rank",
        "size",
        "claimed loss",
        "claimed exact",
        "gain",
        "tags",
    )
    text = _filled(headers, rows, "nothing here fits")
    return f"{text}\n\nthere is more: the same again with --cursor {shown['next']}" if shown["next"] else text


def attested(standing: dict[str, Any] | None) -> str:
    """By how much it is better than its base at least, by the word of those who are followed."""
    if standing is None:
        return ""
    return f"{standing['low']:+.2f} by {standing['evaluators']}"


def _figure(row: dict[str, Any], metric: str) -> float | None:
    """The first value that the author gives; what `--metric` and `--sort` go by too."""
    return next((one["value"] for one in row["evaluation"] if one["metric"] == metric), None)


def _filled(headers: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> str:
    """A table without the columns in which no row has anything."""
    kept = [at for at in range(len(headers)) if any(row[at] not in ("", None) for row in rows)]
    return table([headers[at] for at in kept], [[row[at] for at in kept] for row in rows], empty)


def bound(text: str) -> dict[str, Any]:
    """`loss<=1.5` or `exact_match>=0.9`"""
    found = BOUND.match(text.replace(" ", ""))
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no bound like 'loss<=1.5' or 'exact_match>=0.9'")
    metric, sign, value = found.groups()
    return {"metric": metric, "at_most" if sign == "<=" else "at_least": float(value)}


def search(context: Context, options: argparse.Namespace, params: Params) -> None:
    words = params.pop("text")
    if words:
        params["text"] = " ".join(words)
    context.show(context.call("adapter.search", **params), human_found)


def _all_of(name: str, help: str, dest: str, **options: Any) -> Argument:
    return opt(name, f"{help}; may be given more than once", dest=dest, action="append", **options)


SEARCH = (
    arg("text", "in its name, tags, description or base's hint; all of them, parts of words too", nargs="*"),
    opt("--base", "for this base: its name here, its fingerprint or the beginning of it"),
    opt("--min-rank", "of at least this rank", type=int, metavar="N"),
    opt("--max-rank", "of at most this rank", type=int, metavar="N"),
    _all_of("--module", "that has this target module", "modules"),
    opt("--licence", "under this licence (SPDX)"),
    opt("--author", "by this author: a key, the beginning of one, or me"),
    _all_of("--trust", "by authors of this level", "trust", choices=LEVELS),
    _all_of("--metric", "by the author's figures: 'loss<=1.5', 'exact_match>=0.9'", "metrics", type=bound),
    _all_of("--tag", "with this tag", "tags"),
    opt("--topic", "announced there"),
    opt(
        "--state", "only these; what was removed is left out otherwise", choices=("admitted", "quarantined", "removed")
    ),
    opt("--compatible-with", "that could be averaged with this adapter", metavar="ADAPTER"),
    opt(
        "--sort",
        "best: names that begin with the first word, then the newest; attested: what those you follow measured (best)",
        choices=SORTS,
    ),
    switch("--reverse", "the other way around"),
    opt("--limit", "so many at once (50, at most 500)", type=int, metavar="N"),
    opt("--cursor", "go on where the page before ended"),
)


# ---- why ----------------------------------------------------------------------------------------------------


def human_why(shown: dict[str, Any]) -> str:
    row = shown["adapter"]
    head = f"{row['name']}  {short(row['id'])}  {_standing(row)}, by {_author(row)}"
    came = "\n".join(_tree(shown["came_from"], up=True)) or "nothing that is known"
    went = "\n".join(_tree(shown["went_into"], up=False)) or "nothing that is here"
    cut = "\n\n(there is more than is shown)" if shown["cut"] else ""
    return f"{head}\n\ncame from\n{came}\n\nwent into\n{went}{cut}"


def _tree(lines: Sequence[dict[str, Any]], *, up: bool) -> Iterator[str]:
    """Lines of a tree with its branches drawn."""
    last = [False] * len(lines)
    open_at: set[int] = set()
    for at in reversed(range(len(lines))):  # a line is the last of its branch when none of its depth comes after it
        depth = lines[at]["depth"]
        last[at] = depth not in open_at
        open_at = {one for one in open_at if one < depth} | {depth}
    ended: dict[int, bool] = {}
    for line, is_last in zip(lines, last, strict=True):
        depth = line["depth"]
        stems = "".join("   " if ended.get(above, True) else "│  " for above in range(1, depth))
        ended[depth] = is_last
        yield f"{stems}{'└─ ' if is_last else '├─ '}{_line(line, up=up)}"


def _line(line: dict[str, Any], *, up: bool) -> str:
    match line["kind"]:
        case "run":
            return f"run {line['id']}"
        case "dataset":
            return f"data set {line['name'] or '(deleted)'}  {short(line['id'])}"
        case "deployment":
            return f"deployment {line['id']}  {line['name']}, {line['state'].replace('_', ' ')}"
    weight = number(line["weight"], 3)
    relations = ", ".join((UP if up else DOWN).get(relation, relation) for relation in line["relations"])
    odd = "" if line["state"] == "admitted" else _standing(line)
    author = "" if line["trust"] == "self" else f"by {_author(line)}"
    known = "  ".join(filter(None, [line["name"], short(line["id"]), ", ".join(filter(None, [odd, author]))]))
    adapter = known if line["here"] else f"{line['id']}  not here"
    again = "  (opened above)" if line["again"] else ""
    return "  ".join(filter(None, [weight, adapter, f"[{relations}]"])) + again


def _standing(row: dict[str, Any]) -> str:
    return f"{row['state']} ({row['reason']})" if row["reason"] else str(row["state"])


def _author(row: dict[str, Any]) -> str:
    return "this node" if row["trust"] == "self" else f"{short(row['author'])} ({row['trust']})"


# ---- versions and differences -------------------------------------------------------------------------------


def human_versions(shown: dict[str, Any]) -> str:
    rows = [
        (
            "newest" if row["id"] == shown["newest"] else "",
            short(row["id"]),
            row["name"],
            row["state"],
            when(row["created_ms"]),
            short(row["supersedes"]),
            row["rank"],
            size(row["size"]),
            number(_figure(row, "loss")),
            percent(_figure(row, "exact_match")),
        )
        for row in shown["versions"]
    ]
    headers = ("", "id", "name", "state", "made", "supersedes", "rank", "size", "loss", "exact")
    return _filled(headers, rows, "none is here")


def human_diff(shown: dict[str, Any]) -> str:
    left, right = shown["adapter"], shown["other"]
    rows = [(one["what"], _cut(one["adapter"]), _cut(one["other"])) for one in shown["differences"]]
    head = fields([("first", _named(left)), ("second", _named(right))])
    differing = table(("", "first", "second"), rows, "their manifests tell no difference")
    return f"{head}\n\n{differing}\n\nsame to the last byte: {', '.join(shown['same_files']) or 'no file'}"


def _named(row: dict[str, Any]) -> str:
    return f"{row['name']}  {short(row['id'])}, by {_author(row)}"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 48 else f"{line[:47]}…"


COMMANDS = (
    Command(
        "search",
        "Adapters that are here, by what they are",
        human_found,
        method="adapter.search",
        run=search,
        arguments=SEARCH,
        more="Everything given must hold. `orchctl adapter list` also shows what peers offer.\n\n"
        "Loss and exact match are what authors claim of their own. GAIN is what people whom you follow measured on\n"
        "data of their own, each counted once: nats a token below the base's loss, the lower end of the 95 % interval\n"
        "of the mean. `--sort attested` goes by it.",
    ),
    Command(
        "why",
        "Where an adapter came from, with weights, and what it went into",
        human_why,
        method="adapter.why",
        arguments=(ADAPTER,),
        more="Data sets and runs are known for what was trained on this node. An average's parents are its author's\n"
        "claim; `orchctl average verify` recomputes it.",
    ),
    Command(
        "versions",
        "All versions of an adapter by its author that are here",
        human_versions,
        method="adapter.versions",
        arguments=(ADAPTER,),
        more="NAME@AUTHOR means the newest of them that is admitted; AUTHOR is a key, the beginning of one, or me.",
    ),
    Command(
        "diff",
        "What two adapters do not have in common",
        human_diff,
        method="adapter.diff",
        arguments=(ADAPTER, arg("other", "what it is compared with")),
    ),
)
