"""`orchctl serve`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from orchd.cli.command import Command, Params, opt
from orchd.cli.context import Context
from orchd.cli.text import fields, word


def human(shown: dict[str, Any]) -> str:
    if not shown["open"]:
        return "closed; `orchctl serve endpoint` opens it"
    models = ", ".join(shown["models"]) or "none yet: `orchctl deploy ADAPTER --name NAME` makes one"
    token = f'-H "Authorization: Bearer $(cat {word(shown["token_file"])})"'
    return fields(
        [
            ("address", shown["address"]),
            ("token in", shown["token_file"]),
            ("models", models),
            ("try", f"curl {token} {shown['address']}/models"),
        ]
    )


def endpoint(context: Context, options: argparse.Namespace, params: Params) -> None:
    if "token_file" in params:
        params["token_file"] = os.path.abspath(params["token_file"])
    context.show(context.call("serve.endpoint", **params), human)


COMMANDS = (
    Command(
        "endpoint",
        "Open an OpenAI-compatible endpoint on this machine, for programs that speak it",
        human,
        method="serve.endpoint",
        run=endpoint,
        more="For example: orchctl serve endpoint --port 8434. It listens on 127.0.0.1 until `orchctl serve stop` or\n"
        "the daemon's end; every request has to carry the token. /v1/models and /v1/chat/completions answer.",
        arguments=(
            opt("--port", "0 (the default) takes any free one", type=int, metavar="N"),
            opt("--token-file", "where its token stands; made if it isn't there (a file in the data folder)"),
        ),
    ),
    Command("status", "Whether the endpoint is open, and what can be asked there", human, method="serve.status"),
    Command(
        "stop",
        "Close the endpoint; answers under way are broken off",
        lambda told: "closed" if told["was_open"] else "it was not open",
        method="serve.stop",
        changes=True,
    ),
)
