"""`orchctl average`."""

from __future__ import annotations

import argparse
from typing import Any

from orchd.cli.command import Command, arg, opt, switch
from orchd.cli.nouns import average_gate
from orchd.cli.nouns.adapter import human_row
from orchd.cli.nouns.adapter_scores import ADAPTERS
from orchd.cli.text import duration, fields, percent, short, size, table, word
from orchd.errors import EXIT_REFUSED


def human(result: dict[str, Any]) -> str:
    share = result["residual_ppm"] / 1_000_000
    row = result["adapter"]
    cut = f"rank {row['rank']} has room for the whole average"
    if share:
        cut = f"rank {row['rank']} has no room for {percent(share)} of the exact average's length, which was cut off"
    adapter = human_row({**row, "leaves": result["leaves"]})
    likeness = _likeness(result["leaves"], result["cosines"])
    gone = "\n".join(f"not in it, as nobody gives it: {id}" for id in result.get("missing", ()))
    names = {leaf["id"]: leaf["name"] for leaf in (*result["leaves"], *result.get("refused", ()))}
    judged = average_gate.judged(result.get("gate"), names)
    return "\n\n".join(filter(None, [adapter, gone, cut, _taken(result), likeness, judged]))


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


def _next(result: dict[str, Any]) -> str:
    if "likeness" in result:
        return ""
    called = word(result["adapter"]["name"])
    verdict = (result.get("gate") or {}).get("verdict")
    if verdict == "candidate":
        return f"`orchctl adapter publish {called} --topic TOPIC --candidate {called}` announces it all the same"
    if verdict == "quarantined":
        return f"`orchctl adapter show {called}` says why it is in quarantine; nothing here makes it safe"
    return (
        f"`orchctl adapter evaluate {word(result['adapter']['name'])} ADAPTER --dataset DATASET` says whether\n"
        "it is better than another one"
    )


def human_plan(plan: dict[str, Any]) -> str:
    """Who is in it, how alike they are, what would be done, what it takes, and what to think of first."""
    leaves = plan["leaves"]
    rows = [
        (
            number,
            leaf["name"],
            short(leaf["id"]),
            leaf["vote"],
            percent(leaf["weight_ppm"] / 1_000_000),
            "" if leaf["taken_ppm"] is None else percent(leaf["taken_ppm"] / 1_000_000),
            f"{leaf['norm']:.3g}",
            *(f"{cosine:.3f}" for cosine in cosines),
        )
        for number, (leaf, cosines) in enumerate(zip(leaves, plan["cosines"], strict=True), 1)
    ]
    numbers = [str(number) for number in range(1, len(plan["cosines"]) + 1)]
    heads = ("", "leaf", "id", "vote", "weight", "taken", "length", *numbers)
    what = [
        ("they are", f"{plan['likeness']} (mean cosine of two votes {plan['cosine']:.3f})"),
        ("method", f"{plan['method']}: {plan['reason']}"),
        ("strength", f"{plan['strength_ppm'] / 1_000_000:g}"),
        ("rank", plan["rank"]),
        ("gate", average_gate.planned(plan["gate"])),
        ("takes", f"about {duration(plan['seconds'])} for {size(plan['bytes'])}"),
    ]
    refused = [f"refused: {one['name']} {short(one['id'])}: {one['reason']}" for one in plan["refused"]]
    notes = [f"note: {told}" for told in plan["warnings"]]
    text = [table(heads, rows) + "\n(1, 2, …: cosines; 1 the same, 0 unrelated, -1 opposite)", fields(what)]
    judged = average_gate.judged(plan["judged"], {leaf["id"]: leaf["name"] for leaf in leaves})
    told = [_preview(plan["preview"]), judged, "\n".join(refused), "\n".join(notes)]
    parts = [*text, *told, f"`{_command(plan)}` makes it"]
    return "\n\n".join(filter(None, parts))


