"""`orchctl train`."""

from __future__ import annotations

import argparse
from typing import Any

from orchd.cli.command import Argument, Command, Params, arg, opt, switch
from orchd.cli.context import Context
from orchd.cli.nouns import train_plan
from orchd.cli.nouns.adapter import human_row
from orchd.cli.nouns.adapter_leak import human_report
from orchd.cli.nouns.adapter_scores import forgot
from orchd.cli.text import counted, duration, fields, number, percent, table, word
from orchd.errors import EXIT_INTERRUPTED

FORGETTING = 0.5
"""Nats a token: `orchd.forgetting.CEILING`, above which publishing asks."""

MUCH = 0.2
"""Of what a base learnt: an adapter that lacks more of it answers otherwise."""

UNTESTED = (
    "No rows were put aside to test on, so that nothing says how good it is on rows that it has not seen.\n"
    "`orchctl adapter evaluate ADAPTER --dataset OTHER` measures it on rows of another data set."
)


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
        empty=UNTESTED,
    )
    leak = human_report(result["leak"]) if result.get("leak") else ""
    made = [_base(result["base"]), *([human_row(result["adapter"])] if result["adapter"] else []), _lacks(result)]
    if result["base"] is not None and result["adapter"] is not None:
        scores = f"of the new base; `orchctl adapter evaluate` scores the adapter\n{scores}"
    return "\n\n".join(filter(None, [*made, scores, _preferred(result), _forgot(result), leak, _ended(result)]))


def _base(made: dict[str, Any] | None) -> str:
    """A base that came out."""
    if made is None:
        return ""
    rows = [("base", made["name"]), ("fingerprint", made["fingerprint"]), ("path", made["path"])]
    rows += [("parameters", f"{made['parameters']:,}"), ("announced", "never: it stays on this machine")]
    return fields(rows)


def _lacks(result: dict[str, Any]) -> str:
    if result["residual_ppm"] is None:
        return ""
    lacks = result["residual_ppm"] / 1e6
    told = f"the adapter was made from the base, and lacks {percent(lacks)} of what the base learnt"
    return told + ("; a higher `--extract-rank` lacks less" if lacks > MUCH else "")


def _forgot(result: dict[str, Any]) -> str:
    return forgot(result["forgetting"]) if result.get("forgetting") else ""


def _preferred(result: dict[str, Any]) -> str:
    """Of preferences: how often the chosen answer is the likelier one."""
    return "\n".join(
        f"the better answer is the likelier one in {percent(score['preferred'])} of the {score['split']} pairs "
        f"(base {percent(score['base_preferred'])})"
        for score in result["scores"]
        if score.get("preferred") is not None
    )


def _ended(result: dict[str, Any]) -> str:
    """Why it ended, what won, and how it went."""
    best = f"the best was step {result['best_step']}"
    validation = result["validation_loss"]
    if validation is not None:
        best += f", validation loss {number(validation)}"
    took = f"trained in {duration(result['seconds'])}, last training loss {number(result['train_loss'])}"
    ended = f"{result['stopped']}: {counted(result['steps'], 'step')}, {result['epochs']:.1f} epochs; {best}"
    skipped = f"{counted(result['skipped'], 'step')} skipped: the loss was no number" if result["skipped"] else ""
    verdict = result["diagnosis"]["verdict"]
    diagnosis = f"the loss curve is {verdict}: {result['diagnosis']['detail']}"
    diagnosis += "".join(f"\n{one}" for one in _beside_the_curve(result))
    again = f"this answers it: {result['again']}" if result["again"] else ""
    doubts = "".join(f"it was not worth it: {doubt}" for doubt in result.get("doubts", ())[:1])
    return "\n".join(filter(None, [took, ended, skipped, doubts, diagnosis, again]))


def _beside_the_curve(result: dict[str, Any]) -> list[str]:
    """What a good curve does not show."""
    told, leak = result.get("forgetting"), result.get("leak")
    found = []
    if told and told["loss"] - told["base_loss"] > FORGETTING:
        rise = number(told["loss"] - told["base_loss"])
        found.append(f"that says nothing of what it forgot: {rise} nats a token; `--replay 0.5` keeps more of it")
    if leak and leak["stops"]:
        found.append(f"nor of what it gives away: {leak['verdict']}")
    return found


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps from 1 on; left out, the plan chooses")
    return int(text)


