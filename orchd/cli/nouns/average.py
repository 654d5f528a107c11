"""`orchctl average`."""

from __future__ import annotations

import argparse
from typing import Any

from orchd.cli.command import Command, arg, opt
from orchd.cli.nouns.adapter import ADAPTERS, human_row
from orchd.cli.text import fields
from orchd.errors import EXIT_REFUSED


def human(result: dict[str, Any]) -> str:
    residual = f"{result['residual_ppm'] / 10_000:.2f} % of the energy was cut off by the rank"
    cosines = "\n".join("  ".join(f"{value:+.3f}" for value in row) for row in result["cosines"])
    return f"{human_row(result['adapter'])}\n{fields([('residual', residual), ('cosines', cosines)])}"


def human_verified(result: dict[str, Any]) -> str:
    return fields(
        [
            ("adapter", f"{result['adapter']['name']} ({result['adapter']['id']})"),
            ("verdict", "it is the average that it says" if result["holds"] else "it is NOT the average that it says"),
            ("recipe", result["recipe"] + ("" if result["recipe_matches"] else " (does not match its leaves)")),
            ("error", f"{result['relative_error']:.2e}, tolerance {result['tolerance']:.2e}"),
            ("detail", result["detail"]),
        ]
    )


def weights(text: str) -> list[float]:
    """`1,2,0.5`"""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers like 1,2,0.5") from None


COMMANDS = (
    Command(
        "start",
        "Make one adapter from several",
        human,
        method="average.start",
        job=True,
        arguments=(
            ADAPTERS,
            opt("--weights", "one number for each adapter; only their ratio counts", type=weights, metavar="X,X,..."),
            opt("--rank", "of the average (16)", type=int, metavar="N"),
            opt("--strength", "multiplies the whole (1)", type=float, metavar="X"),
            opt("--name", "how to call it"),
            opt("--tag", "to be found by; may be given more than once", dest="tags", action="append"),
            opt("--supersedes", "an adapter of yours that the new one takes the place of", metavar="ADAPTER"),
        ),
    ),
    Command(
        "verify",
        "Recompute an average from its leaves and compare",
        human_verified,
        method="average.verify",
        job=True,
        verdict=lambda result: 0 if result["holds"] else EXIT_REFUSED,
        arguments=(arg("adapter", "the average"),),
    ),
)
