"""`orchctl dataset stats|preview|rows|findings`: what is in a data set."""

from __future__ import annotations

import argparse
import os
from typing import Any

from orchd.cli.command import Command, Params, arg, opt
from orchd.cli.context import Context
from orchd.cli.histogram import in_characters, page
from orchd.cli.text import fields, table
from orchd.errors import UsageInvalid

DATASET = arg("dataset", "its name, or its id or the beginning of it")
SHOWN_ISSUES = 30


def counted_kinds(found: dict[str, int]) -> str:
    """``2 mail, 1 phone``; the most first."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(found.items(), key=lambda one: -one[1]))


def human_stats(stats: dict[str, Any]) -> str:
    told, picture = _facts(stats), in_characters(stats["histogram"])
    return f"{told}\n\nrows by length in tokens\n{picture}" if picture else told


def _facts(stats: dict[str, Any]) -> str:
    parts = stats["percentiles"]
    return fields(
        [
            ("rows", f"{stats['train']} train, {stats['validation']} validation, {stats['test']} test"),
            ("tokens", f"{stats['tokens']}, of which {stats['counted']} are learnt; {stats['characters']} characters"),
            ("a row", ", ".join(f"{name} {tokens}" for name, tokens in parts.items())),
            ("languages", counted_kinds(stats["languages"])),
            ("repeated", f"{stats['repeated_answers']} answers are said by another row too"),
            ("left out", f"{stats['duplicates']} equal rows, {stats['near_duplicates']} nearly equal ones"),
            ("the base", f"takes in {stats['context']} tokens" if stats["context"] else ""),
            ("longer than", ", ".join(f"{c['length']} tokens: {c['rows']} rows" for c in stats["cut"] if c["rows"])),
        ]
    )


def human_preview(shown: dict[str, Any]) -> str:
    blocks = [_previewed(row) for row in shown["rows"]]
    learnt = "«…» is learnt, the rest is only read"
    if shown["learns"] == "user":
        learnt += "; the roles are exchanged: what the user wrote stands as the assistant's answers"
    return "\n\n".join([*blocks, learnt]) if blocks else "no rows"


def _previewed(row: dict[str, Any]) -> str:
    title = f" {row['title']}" if row["title"] else ""
    late = {0: ", LEFT OUT: longer than the base takes in", 1: ""}.get(
        row["stretches"], f", in {row['stretches']} stretches"
    )
    text = "".join(f"«{piece['text']}»" if piece["counts"] else piece["text"] for piece in row["pieces"])
    return f"[{row['split']}]{title} ({row['tokens']} tokens, {row['counted']} learnt{late})\n{text.rstrip()}"


def human_rows(shown: dict[str, Any]) -> str:
    blocks = []
    for row in shown["rows"]:
        kept = row["fields"]
        said = [f"  {message['role']}: {message['content']}" for message in kept.get("messages", ())]
        said += [f"  {name}: {text}" for name, text in kept.items() if isinstance(text, str)]
        blocks.append("\n".join([f"[{row['split']}]", *said]))
    return "\n".join(blocks) or "no rows"


def human_findings(found: dict[str, Any]) -> str:
    """What was found, and where: of `dataset.findings` and of `dataset.validate`."""
    rows = [
        (one["kind"], one["shown"], f"{one['file']}:{one['line']}" if one["line"] else one["file"], one["who"],
         one["title"], one["row"][:13])
        for one in found["findings"]
    ]  # fmt: skip
    if not rows:
        return "nothing was found, or nothing was kept" if "counts" in found else ""
    return "\n" + table(("found", "begins", "where", "said by", "in", "id"), rows)


def human_issues(found: dict[str, Any]) -> str:
    issues = found["issues"][:SHOWN_ISSUES]
    told = []
    for one in issues:
        place = f"{one['file']}:{one['line']}" if one["line"] else one["file"]
        told.append(f"{one['level']}: {place}: {one['text']}" + (f"\n  {one['fix']}" if one["fix"] else ""))
    more = found["errors"] + found["warnings"] - len(issues)
    if more > 0:
        told.append(f"… and {more} more; --json has up to 1,000")
    return "\n" + "\n".join(told) if told else ""


def stats(context: Context, options: argparse.Namespace, params: Params) -> int:
    file = params.pop("page", None)
    if file is None or options.detach:
        return context.run_job(STATS, params, detach=options.detach)
    result = context.follow(context.call(STATS.method, **params)["job"])
    path = os.path.abspath(os.path.expanduser(file))
    try:
        with open(path, "w", encoding="utf-8") as out:
            out.write(page(result["histogram"], title=f"Data set {params['dataset']}", told=_facts(result)))
    except OSError as error:
        raise UsageInvalid(f"{path}: {error.strerror}", hint="Give `--page` a file that can be written.") from None
    context.show(result, lambda _: f"{human_stats(result)}\n\npage: {path}")
    return 0


STATS = Command(
    "stats",
    "Lengths in a base's tokens with a histogram, languages, repetitions, what would be cut",
    human_stats,
    method="dataset.stats",
    job=True,
    run=stats,
    arguments=(
        DATASET,
        opt("--base", "whose tokens to count (default: demo)"),
        opt("--page", "write the histogram as a page (HTML with SVG) to this file", metavar="FILE"),
    ),
)

COMMANDS = (
    STATS,
    Command(
        "preview",
        "The first rows exactly as a base sees them, and which tokens are learnt",
        human_preview,
        method="dataset.preview",
        job=True,
        arguments=(
            DATASET,
            opt("--base", "as which base sees them (default: demo)"),
            opt("--limit", "rows of each part", type=int, metavar="N"),
        ),
    ),
    Command(
        "rows",
        "The first rows of each part, as they are kept",
        human_rows,
        method="dataset.rows",
        arguments=(DATASET, opt("--limit", "rows of each part", type=int, metavar="N")),
    ),
    Command(
        "findings",
        "Where in a data set there are keys and personal data that were kept",
        human_findings,
        method="dataset.findings",
        arguments=(DATASET, opt("--limit", "how many", type=int, metavar="N")),
    ),
)
