"""`orchctl adapter export` and `import`: adapters in files, with no network."""

from __future__ import annotations

import argparse
import os
from typing import Any

from orchd.cli.command import Command, Params, arg, opt, switch
from orchd.cli.context import Context
from orchd.cli.text import size

FORMATS = ("safetensors", "gguf", "mlx", "pytorch", "merged-gguf", "merged-safetensors", "onnx")


def human_exported(shown: dict[str, Any]) -> str:
    if "format" in shown:
        return _human_written(shown)
    along = f"manifests of ancestors: {len(shown['ancestors'])}, records: {len(shown['records'])}"
    return f"wrote {shown['path']} ({size(shown['size'])}; {along})"


def _human_written(shown: dict[str, Any]) -> str:
    lines = [f"wrote {shown['path']} ({shown['format']}, {size(shown['size'])})", f"  sha256 {shown['sha256']}"]
    if shown["plain_size"]:
        lines.append(f"  {size(shown['plain_size'])} before it was compressed")
    if shown["difference"] is not None:
        lines.append(f"  read again: largest difference {shown['difference']:.1e}")
    return "\n".join(lines)


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
    "Write an adapter to hand it on, or for another program, also merged into its base",
    human_exported,
    method="adapter.export",
    job=True,
    run=export,
    arguments=(
        arg("adapter", "its name, or its id or the beginning of it"),
        arg("path", "the file, or the folder that it goes to (default: here)", nargs="?", default=None),
        opt("--format", f"orchpack (the default), {', '.join(FORMATS)}"),
        opt("--quantize", "of merged-gguf: F32, F16, Q8_0, Q4_K_M, or keep (the base's own GGUF file)"),
        opt("--compress", "zstd; a folder becomes a .tar.zst"),
        switch("--replace", "replace what is there"),
    ),
    more="orchpack is to hand an adapter on: the signed manifest, the weights, the manifests of its ancestors that\n"
    "are here, known revocations, attestations and key changes, checked and let in with no network. The others are\n"
    "for other programs: safetensors (a PEFT folder), gguf (a LoRA for llama.cpp), mlx and pytorch hold the adapter\n"
    "alone; merged-gguf, merged-safetensors and onnx the base with the adapter in it.\n"
    "example: orchctl adapter export ours --format merged-gguf --quantize q8_0 ~/models",
)
IMPORT = Command(
    "import",
    "Let in an adapter from a bundle (.orchpack) or a folder (PEFT, mlx-lm)",
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
