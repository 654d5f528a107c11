"""`orchctl train plan` and `orchctl train validate`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from orchd.cli.command import Argument, Command, arg, opt
from orchd.cli.text import table
from orchd.errors import EXIT_FAILED

EXAMPLE = '{"dataset": "mine", "rank": 16}'


def human_plan(plan: dict[str, Any]) -> str:
    """What would be done, and why; then what speaks against it."""
    lines = table(("setting", "value", "why"), [(one["name"], one["shown"], one["why"]) for one in plan["lines"]])
    kind = "a first training" if plan["kind"] == "first" else "it goes on from an adapter"
    data, alone = plan["data"], plan["alone"]
    about = f"{kind}, on {data['examples']:,} examples of {data['longest']:,} tokens at most; the base alone has a loss"
    about += f" of {alone['loss']:.3g} on them"
    about += "; learnt is what the user wrote" if data["learns"] == "user" else ""
    end = f"`{plan['command']}` trains so" if plan["worth"] else human_worth({"doubts": plan["reasons"]})
    warned = [_finding("warning", one) for one in plan["warnings"] if not one["message"].startswith("not worth it")]
    return "\n\n".join(filter(None, [about, lines, "\n".join(warned), end]))


def human_worth(shown: dict[str, Any]) -> str:
    if not shown["doubts"]:
        return "nothing in its rows speaks against it"
    return "\n".join(["this training is not worth it:", *(f"- {reason}" for reason in shown["doubts"])])


def human_validation(found: dict[str, Any]) -> str:
    said = [
        _finding(kind, one)
        for kind, name in (("error", "errors"), ("warning", "warnings"), ("recommended", "recommendations"))
        for one in found[name]
    ]
    return "\n".join(
        [*said, "valid: a training would take it" if found["valid"] else "not valid: a training would refuse it"]
    )


def _finding(kind: str, one: dict[str, Any]) -> str:
    value = f" {one['value']}" if one["value"] is not None else ""
    hint = f" {one['hint']}" if one["hint"] else ""
    return f"{kind}: {one['field']}{value}: {one['message']}.{hint}"


def _config(text: str) -> dict[str, Any]:
    """A JSON object in a file, or on standard input."""
    try:
        found = json.loads(sys.stdin.read() if text == "-" else Path(text).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise argparse.ArgumentTypeError(f"{text} is not there; check the path") from None
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} can't be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, character {error.colno}"
        raise argparse.ArgumentTypeError(f"{text} is not JSON ({where}); it has to be like {EXAMPLE}") from None
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"{text} is no text; it has to be like {EXAMPLE}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text} holds no JSON object, {{...}}")
    return found


def commands(starting: tuple[Argument, ...]) -> tuple[Command, ...]:
    """``starting`` are the arguments of `orchctl train start`."""
    return (
        Command(
            "plan",
            "What a training would choose and take, and whether it is worth it",
            human_plan,
            method="train.plan",
            job=True,
            more="It takes a few real steps on this machine and keeps nothing. What is given is kept, the rest chosen.",
            arguments=starting,
        ),
        Command(
            "worth",
            "What speaks against a training on a data set, as far as its rows tell at once",
            human_worth,
            method="train.worth",
            more="`orchctl train plan` also looks whether the base knows it already. `train start` says this first.",
            arguments=(arg("dataset", "its name, or its id or the beginning of it"),),
        ),
        Command(
            "validate",
            "What is wrong or unwise in a configuration of a training",
            human_validation,
            method="train.validate",
            job=True,
            more="The file is a JSON object with the parameters of `train.start`, such as\n"
            '{"dataset": "mine", "learning_rate": 1e-4, "early_stopping": {"enabled": true}}.\n'
            "The exit code is 1 when it can't be trained with.",
            arguments=(
                arg("config", "a JSON file, - for standard input", type=_config),
                opt("--dataset", "what to train on, where the file does not say"),
                opt("--base", "which base model, where the file does not say (demo)"),
            ),
            verdict=lambda found: 0 if found["valid"] else EXIT_FAILED,
        ),
    )
