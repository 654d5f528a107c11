"""`orchctl dataset`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from orchd.cli.command import Argument, Command, Params, arg, opt, switch
from orchd.cli.context import Context
from orchd.cli.nouns import dataset_look
from orchd.cli.nouns.dataset_look import DATASET, counted_kinds, human_findings, human_issues
from orchd.cli.text import counted, fields, lines, short, table, when, word
from orchd.errors import EXIT_REFUSED, OrchdError, UsageInvalid

SECRETS_FOUND = 3107
WAYS = {"r": "redact", "d": "drop", "k": "keep"}


def human_list(shown: dict[str, Any]) -> str:
    more = f"\nmore: --cursor {shown['cursor']}" if shown["cursor"] else ""
    rows = [
        (short(d["id"]), d["name"], d["kind"], d["train"], d["validation"], d["test"], when(d["created_ms"]))
        for d in shown["datasets"]
    ]
    return table(("id", "name", "kind", "train", "validation", "test", "made"), rows) + more


def human_row(row: dict[str, Any]) -> str:
    left_out = {
        "skipped": row["skipped"],
        "equal to another": row["duplicates"],
        "nearly equal to another": row["near_duplicates"],
        "not asked for": row["not_picked"],
        "dropped for what is in them": row["dropped"],
    }
    found = counted_kinds(row["findings"])
    return fields(
        [
            ("name", row["name"]),
            ("id", row["id"]),
            ("kind", f"{row['kind']}, from {row['format']}" if row["format"] else row["kind"]),
            ("rows", f"{row['train']} train, {row['validation']} validation, {row['test']} test"),
            ("learnt", _learnt(row)),
            ("left out", ", ".join(f"{count} {why}" for why, count in left_out.items() if count)),
            ("redacted", _redacted(row)),
            ("holds", found and f"{found}; `orchctl dataset findings {word(row['name'])}` says where"),
            ("from", row["made_from"]),
            ("synthetic", "made up, and of nobody" if row["synthetic"] else ""),
            ("warnings", "\n".join(row["warnings"])),
            ("made", when(row["created_ms"])),
        ]
    )


def _redacted(row: dict[str, Any]) -> str:
    kinds = counted_kinds(row.get("redacted_kinds", {}))
    return ": ".join(filter(None, [counted(row["redacted"], "row"), kinds])) if row["redacted"] else ""


def _learnt(row: dict[str, Any]) -> str:
    """Whose words count in the loss."""
    if row["learns"] == "user":
        return "what the user wrote; the roles are exchanged, so that the model writes like the user"
    if row["format"] in ("chatgpt", "claude"):
        return "the assistant's answers; with `--learn user` what you wrote yourself"
    whole = {"text": "all of it", "code": "all of it", "completion": "the completions", "preference": "what was chosen"}
    return whole.get(row["kind"], "the assistant's answers")


def human_validated(found: dict[str, Any]) -> str:
    told = fields(
        [
            ("verdict", "it can be imported as it is" if found["valid"] else "look at what follows first"),
            ("format", found["format"]),
            ("kind", found["kind"]),
            ("examples", f"{found['examples']} of {found['records']} records"),
            ("not asked for", found["not_picked"] or None),
            ("errors", f"{found['errors']} records would be left out" if found["errors"] else ""),
            ("warnings", found["warnings"] or None),
            ("found", counted_kinds(found["found"])),
        ]
    )
    shown = (told, human_issues(found), human_findings(found), _human_choice(found["conversations"]))
    return lines(filter(None, shown))


def _human_choice(conversations: list[dict[str, Any]]) -> str:
    if not conversations:
        return ""
    rows = [(c["id"], c["title"], c["messages"], c["model"], when(c["updated_ms"])) for c in conversations]
    return "\n" + table(("id", "title", "messages", "model", "last change"), rows)


def human_exported(made: dict[str, Any]) -> str:
    return f"{made['path']}: {made['rows']} rows, {made['kind']}; imported again it is {made['dataset']}"


def human_deleted(gone: dict[str, Any]) -> str:
    stay = f"; what was trained on it stays: {', '.join(map(short, gone['adapters']))}" if gone["adapters"] else ""
    return f"deleted{stay}\n`orchctl undo {gone['dataset']}` brings it back for 30 days"


# ---- what is asked --------------------------------------------------------------------------------------------


def _whole(params: Params, field: str) -> None:
    """The daemon has its own working directory, so it is told the whole path."""
    params[field] = os.path.abspath(os.path.expanduser(params.get(field, ".")))


def _source(params: Params) -> None:
    _whole(params, "source")
    if columns := params.pop("columns", None):
        pairs = [pair.partition("=") for pair in columns.split(",")]
        if not all(name and column for name, _, column in pairs):
            raise UsageInvalid(f"--columns {columns!r} is no list of NAME=COLUMN", hint="Such as question=Q,answer=A.")
        params["columns"] = {name.strip(): column.strip() for name, _, column in pairs}


def import_file(context: Context, options: argparse.Namespace, params: Params) -> int:
    _source(params)
    return _asking(context, IMPORT, params, detach=options.detach)


def _asking(context: Context, command: Command, params: Params, *, detach: bool) -> int:
    """Where keys were found, a person at a terminal is asked what to do with them."""
    try:
        return context.run_job(command, params, detach=detach)
    except OrchdError as error:
        if error.code != SECRETS_FOUND or context.json or not sys.stdin.isatty():
            raise
        print(f"{error.message}\n[r]edact them, [d]rop their rows, [k]eep them, or stop? ", end="", file=context.err)
        context.err.flush()
        way = WAYS.get(sys.stdin.readline().strip().lower()[:1])
        if way is None:
            raise
        return context.run_job(command, {**params, "secrets": way}, detach=False)


def validate(context: Context, options: argparse.Namespace, params: Params) -> int:
    _source(params)
    return context.run_job(VALIDATE, params, detach=options.detach)


def create(context: Context, options: argparse.Namespace, params: Params) -> int:
    params["rows"] = _rows(params.pop("file", "-"))
    return _asking(context, CREATE, params, detach=options.detach)


def _rows(file: str) -> list[Any]:
    """The JSON value of each line of a file, or of standard input."""
    import json

    hint = 'Give a JSON object a line, such as {"question": "…", "answer": "…"}.'
    try:
        text = sys.stdin.read() if file == "-" else open(file, encoding="utf-8").read()  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise UsageInvalid(f"{file}: {error}", hint=hint) from None
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise UsageInvalid(f"{file}: line {number}: {error}", hint=hint) from None
    return rows


def export(context: Context, options: argparse.Namespace, params: Params) -> int:
    _whole(params, "path")
    return context.run_job(EXPORT, params, detach=options.detach)


LEARN: Argument = opt(
    "--learn",
    "whose turns of conversations count in the loss: the assistant's (default), or the user's, to write like them",
    choices=("assistant", "user"),
)
SOURCE = (
    arg("source", "the file, zip or folder"),
    opt("--format", "chatgpt, claude, openai, sharegpt, alpaca, jsonl, csv or text (default: found out)"),
    opt("--kind", "text, code, qa, completion, chat or preference (default: found out)"),
    opt("--columns", "what stands where, such as question=Frage,answer=Antwort", metavar="NAME=COLUMN,..."),
    opt(
        "--id",
        "only the conversation whose id begins so; may be given again",
        dest="ids",
        action="append",
        metavar="ID",
    ),
    opt("--title", "only conversations with this in their title"),
    opt("--since", "only those changed since then: 2025, 2025-03 or 2025-03-14", metavar="DATE"),
    opt("--until", "only those changed until then, that day included", metavar="DATE"),
    opt("--model", "only those answered by a model with this in its name"),
    opt("--search", "only those in which this is said", metavar="WORDS"),
    LEARN,
)
SEED: Argument = opt("--seed", "of the split into parts", type=int, metavar="N")
SPLIT: Argument = opt(
    "--split", "auto, train, or test: every row is for scoring only", choices=("auto", "train", "test")
)


def _way(name: str, help: str, dest: str, value: str) -> Argument:
    """One of several switches that stand for the values of one parameter."""
    return switch(name, help, dest=dest, const=value)


CARE = (
    _way("--redact", "put a word such as [KEY] or [MAIL] in the place of what is found", "secrets", "redact"),
    _way("--drop", "leave out rows in which something is found", "secrets", "drop"),
    _way("--keep", "learn them as they are", "secrets", "keep"),
    switch("--keys-only", "look for keys and passwords alone, not for personal data"),
    _way("--keep-near-duplicates", "keep rows that say nearly the same as another", "near_duplicates", "keep"),
)
SYNTHETIC = switch("--synthetic", "the rows are made up, and of nobody: no leak report holds back what learns them")
ABOUT_CARE = (
    "Keys, passwords, cards, tax numbers, bank accounts, phones, mails and addresses are looked for (names of people\n"
    "are not). Where a key or password is found, nothing is imported until you say --redact, --drop or --keep.\n"
)


def _then(row: dict[str, Any]) -> str:
    return f"`orchctl train start {word(row['name'])}` trains an adapter on it"


IMPORT = Command(
    "import",
    "Read a file or folder (a chat export, JSONL, CSV, text, code) into a data set",
    human_row,
    method="dataset.import",
    job=True,
    run=import_file,
    then=_then,
    arguments=(
        *SOURCE,
        opt("--name", "how to call it (default: the file's name, with a number where that is taken)"),
        SPLIT,
        SEED,
        *CARE,
        SYNTHETIC,
    ),
    more=ABOUT_CARE + "What belongs together (one conversation, one document, rows that say nearly the same) is never\n"
    "divided between training and scoring.",
)
VALIDATE = Command(
    "validate",
    "Say what an import would find: errors by line with a fix, keys, personal data",
    human_validated,
    method="dataset.validate",
    job=True,
    run=validate,
    verdict=lambda found: 0 if found["valid"] else EXIT_REFUSED,
    arguments=(
        *SOURCE,
        switch("--keys-only", "look for keys and passwords alone, not for personal data"),
        opt("--list", "name up to N conversations to choose from", type=int, metavar="N"),
    ),
    more="Nothing is kept. It exits with 4 when a record would be left out, or a key was found.",
)
CREATE = Command(
    "create",
    "Make a data set of rows that come with the call",
    human_row,
    method="dataset.create",
    job=True,
    run=create,
    then=_then,
    arguments=(
        arg("name", "how to call it"),
        arg("file", "a JSON object a line (default: standard input)", nargs="?", default=None),
        opt("--kind", "text, code, qa, completion, chat or preference (default: found out)"),
        SPLIT,
        SEED,
        *CARE,
        SYNTHETIC,
    ),
    more=ABOUT_CARE + "A call takes 8 MiB; for more, `orchctl dataset import` reads a file.",
)
PREPARE = Command(
    "prepare",
    "Make a data set of another one: a part of it, shuffled, cleaned",
    human_row,
    method="dataset.prepare",
    job=True,
    then=_then,
    arguments=(
        DATASET,
        arg("name", "how to call the new one"),
        opt("--cap", "at most so many rows of each part, drawn and shuffled by the seed", type=int, metavar="N"),
        switch("--shuffle", "put the rows of each part into an order that the seed decides"),
        opt("--min-characters", "leave out shorter rows", type=int, metavar="N"),
        opt("--max-characters", "leave out longer rows", type=int, metavar="N"),
        opt(
            "--language",
            "only rows in this language, such as en or pt; may be given again",
            dest="languages",
            action="append",
        ),
        opt("--search", "only rows in which this is said", metavar="WORDS"),
        LEARN,
        switch("--reseed", "divide all rows anew (without it, each stays in its part)"),
        SEED,
        *CARE,
    ),
)
EXPORT = Command(
    "export",
    "Write a data set to one JSONL file; imported again, it is the same data set",
    human_exported,
    method="dataset.export",
    job=True,
    run=export,
    arguments=(
        DATASET,
        arg("path", "the file, or the folder that it goes to (default: here)", nargs="?", default=None),
        switch("--replace", "replace a file that is there"),
    ),
)

COMMANDS = (
    IMPORT,
    VALIDATE,
    CREATE,
    Command(
        "list",
        "The data sets that this node has, newest first",
        human_list,
        method="dataset.list",
        arguments=(
            opt("--limit", "how many (50)", type=int, metavar="N"),
            opt("--cursor", "go on where the page before ended"),
        ),
    ),
    Command("show", "One data set", human_row, method="dataset.show", arguments=(DATASET,)),
    *dataset_look.COMMANDS,
    PREPARE,
    EXPORT,
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