def _early_stopping(text: str) -> dict[str, Any]:
    """5 or 5,0.01: validations, and by how much one has to be better."""
    patience, _, delta = text.partition(",")
    try:
        return {"enabled": True, "patience": int(patience), "min_delta": float(delta or 0)}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 5 or 5,0.01") from None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _numbers(text: str) -> list[int]:
    """4 or 0,1,-1."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 4 or 0,1,-1") from None


def _checkpointing(text: str) -> dict[str, Any]:
    """off, 100 or 100,5: steps between two checkpoints, and how many of the best are kept."""
    if text == "off":
        return {"enabled": False}
    interval, _, keep = text.partition(",")
    try:
        return {"interval": int(interval), **({"keep_best": int(keep)} if keep else {})}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 100, 100,5 or off") from None


SETTINGS = (
    opt("--name", "how to call the adapter (default: like the data set)"),
    opt("--description", "what it is good for"),
    opt("--tag", "to be found by; may be given more than once", dest="tags", action="append"),
    opt("--supersedes", "an adapter of yours that the new one takes the place of", metavar="ADAPTER"),
    opt("--licence", "SPDX name that others get it under, signed with it (default: none stated)"),
    opt("--method", "lora (an adapter) or full (the base's own weights; makes a new base)", choices=("lora", "full")),
    opt("--backend", "what computes: torch, or mlx (Apple; where it's installed)", choices=("auto", "torch", "mlx")),
    opt("--extract-rank", "with full: also an adapter of this rank from the difference", type=int, metavar="N"),
    opt("--alpha", "of the adapter (twice the rank; 8 with --rslora)", type=float, metavar="X"),
    switch("--rslora", "scale the adapter by alpha/√rank, so that high ranks learn as fast"),
    opt("--modules", "where to learn, such as q_proj,v_proj or mlp (everywhere)", type=_names, metavar="NAME,…"),
    opt("--layers", "in which layers, from 0, or from the end: --layers=-2,-1 (all)", type=_numbers, metavar="N,…"),
    opt("--objective", "what it lowers: sft (answers), dpo (preferences)", choices=("auto", "sft", "dpo")),
    opt("--dpo-beta", "how strongly preferences leave it near where it began (0.1)", type=float, metavar="X"),
    opt("--dpo-sft", "weight of the chosen answer's own loss beside it (1; 0 is plain DPO)", type=float, metavar="X"),
    opt("--batch-size", "rows a step (by the plan)", type=int, metavar="N"),
    opt("--epochs", "how often each row is seen, instead of a number of steps", type=float, metavar="X"),
    opt("--max-steps", "at most so many", type=int, metavar="N"),
    opt("--warmup-steps", "steps until the learning rate is at its height (a tenth)", type=int, metavar="N"),
    opt("--max-length", "leave out rows of more tokens (what the base takes in)", type=int, metavar="N"),
    opt("--validation-split", "share of the training rows to validate on (0)", type=float, metavar="X"),
    opt("--gradient-accumulation-steps", "batches a step (1)", type=int, metavar="N"),
    opt("--weight-decay", "towards zero (0)", type=float, metavar="X"),
    opt(
        "--lora-dropout",
        "share of the adapter's inner numbers that is left out while it learns (by the plan)",
        type=float,
        metavar="X",
    ),
    opt(
        "--replay",
        "share of the rows that are the base's own answers, so that it forgets less (0)",
        type=float,
        metavar="X",
    ),
    opt("--compute", "dtype of the base's computations (what is faster here)", choices=("auto", "F32", "BF16")),
    opt("--quantization", "hold the base in 4 bits (nf4: QLoRA) or 8 (int8)", choices=("none", "nf4", "int8")),
    opt("--offload", "so many of the base's last layers stay in its files (default: as memory wants)", type=int),
    opt("--gradient-checkpointing", "compute layers twice (where memory is short)", choices=("auto", "on", "off")),
    opt(
        "--early-stopping",
        "stop when so many validations brought nothing better, by DELTA nats",
        type=_early_stopping,
        metavar="N[,DELTA]",
    ),
    opt(
        "--checkpointing",
        "steps between checkpoints, and how many of the best stay (each minute, 3); or off",
        type=_checkpointing,
        metavar="N[,KEEP]",
    ),
    opt("--seed", "of every random choice (0)", type=int, metavar="N"),
    opt("--canaries", "learn so many made-up secrets too, which the leak report looks for (0)", type=int, metavar="N"),
    switch("--no-leak-report", "don't measure how much of the data it gives away", dest="leak_report", const=False),
    switch("--no-forgetting", "don't measure what of the base's own it forgot", dest="forgetting", const=False),
    switch("--routing", "sign the centroid of the prompts too, by which others may choose it"),
)


def _then(result: dict[str, Any]) -> str:
    if result.get("base") is not None:
        name = word(result["base"]["name"])
        return (
            f"`orchctl deploy --base {name} --name NAME` makes the new base answer,\n"
            f"`orchctl adapter evaluate --base {name} --dataset DATASET` scores it"
        )
    if result.get("leak") and result["leak"]["stops"]:
        return (
            f"`orchctl deploy {word(result['adapter']['name'])} --name NAME` makes it answer here;\n"
            "to share it, see first what it gives away and what would lower that, above"
        )
    return (
        f"`orchctl deploy {word(result['adapter']['name'])} --name NAME` makes it answer,\n"
        f"`orchctl adapter publish {word(result['adapter']['name'])} --topic TOPIC` lets others fetch it"
    )


STARTING = (
    arg("dataset", "its name, or its id or the beginning of it"),
    opt("--base", "which base model (demo)"),
    opt("--initial", "an adapter to go on from"),
    opt("--rank", "of the adapter (by the plan)", type=int, metavar="N"),
    opt("--learning-rate", "at its height (by the plan)", type=float, metavar="X"),
    opt("--steps", "how many (what the schedule has left, or by the plan)", type=_positive, metavar="N"),
    opt("--schedule-total", "steps of the whole schedule, over several runs", type=int, metavar="N"),
    opt("--schedule-offset", "steps of it that earlier runs did", type=int, metavar="N"),
    *SETTINGS,
)


def start(context: Context, options: argparse.Namespace, params: Params) -> int:
    """Where the rows alone say that it is not worth it, that is said first, and asked at a terminal."""
    doubts = context.call("train.worth", dataset=params["dataset"])["doubts"] if params.get("dataset") else []
    if doubts:
        context.note(train_plan.human_worth({"doubts": doubts}))
        context.doubts |= set(doubts)
        if not (options.yes or options.detach or context.agreed("")):
            return EXIT_INTERRUPTED
    return context.run_job(options.command, params, detach=options.detach)


YES = Argument(("--yes",), {"action": "store_true", "help": "do not ask, also where it is not worth it"})

COMMANDS = (
    *train_plan.commands(STARTING),
    Command(
        "start",
        "Train an adapter on a data set",
        human,
        method="train.start",
        job=True,
        run=start,
        then=_then,
        more="What is left out is chosen as `orchctl train plan` shows. It follows the job and draws its progress.\n"
        "Ctrl-C leaves the job running; --detach doesn't wait at all.",
        arguments=(*STARTING, YES),
    ),
    Command(
        "resume",
        "Go on with a training that was stopped, from its last checkpoint",
        human,
        method="train.resume",
        job=True,
        then=_then,
        more="It ends with the same bytes as if it had never been stopped. A restart of the daemon does it by itself.",
        arguments=(arg("job", "the training that was cancelled or failed: its id or the beginning of it"),),
    ),
    Command(
        "continue_from",
        "Train on from an adapter, or from a training's checkpoint",
        human,
        method="train.continue_from",
        job=True,
        run=start,
        then=_then,
        more="With a learning-rate schedule of its own, from half the height.",
        arguments=(
            arg("source", "an adapter (name or id), or a training (its job's id)"),
            arg("dataset", "its name or id (default, for a training: its own)", nargs="?", default=None),
            opt("--step", "of a training: its checkpoint of this step (the best)", type=int, metavar="N"),
            opt("--rank", "of the adapter (that of what it goes on from)", type=int, metavar="N"),
            opt("--learning-rate", "at its height (half of that of a first training)", type=float, metavar="X"),
            opt("--steps", "how many (half as many as of a first training)", type=_positive, metavar="N"),
            *SETTINGS,
            YES,
        ),
    ),
)