def _command(plan: dict[str, Any]) -> str:
    """What makes the average of the plan."""
    leaves = plan["leaves"]
    given = [leaf["weight_ppm"] for leaf in leaves]
    uneven = max(given, default=0) - min(given, default=0) > 1  # a millionth is rounding
    chosen = [("--method", plan["method"]), ("--rank", plan["rank"]), ("--strength", plan["strength_ppm"] / 1_000_000)]
    if plan["gate"] and plan["gate"]["on"] and plan["judged"] is None:  # the data chooses what was not asked for
        asked, strength = plan["asked"], plan["asked_strength"]
        chosen = [("--method", asked if asked != "auto" else None), ("--rank", plan["rank"]), ("--strength", strength)]
    options = [
        f"{option} {value:g}" if isinstance(value, float) else f"{option} {value}" for option, value in chosen if value
    ]
    options += [f"--weights {','.join(map(str, given))}"] if uneven else []
    return " ".join(["orchctl average start", *(short(leaf["id"]) for leaf in leaves), *options])


def _preview(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    worst = sorted(found["modules"], key=lambda row: -row["residual_ppm"])[:5]
    told = fields(
        [
            ("comes out", f"rank {found['rank']}, {found['parameters']:,} numbers"),
            ("cut off", f"{percent(found['residual_ppm'] / 1_000_000)} of the exact average's length"),
        ]
    )
    if not found["residual_ppm"]:
        return told
    cut = [(row["name"], row["rank"], percent(row["residual_ppm"] / 1_000_000)) for row in worst]
    return told + "\n" + table(("where most is cut off", "rank", "of it"), cut)


def human_shown(result: dict[str, Any]) -> str:
    row = result["adapter"]
    leaves = [
        (
            leaf["name"],
            short(leaf["id"]),
            percent(leaf["weight_ppm"] / 1_000_000),
            "" if leaf["taken_ppm"] is None else percent(leaf["taken_ppm"] / 1_000_000),
        )
        for leaf in result["leaves"]
    ]
    about = fields(
        [
            ("average", f"{row['name']} ({row['id']})"),
            ("method", f"{result['method']}, strength {result['strength_ppm'] / 1_000_000:g}"),
            ("licence", row["licence"]),
        ]
    )
    return "\n\n".join([about, table(("leaf", "id", "weight", "taken"), leaves), average_gate.shown(result["gate"])])


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
        "auto (clip for alike, tsv for unlike adapters), mean, clip, tsv, geometric-median, median, trimmed-mean,"
        " multi-krum or krum",
    ),
    opt("--rank", "of each module (16); or energy:.95, budget:16, stacked", metavar="RULE"),
    opt("--strength", "multiplies the whole (what your data finds best; else 1, of tsv .4)", type=float, metavar="X"),
    opt(
        "--dataset",
        "whose held-out rows decide who is in it and how strong (the one that an adapter of yours in it learnt, else"
        " your newest)",
    ),
    switch("--no-gate", "average without looking at data of yours", dest="gate", const=False),
    opt("--gate-seconds", "how long that may take (120); of many rows some are drawn", type=float, metavar="S"),
    opt("--licence", "what it is to be under (SPDX); also where a leaf's author has not said", metavar="SPDX"),
)
COMMANDS = (
    Command(
        "plan",
        "How alike adapters are, what an average of them would do and take, and who can't be in it",
        human_plan,
        method="average.plan",
        job=True,
        arguments=WANTED,
    ),
    Command(
        "preview",
        "As plan, and what would come out: all is computed, nothing written",
        human_plan,
        method="average.preview",
        job=True,
        arguments=WANTED,
    ),
    Command(
        "start",
        "Make one adapter from several",
        lambda result: human_plan(result) if "likeness" in result else human(result),
        method="average.start",
        job=True,
        then=_next,
        arguments=(
            *WANTED,
            switch("--dry-run", "only say what would come out, as preview", dest="preview"),
            switch("--allow-partial", "leave out leaves of averages that nobody gives; the others' weights grow"),
            opt("--name", "how to call it"),
            opt("--tag", "to be found by; may be given more than once", dest="tags", action="append"),
            opt("--supersedes", "an adapter of yours that the new one takes the place of", metavar="ADAPTER"),
        ),
    ),
    Command(
        "show",
        "What an average is made of, and what its author's gate decided",
        human_shown,
        method="average.show",
        arguments=(arg("adapter", "the average"),),
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
