"""`orchctl base`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from orchd.cli.command import Command, Params, arg, opt
from orchd.cli.context import Context
from orchd.cli.text import fields, short, size, table
from orchd.errors import EXIT_REFUSED

BASE = arg("base", "its name or fingerprint")


def human_list(shown: dict[str, Any]) -> str:
    rows = [
        (
            b["name"],
            b["architecture"],
            b["form"],
            f"{b['parameters']:,}",
            size(b["size"]),
            b["licence"],
            short(b["fingerprint"]),
        )
        for b in shown["bases"]
    ]
    text = table(("name", "architecture", "form", "parameters", "size", "licence", "fingerprint"), rows)
    return "\n".join([text, *(f"not usable: {absent['reason']}" for absent in shown["absent"])])


def human_show(base: dict[str, Any]) -> str:
    return fields(
        [
            ("name", base["name"]),
            ("fingerprint", base["fingerprint"]),
            ("architecture", base["architecture"]),
            ("parameters", f"{base['parameters']:,}"),
            ("size", size(base["size"])),
            ("licence", base["licence"]),
            ("path", f"{base['path']} ({base['form']})"),
            ("looked at", _sample(base)),
            ("linked", "\n".join(base["linked"])),
        ]
    )


def human_added(shown: dict[str, Any]) -> str:
    return "\n".join([human_show(shown["base"]), *_let_out(shown)])


def human_linked(shown: dict[str, Any]) -> str:
    return "\n".join(["one base now:", *(f"  {fingerprint}" for fingerprint in shown["same"]), *_let_out(shown)])


def _let_out(shown: dict[str, Any]) -> list[str]:
    return [f"not in quarantine any more: {id}" for id in shown["admitted"]]


def human_checks(shown: dict[str, Any]) -> str:
    rows = [("ok" if check["ok"] else "FAILED", check["name"], check["detail"]) for check in shown["checks"]]
    text = table(("", "part", "digest"), rows)
    return f"{text}\nlooked at {_sample(shown)}" if shown["parameters"] else text


def _sample(base: dict[str, Any]) -> str:
    """What of the weights the fingerprint has seen, and that the rest is not in it."""
    seen, whole = f"{base['sampled']:,}", f"{base['parameters']:,} numbers"
    if base["form"] == "gguf":
        whole = f"{base['size']:,} bytes"
    return f"{seen} of {whole}; a change of the others is not seen"


def add(context: Context, options: argparse.Namespace, params: Params) -> int:
    """The daemon has its own working directory, so it is told the whole path."""
    params["path"] = os.path.abspath(os.path.expanduser(params["path"]))
    return context.run_job(ADD, params, detach=options.detach)


ADD = Command(
    "add",
    "Make a base model known: a Hugging Face folder or a GGUF file",
    human_added,
    method="base.add",
    job=True,
    run=add,
    arguments=(arg("path", "the folder or file"), opt("--name", "how to call it (default: the folder's name)")),
)

COMMANDS = (
    Command("list", "The base models that this node has", human_list, method="base.list"),
    Command("show", "One base", human_show, method="base.show", arguments=(BASE,)),
    ADD,
    Command(
        "remove",
        "Forget a base that was added; its files stay",
        lambda gone: f"forgot {gone['base']}; its files are still there",
        method="base.remove",
        changes=True,
        arguments=(arg("base", "its name"),),
    ),
    Command(
        "verify",
        "Read a base's files again, and say what is not as it was",
        human_checks,
        method="base.verify",
        verdict=lambda shown: 0 if shown["ok"] else EXIT_REFUSED,
        arguments=(BASE,),
    ),
    Command(
        "link",
        "Say that two fingerprints are one base, such as a folder and its GGUF file",
        human_linked,
        method="base.link",
        changes=True,
        arguments=(arg("base", "its name or fingerprint"), arg("other", "the other one's")),
    ),
)
