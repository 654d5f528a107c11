"""`orchctl average`."""

from __future__ import annotations

import argparse
from typing import Any

from orchd.cli.command import Command, arg, opt
from orchd.cli.nouns.adapter import human_row
from orchd.cli.nouns.adapter_scores import ADAPTERS
from orchd.cli.text import fields, percent, short, table, word
from orchd.errors import EXIT_REFUSED


def human(result: dict[str, Any]) -> str:
    share = result["residual_ppm"] / 1_000_000
    row = result["adapter"]
    cut = f"rank {row['rank']} has room for the whole average"
    if share:
        cut = f"rank {row['rank']} has no room for {percent(share)} of the exact average's length, which was cut off"
    adapter = human_row({**row, "leaves": result["leaves"]})
    likeness = _likeness(result["leaves"], result["cosines"])
    return "\n\n".join(filter(None, [adapter, cut, _taken(result), likeness]))


def _taken(result: dict[str, Any]) -> str:
    """By what method, and what it took of each leaf; nothing for what an older orchd has averaged."""
    if "method" not in result:
        return ""
    told = f"averaged by {result['method']}, strength {result['strength_ppm'] / 1_000_000:g}"
    leaves, votes = result["leaves"], result["votes"]
    if not votes or not len(leaves) == len(result["weights_ppm"]) == len(result["coefficients_ppm"] or leaves):
        return told
    vote_of = {place: number for number, vote in enumerate(votes, 1) for place in vote}
    took = [percent(ppm / 1_000_000) for ppm in result["coefficients_ppm"]] or [""] * len(leaves)
    rows = [
        (leaf["name"], short(leaf["id"]), vote_of.get(place, ""), percent(ppm / 1_000_000), taken)
        for place, (leaf, ppm, taken) in enumerate(zip(leaves, result["weights_ppm"], took, strict=True))
    ]
    return f"{told}; near-copies and one author's adapters are one vote\n" + table(
        ("leaf", "id", "vote", "weight", "taken"), rows
    )


def _likeness(leaves: list[dict[str, Any]], cosines: list[list[float]]) -> str:
    """How alike each two of the leaves are."""
    if not leaves or len(leaves) != len(cosines):
        return ""
    names = [f"{leaf['name']} {short(leaf['id'])}" for leaf in leaves]
    numbers = [str(number) for number in range(1, len(leaves) + 1)]
    rows = [
        (number, name, *(f"{value:.3f}" for value in row))
        for number, name, row in zip(numbers, names, cosines, strict=True)
    ]
    text = table(("", "leaf", *numbers), rows)
    return f"how alike the changes of two leaves are (cosine: 1 the same, 0 unrelated, -1 opposite)\n{text}"


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


WANTED = (
    ADAPTERS,
    opt("--weights", "one number for each adapter; only their ratio counts", type=weights, metavar="X,X,..."),
    opt(
        "--method",
        "auto (mean where you trust every author, else clip), mean, clip, tsv, geometric-median, median, trimmed-mean,"
        " multi-krum or krum",
    ),
    opt("--rank", "of each module (16); or energy:.95, budget:16, stacked", metavar="RULE"),
    opt("--strength", "multiplies the whole (1; of tsv .4)", type=float, metavar="X"),
)
COMMANDS = (
    Command(
        "start",
        "Make one adapter from several",
        human,
        method="average.start",
        job=True,
        then=lambda result: (
            f"`orchctl adapter evaluate {word(result['adapter']['name'])} ADAPTER --dataset DATASET` says whether\n"
            "it is better than another one"
        ),
        arguments=(
            *WANTED,
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
