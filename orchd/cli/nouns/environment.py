"""`orchctl environment`."""

from __future__ import annotations

from typing import Any

from orchd.cli.command import Command
from orchd.cli.text import fields, size

WHERE = {"own": "in orchd's own Python", "environment": "in an environment of their own", "missing": "not here"}
TORCH = ("torch", "transformers", "peft", "mlx-lm")


def human(state: dict[str, Any]) -> str:
    """Where the packages are, or what it takes to have them."""
    missing = state["where"] == "missing"
    takes = f"about {size(state['download'])} to download, about {size(state['disk'])} on the disk"
    versions = state["versions"] if state["where"] == "environment" else {}
    return fields(
        [
            ("packages", WHERE[state["where"]] + (": being made now" if state["making"] else "")),
            ("lacking", ", ".join(state["lacking"])),
            ("python", state["python"]),
            ("folder", f"{state['folder']} ({size(state['size'])})" if state["folder"] else ""),
            ("outdated", "it was made for another Python or other versions" if state["outdated"] else ""),
            ("versions", ", ".join(f"{name} {versions[name]}" for name in TORCH if name in versions)),
            ("torch", f"{state['torch']}: {state['why']}" if state["where"] != "own" else ""),
            ("computes on", state["device"] if versions else ""),
            ("takes", takes if missing else ""),
            ("from", state["index"] if missing else ""),
            ("next", "`orchctl environment make`, or `orchctl train start`, makes it" if missing else ""),
            ("setting", f"training.environment = {state['setting']}"),
        ]
    )


COMMANDS = (
    Command(
        "show",
        "Where training finds torch and the like, and what making an environment takes",
        human,
        method="environment.show",
    ),
    Command(
        "make",
        "Download what training needs into an environment of its own, where it is not installed",
        human,
        method="environment.make",
        job=True,
        more="`orchctl train start` does it by itself. What was downloaded is kept when it is broken off; the same\n"
        "command goes on. The settings `training.*` say from where, and may forbid it.",
    ),
    Command(
        "repair",
        "Look through the environment, and make it anew where it is not whole",
        human,
        method="environment.repair",
        job=True,
        more="Every file is compared with the list that came with its package, then all is imported once.",
    ),
    Command(
        "remove",
        "Remove the environment and what was downloaded for it",
        lambda removed: f"{size(removed['size'])} removed",
        method="environment.remove",
        changes=True,
    ),
)
