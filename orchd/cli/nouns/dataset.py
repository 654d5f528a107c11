"""`orchctl dataset`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from orchd.cli.command import Command, Params, arg, opt
from orchd.cli.context import Context
from orchd.cli.text import fields, short, table, when, word

DATASET = arg("dataset", "its name, or its id or the beginning of it")


def human_list(shown: dict[str, Any]) -> str:
    return table(
        ("id", "name", "kind", "train", "validation", "test", "made"),
        [
            (short(d["id"]), d["name"], d["kind"], d["train"], d["validation"], d["test"], when(d["created_ms"]))
            for d in shown["datasets"]
        ],
    )


def human_row(row: dict[str, Any]) -> str:
    return fields(
        [
            ("name", row["name"]),
            ("id", row["id"]),
            ("kind", row["kind"]),
            ("rows", f"{row['train']} train, {row['validation']} validation, {row['test']} test"),
            ("skipped", row["skipped"] or None),
            ("warnings", "\n".join(row["warnings"])),
            ("made", when(row["created_ms"])),
        ]
    )


def human_preview(shown: dict[str, Any]) -> str:
    blocks = []
    for row in shown["rows"]:
        said = [f"  {message['role']}: {message['content']}" for message in row["messages"]]
        blocks.append("\n".join([f"[{row['split']}]", *said]))
    return "\n".join(blocks) or "no rows"


def human_deleted(gone: dict[str, Any]) -> str:
    stay = f"; what was trained on it stays: {', '.join(map(short, gone['adapters']))}" if gone["adapters"] else ""
    return f"deleted{stay}\n`orchctl undo {gone['dataset']}` brings it back for 30 days"


def import_file(context: Context, options: argparse.Namespace, params: Params) -> int:
    """The daemon has its own working directory, so it is told the whole path."""
    params["source"] = os.path.abspath(os.path.expanduser(params["source"]))
    return context.run_job(IMPORT, params, detach=options.detach)


IMPORT = Command(
    "import",
    "Read a file (a chat export, JSONL) into a data set",
    human_row,
    method="dataset.import",
    job=True,
    run=import_file,
    then=lambda row: f"`orchctl train start {word(row['name'])}` trains an adapter on it",
    arguments=(
        arg("source", "the file"),
        opt("--name", "how to call it (default: the file's name, with a number where that is taken)"),
        opt("--kind", "chatgpt, claude, openai, sharegpt or alpaca (default: found out)"),
        opt("--split", "auto, train, or test: every row is for scoring only", choices=("auto", "train", "test")),
        opt("--seed", "of the split into parts", type=int, metavar="N"),
    ),
)

COMMANDS = (
    IMPORT,
    Command("list", "The data sets that this node has", human_list, method="dataset.list"),
    Command("show", "One data set", human_row, method="dataset.show", arguments=(DATASET,)),
    Command(
        "preview",
        "The first rows of each part",
        human_preview,
        method="dataset.preview",
        arguments=(DATASET, opt("--limit", "rows of each part", type=int, metavar="N")),
    ),
    Command(
        "delete",
        "Move a data set to the trash, where `orchctl undo` finds it for 30 days",
        human_deleted,
        method="dataset.delete",
        changes=True,
        subject=("dataset.show", "dataset"),
        arguments=(DATASET,),
        more="Adapters that were trained on it stay. `orchctl registry gc --empty-trash` deletes it for good.",
    ),
)
