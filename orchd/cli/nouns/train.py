"""`orchctl train`."""

from __future__ import annotations

from typing import Any

from orchd.cli.command import Command, arg, opt
from orchd.cli.nouns.adapter import human_row
from orchd.cli.text import duration, number, percent, table, word


def human(result: dict[str, Any]) -> str:
    """The adapter, then its scores beside the base's."""
    scores = table(
        ("part", "loss", "base loss", "exact match", "base", "examples"),
        [
            (
                score["split"],
                number(score["loss"]),
                number(score["base_loss"]),
                percent(score["exact_match"]),
                percent(score["base_exact_match"]),
                score["examples"],
            )
            for score in result["scores"]
        ],
        empty="",
    )
    took = f"trained in {duration(result['seconds'])}, last training loss {number(result['train_loss'])}"
    return "\n\n".join(filter(None, [human_row(result["adapter"]), scores, took]))


COMMANDS = (
    Command(
        "start",
        "Train an adapter on a data set",
        human,
        method="train.start",
        job=True,
        then=lambda result: (
            f"`orchctl deploy {word(result['adapter']['name'])} --name NAME` makes it answer,\n"
            f"`orchctl adapter publish {word(result['adapter']['name'])} --topic TOPIC` lets others fetch it"
        ),
        more="It follows the job and draws its progress. Ctrl-C leaves the job running; --detach doesn't wait at all.",
        arguments=(
            arg("dataset", "its name, or its id or the beginning of it"),
            opt("--name", "how to call the adapter (default: like the data set)"),
            opt("--description", "what it is good for"),
            opt("--tag", "to be found by; may be given more than once", dest="tags", action="append"),
            opt("--supersedes", "an adapter of yours that the new one takes the place of", metavar="ADAPTER"),
            opt("--licence", "SPDX name that others get it under, signed with it (default: none stated)"),
            opt("--base", "which base model (demo)"),
            opt("--initial", "an adapter to go on from"),
            opt("--rank", "of the adapter (16)", type=int, metavar="N"),
            opt("--alpha", "of the adapter (twice the rank)", type=float, metavar="X"),
            opt("--learning-rate", "at its height (0.005)", type=float, metavar="X"),
            opt("--batch-size", "rows a step (16)", type=int, metavar="N"),
            opt(
                "--steps",
                "how many (default: what the schedule has left, or 25 times the root of the number of rows)",
                type=int,
                metavar="N",
            ),
            opt("--schedule-total", "steps of the whole schedule, over several runs", type=int, metavar="N"),
            opt("--schedule-offset", "steps of it that earlier runs did", type=int, metavar="N"),
            opt("--seed", "of every random choice (0)", type=int, metavar="N"),
        ),
    ),
)
