"""`orchctl base`."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any

from orchd.cli.command import Argument, Command, Params, arg, opt
from orchd.cli.context import Context
from orchd.cli.text import fields, printable, short, size, table
from orchd.errors import EXIT_INTERRUPTED, EXIT_REFUSED

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
            ("announced", "never: it was made here, by a training of whole weights" if base["private"] else ""),
        ]
    )


def human_added(shown: dict[str, Any]) -> str:
    unpacked = [f"to train on: {shown['unpacked']}, made of it and linked to it"] if shown["unpacked"] else []
    return "\n".join([human_show(shown["base"]), *unpacked, *map("note: {}".format, shown["notes"]), *_let_out(shown)])


def human_offer(shown: dict[str, Any]) -> str:
    offer = shown["offer"]
    memory = f"{size(offer['memory'])} of weights in float32, half of that in bfloat16" if offer["memory"] else ""
    about = [
        ("source", offer["source"]),
        ("size", f"{size(offer['size'])} in {offer['files']} files" if offer["download"] else size(offer["size"])),
        ("to fetch", size(offer["download"]) if offer["download"] else "nothing"),
        ("licence", offer["licence"]),
        ("parameters", f"{offer['parameters']:,}" if offer["parameters"] else "not told"),
        ("memory", memory or "not told"),
        ("note", "\n".join(offer["notes"])),
    ]
    return fields(about)


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
    """Say what it would be, then have it added. A download is asked for at a terminal."""
    params["path"] = _source(params["path"])
    if "token_file" in params:
        params["token_file"] = os.path.abspath(os.path.expanduser(params["token_file"]))
    looked = {name: params[name] for name in ("path", "token_file") if name in params}
    offered = context.call("base.look", **looked)
    if options.dry_run:
        context.show(offered, human_offer)
        return 0
    context.note(printable(human_offer(offered)) + "\n")
    offer = offered["offer"]
    if offer["download"] and not options.yes and not context.agreed(f"{size(offer['download'])} will be fetched."):
        return EXIT_INTERRUPTED
    return context.run_job(ADD, params, detach=options.detach)


def look(context: Context, options: argparse.Namespace, params: Params) -> int:
    options.dry_run = True
    return add(context, options, params)


def _source(text: str) -> str:
    """The daemon has its own working directory, so it is told the whole path; ORG/NAME is the hub's, where nothing of
    that name is here."""
    if text.startswith(ELSEWHERE):
        return text
    path = os.path.abspath(os.path.expanduser(text))
    return f"hf:{text}" if ON_THE_HUB.fullmatch(text) and not os.path.exists(path) else path


ELSEWHERE = ("hf:", "ollama:")
ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/[\w./+-]+\.gguf)?(@[\w./-]+)?")

ADD = Command(
    "add",
    "Make a base model known, and fetch it where it isn't here",
    human_added,
    method="base.add",
    job=True,
    run=add,
    more=(
        "SOURCE is a Hugging Face folder or a GGUF file, ORG/NAME on the Hugging Face hub (ORG/NAME/FILE.gguf for one"
        " file, @REVISION behind either), or ollama:NAME for a model that Ollama has here. Only safetensors and GGUF"
        " are taken, never a pickle and never code. A download that was stopped goes on where it stopped. A GGUF file"
        " is also unpacked into a folder, which can be trained on."
    ),
    arguments=(
        arg("path", "folder, file, ORG/NAME or ollama:NAME", metavar="SOURCE"),
        opt("--name", "how to call it (default: the source's own name)"),
        opt("--token-file", "a file with your token of the hub (default: HF_TOKEN, or where `hf auth login` puts it)"),
        Argument(
            ("--no-unpack",),
            {
                "action": "store_const",
                "const": False,
                "default": None,
                "dest": "unpack",
                "help": "keep a GGUF file as it is",
            },
        ),
        Argument(("--yes",), {"action": "store_true", "help": "do not ask before a download"}),
        Argument(("--dry-run",), {"action": "store_true", "help": "say what it would be, and do nothing"}),
    ),
)

COMMANDS = (
    Command("list", "The base models that this node has", human_list, method="base.list"),
    Command(
        "look",
        "What a base would be: its size, licence and memory; nothing is fetched",
        human_offer,
        method="base.look",
        run=look,
        arguments=(
            arg("path", "as for `base add`", metavar="SOURCE"),
            opt("--token-file", "a file with your token of the hub"),
        ),
    ),
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
