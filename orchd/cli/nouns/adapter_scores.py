"""`orchctl adapter evaluate|compare`: adapters beside the base and beside each other."""

from __future__ import annotations

import argparse
from typing import Any

from orchd.cli.command import Command, Params, arg, opt
from orchd.cli.context import Context
from orchd.cli.text import number, percent, short, size, table

ADAPTERS = arg("adapters", "names, ids, or beginnings of ids", nargs="+", metavar="ADAPTER")
NAMES = {
    "loss": "loss",
    "perplexity": "perplexity",
    "token_accuracy": "tokens right",
    "exact_match": "exact match",
    "preferred": "better answer likelier",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "retention_loss": "loss on the base's own answers",
    "retention_kl": "divergence from the base on them",
}
VERDICTS = {"better": "is better than", "worse": "is worse than"}
TOO_FEW = "too few rows"
PLAIN = frozenset({"loss", "perplexity", "retention_loss", "retention_kl"})
"""Figures that are no share."""


def human_scores(shown: dict[str, Any]) -> str:
    """Every figure of every row, what the paired tests say, and what an answer costs."""
    rows = shown["rows"]
    metrics = [name for name in NAMES if any(one["metric"] == name for row in rows for one in row["measures"])]
    lines = [[NAMES[name], *(_measured(row, name) for row in rows)] for name in metrics]
    text = table(("", *_heads(rows)), lines)
    labels = [_labels(row) for row in rows if row["labels"]]
    return "\n\n".join(
        filter(None, [text, _about(shown), *labels, "\n".join(verdicts(shown)), _forgot(rows), _costs(rows)])
    )


def _called(row: dict[str, Any]) -> str:
    return str(row["name"] or (short(row["id"]) if row["id"] else "base"))


def _heads(rows: list[dict[str, Any]]) -> list[str]:
    """Names, with the id where two have the same."""
    names = [_called(row) for row in rows]
    return [
        f"{name} {short(row['id'])}".strip() if names.count(name) > 1 else name
        for name, row in zip(names, rows, strict=True)
    ]


def _measured(row: dict[str, Any], metric: str) -> str:
    """The figure with its interval."""
    found = next((one for one in row["measures"] if one["metric"] == metric), None)
    if found is None:
        return ""
    as_text = shown_as(metric)
    between = "" if found["low"] is None else f" ({as_text(found['low'])} to {as_text(found['high'])})"
    return f"{as_text(found['value'])}{between}"


def shown_as(metric: str) -> Any:
    return _plain if metric in PLAIN else percent


def _plain(value: float) -> str:
    return number(value) if value < 1000 else f"{value:,.0f}" if value < 1e9 else f"{value:.3g}"


def _about(shown: dict[str, Any]) -> str:
    examples = shown["rows"][0]["examples"] if shown["rows"] else 0
    asked = f", {shown['asked']} of them asked for an answer" if shown["asked"] else ""
    return f"{examples} rows of the {shown['split']} part{asked}; in brackets the 95 % intervals"


def _labels(row: dict[str, Any]) -> str:
    lines = [
        (one["label"], percent(one["precision"]), percent(one["recall"]), percent(one["f1"]), one["examples"])
        for one in row["labels"]
    ]
    return f"{_called(row)}, by label\n{table(('label', 'precision', 'recall', 'F1', 'examples'), lines)}"


def verdicts(shown: dict[str, Any]) -> list[str]:
    """Of each pair, what the paired test of the loss says, and then those of its other figures."""
    rows = shown["rows"]
    names = {row["id"]: name for row, name in zip(rows, _heads(rows), strict=True)} | {None: "the base"}
    said = []
    for pair in dict.fromkeys((one["adapter"], one["against"]) for one in shown["comparisons"]):
        found = [one for one in shown["comparisons"] if (one["adapter"], one["against"]) == pair]
        head = found[0]
        few = f" ({_few(head)})" if head["verdict"] == TOO_FEW else ""
        said.append(f"{names[pair[0]]} {_verdict(head)} {names[pair[1]]} on these rows{few}: {_difference(head)}")
        said += [f"  {_difference(one)}" for one in found if one is not head]
    return said


def _verdict(one: dict[str, Any]) -> str:
    return VERDICTS.get(one["verdict"], "can't be told from")


