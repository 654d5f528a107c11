"""`orchctl checkpoint`."""

from __future__ import annotations

from typing import Any

from orchd.cli.command import Command, arg, opt, switch
from orchd.cli.text import counted, fields, number, size, table

TRAINING = arg("job", "the training: its job's id or the beginning of it")
SOME = arg("job", "only of this training: its job's id or the beginning of it", nargs="?", default=None)


def human_list(shown: dict[str, Any]) -> str:
    return table(
        ("training", "run", "step", "kind", "epoch", "train loss", "validation loss", "size"),
        [
            (
                row["title"],
                row["run"],
                row["step"],
                row["kind"],
                number(row["epoch"], 1),
                number(row["train_loss"]),
                number(row["validation_loss"]),
                size(row["size"]),
            )
            for row in shown["checkpoints"]
        ],
        empty="no checkpoint is kept",
    )


def human_row(row: dict[str, Any]) -> str:
    return fields(
        [
            ("training", f"{row['title']} ({row['run']})"),
            ("step", row["step"]),
            ("epoch", number(row["epoch"], 1)),
            ("train loss", number(row["train_loss"])),
            ("validation loss", number(row["validation_loss"])),
            ("folder", row["path"]),
        ]
    )


COMMANDS = (
    Command(
        "list",
        "What trainings keep: their best adapters, and where they can go on",
        human_list,
        method="checkpoint.list",
        more="Kinds: best and good are adapters of the run, resume is where `orchctl train resume` goes on.",
        arguments=(SOME,),
    ),
    Command(
        "best",
        "The best checkpoint of a training, as a PEFT folder",
        human_row,
        method="checkpoint.best",
        arguments=(TRAINING,),
    ),
    Command(
        "cleanup",
        "Remove checkpoints that are no longer needed",
        lambda done: f"removed {counted(done['checkpoints'], 'checkpoint')}, {size(done['bytes'])}",
        method="checkpoint.cleanup",
        changes=True,
        more="A training that runs keeps all of its own, and one that can go on too unless --resume is given.",
        arguments=(
            SOME,
            opt("--keep", "how many of the best of each training stay (1)", type=int, metavar="N"),
            switch("--resume", "also what a stopped training needs to go on"),
        ),
    ),
)
