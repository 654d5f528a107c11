"""`orchctl rpc`: the daemon's methods without a command around them."""

from __future__ import annotations

import argparse
import json
from typing import Any

from orchd.cli.command import Command, Params, arg
from orchd.cli.context import Context
from orchd.cli.text import table


def human_methods(document: dict[str, Any]) -> str:
    rows = []
    for method in document["methods"]:
        names = [p["name"] + ("" if p["required"] else "?") for p in method["params"]]
        rows.append((method["name"], " ".join(names), method["summary"]))
    return table(("method", "parameters", "what it does"), rows)


def call(context: Context, options: argparse.Namespace, params: Params) -> None:
    result = context.call(params["method"], **params.get("params", {}))
    context.show(result, lambda shown: json.dumps(shown, ensure_ascii=False, indent=2))


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("parameters are given by name, in an object")
    return value


COMMANDS = (
    Command(
        "discover",
        "Every method with its parameters and its result (--json: the OpenRPC document)",
        human_methods,
        method="rpc.discover",
    ),
    Command(
        "call",
        "Call any method",
        run=call,
        arguments=(
            arg("method", "noun.verb"),
            arg("params", "a JSON object, such as '{\"limit\": 3}'", nargs="?", type=json_object),
        ),
    ),
)