def _few(one: dict[str, Any]) -> str:
    return f"{one['units']} independent rows are too few for any verdict; 6 are needed"


def _difference(one: dict[str, Any]) -> str:
    as_text = shown_as(one["metric"])
    between = "" if one["low"] is None else f", difference {_signed(one['low'], one)} to {_signed(one['high'], one)}"
    p = "p < .001" if one["p"] < 0.001 else f"p = {one['p']:.3f}".replace("0.", ".", 1)
    beside = f"{as_text(one['value'])}, there {as_text(one['against_value'])}"
    chance = " (may be chance)" if one["verdict"] == "not told apart" else ""
    return f"{NAMES.get(one['metric'], one['metric'])} {beside}{between}, {p}{chance}"


def _signed(value: float, one: dict[str, Any]) -> str:
    return f"{'+' if value > 0 else ''}{shown_as(one['metric'])(value)}"


def _forgot(rows: list[dict[str, Any]]) -> str:
    pairs = zip(rows, _heads(rows), strict=True)
    return "\n".join(f"{name} {forgot(row['forgetting'])}" for row, name in pairs if row.get("forgetting"))


def forgot(told: dict[str, Any]) -> str:
    """What an adapter forgot, in a sentence without its subject."""
    rise = told["loss"] - told["base_loss"]
    between = f"{told['low']:+.3f} to {told['high']:+.3f}"
    return (
        f"on {told['examples']} of the base's own answers: loss {number(told['loss'])}, "
        f"the base {number(told['base_loss'])} ({rise:+.3f}, {between}; 0: nothing forgotten), and its guesses"
        f" of the next token moved by {number(told['kl'])} nats"
    )


def _costs(rows: list[dict[str, Any]]) -> str:
    lines = [
        (name, f"{row['first_token_ms']:.1f} ms", number(row["tokens_s"], 1), size(row["memory"]))
        for row, name in zip(rows, _heads(rows), strict=True)
        if row["first_token_ms"] is not None
    ]
    return table(("answers by", "first token", "tokens/s", "memory so far"), lines, empty="")


def scores(context: Context, options: argparse.Namespace, params: Params) -> int:
    """Follow the job; with `--page` write its page too."""
    from orchd.cli.nouns.job import write_page

    file = params.pop("page", None)
    command: Command = options.command
    if file is None or options.detach:
        return context.run_job(command, params, detach=options.detach)
    job = context.call(command.method, **params)["job"]
    result = context.follow(job)
    path = write_page(context, job, file)
    context.show(result, lambda shown: f"{human_scores(shown)}\n\npage: {path}")
    return 0


OPTIONS = (
    opt("--dataset", "what to score on", required=True),
    opt("--split", "which part (test)", choices=("train", "validation", "test")),
    opt(
        "--without",
        "what not to measure, to save time; may be given more than once",
        action="append",
        choices=("base", "answers", "speed", "forgetting"),
    ),
    opt("--page", "write a page with the answers side by side (HTML) to this file", metavar="FILE"),
)
MORE = (
    "Loss, perplexity and tokens right are of all rows. Exact match, chrF and ROUGE-L (precision, recall and F1 where\n"
    "the answers are labels) are of the model's own greedy answers, to as many questions as 4,096 wanted tokens hold.\n"
    "Every adapter stands beside the base on the same rows, with a paired test by random exchanges.\n"
    "`orchctl job report JOB` writes the page later."
)

COMMANDS = (
    Command(
        "evaluate",
        "How good adapters are on a data set, beside the base",
        human_scores,
        method="adapter.evaluate",
        job=True,
        run=scores,
        arguments=(
            arg("adapters", "names, ids, or beginnings of ids; none: the base alone", nargs="*", metavar="ADAPTER"),
            opt("--base", "which base, without an adapter (demo)"),
            *OPTIONS,
        ),
        more=MORE,
    ),
    Command(
        "compare",
        "Adapters beside each other and the base, on the same rows",
        human_scores,
        method="adapter.compare",
        job=True,
        run=scores,
        arguments=(ADAPTERS, *OPTIONS),
        more=f"Each later one is tested against the first.\n\n{MORE}",
    ),
)
