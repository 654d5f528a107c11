"""`orchctl adapter export` and `import`: adapters in files, with no network."""

from __future__ import annotations

import argparse
import os
from typing import Any

from orchd.cli.command import Command, Params, arg, opt, switch
from orchd.cli.context import Context
from orchd.cli.text import size


def human_exported(shown: dict[str, Any]) -> str:
    along = f"manifests of ancestors: {len(shown['ancestors'])}, records: {len(shown['records'])}"
    return f"wrote {shown['path']} ({size(shown['size'])}; {along})"


def human_imported(shown: dict[str, Any]) -> str:
    lines = []
    for row in shown["adapters"]:
        here = "" if row["id"] in shown["new"] else ", was here already"
        reason = f": {row['reason']}" if row["reason"] else ""
        lines.append(f"{row['state']} {row['name']} ({row['id']}{here}){reason}")
        if row["state"] == "quarantined":
            lines.append(f"  `orchctl adapter verify {row['id']}` shows each check; {_way_out(row)}")
    lines += [f"refused {away['id']}: {away['message']} [E{away['code']}]" for away in shown["refused"]]
    if shown["records"]:
        lines.append(f"{len(shown['records'])} records were new: {', '.join(shown['records'])}")
    return "\n".join(lines)


def _way_out(row: dict[str, Any]) -> str:
    if "base is not here" in row["reason"]:
        return f"it is let out once its base is here: `orchctl base add`, or `base link {row['base']} NAME`"
    return f"`orchctl adapter release {row['id']}` lets it out by hand where that may be done"


def _whole(params: Params) -> None:
    """The daemon has its own working directory, so it is told the whole path."""
    params["path"] = os.path.abspath(os.path.expanduser(params.get("path", ".")))


def export(context: Context, options: argparse.Namespace, params: Params) -> int:
    _whole(params)
    return context.run_job(EXPORT, params, detach=options.detach)


def take_in(context: Context, options: argparse.Namespace, params: Params) -> int:
    _whole(params)
    return context.run_job(IMPORT, params, detach=options.detach)


EXPORT = Command(
    "export",
    "Write an adapter, its lineage and what is known of it to one file",
    human_exported,
    method="adapter.export",
    job=True,
    run=export,
    arguments=(
        arg("adapter", "its name, or its id or the beginning of it"),
        arg("path", "the file, or the folder that it goes to (default: here)", nargs="?", default=None),
        opt("--format", "how it is written (orchpack, which is the only one yet)"),
        switch("--force", "replace a file that is there"),
    ),
    more="The file (.orchpack) holds the signed manifest, the weights, the manifests of its ancestors that are here,\n"
    "and known revocations, attestations and key changes. It is checked and let in with no network.",
)
IMPORT = Command(
    "import",
    "Let in an adapter from a bundle (.orchpack) or a PEFT folder",
    human_imported,
    method="adapter.import",
    job=True,
    run=take_in,
    arguments=(
        arg("path", "the file or folder"),
        opt("--name", "of a folder: how to call it (default: the folder's name)"),
        opt("--base", "of a folder: which base it is for (default: the only one here)"),
        opt("--description", "of a folder: what it is good for"),
        opt("--licence", "of a folder: under which licence (SPDX)"),
        switch("--readme", "of a folder: take its README.md along (look for paths and names in it first)"),
    ),
    more="A bundle's adapters stay their authors'; a folder's adapter is signed by this node. Both pass the checks\n"
    "that every adapter passes.",
)
COMMANDS = (EXPORT, IMPORT)
