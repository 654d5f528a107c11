"""`orchctl deployment`."""

from __future__ import annotations

from typing import Any

from orchd.cli.command import Command, arg
from orchd.cli.text import fields, short, size, table, when
from orchd.errors import EXIT_FAILED

DEPLOYMENT = arg("deployment", "its name")


def human_list(shown: dict[str, Any]) -> str:
    rows = table(
        ("name", "adapter", "target", "state", "size", "same answers", "made"),
        [
            (
                d["name"],
                f"{d['adapter']['name']} ({short(d['adapter']['id'])})" if d["adapter"] else "(plain base)",
                d["target"],
                f"{_words(d['state'])} from {short(d['was'])}" if d["was"] else d["state"],
                size(d["size"]),
                _held(d["parity"]),
                when(d["created_ms"]),
            )
            for d in shown["deployments"]
        ],
    )
    return "\n".join([rows, *(f"{d['name']}: {d['note']}" for d in shown["deployments"] if d["note"])])


def human_row(row: dict[str, Any]) -> str:
    adapter, parity = row["adapter"], row["parity"]
    return fields(
        [
            ("name", row["name"]),
            ("adapter", f"{adapter['name']} ({adapter['id']})" if adapter else "(plain base)"),
            ("base", row["base"]),
            ("target", f"{row['target']}, {_words(row['state'])}"),
            ("file", f"{row['quantize']}, {size(row['size'])}, sha256 {row['sha256']}"),
            ("same answers", f"{_held(parity)}: {parity['detail']}" if parity else None),
            ("asked", row.get("asked") or None),
            ("note", row["note"] or None),
            ("before", _before(row["before"])),
            ("made", when(row["created_ms"])),
        ]
    )


def _before(before: dict[str, Any] | None) -> str | None:
    if before is None:
        return None
    who = f"{before['name'] or 'an adapter'} ({short(before['adapter'])})" if before["adapter"] else "the plain base"
    return f"{who} in {before['target']}, {before['quantize']}; `orchctl deployment rollback` brings it back"


def human_rollback(told: dict[str, Any]) -> str:
    return f"{human_row(told['deployment'])}\ninstead of  {told['instead_of'] or 'the plain base'}"


def _words(state: str) -> str:
    return state.replace("_", " ")


def _held(parity: dict[str, Any] | None) -> str:
    if not parity:
        return "not tried"
    return "yes" if parity["held"] else "NO"


COMMANDS = (
    Command("list", "What is deployed, and where", human_list, method="deployment.list"),
    Command(
        "show",
        "One deployment with the figures of its proof",
        human_row,
        method="deployment.show",
        arguments=(DEPLOYMENT,),
    ),
    Command(
        "verify",
        "Ask its target for the proven answers again",
        lambda told: f"{'yes' if told['held'] else 'NO'}: {told['deployment']} in {told['target']}: {told['detail']}",
        method="deployment.verify",
        verdict=lambda told: EXIT_FAILED if not told["held"] else 0,
        arguments=(DEPLOYMENT,),
    ),
    Command(
        "rollback",
        "Let what answered under the name before answer again; a second time takes that back",
        human_rollback,
        method="deployment.rollback",
        changes=True,
        subject=("deployment.show", "deployment"),
        more="One step is kept. For example: orchctl deployment rollback us",
        arguments=(DEPLOYMENT,),
    ),
    Command(
        "remove",
        "Take a deployment out of its target",
        lambda gone: (
            f"removed {gone['deployment']}; `orchctl undo` does not bring it back, `orchctl deploy` makes it anew"
        ),
        method="deployment.remove",
        changes=True,
        subject=("deployment.show", "deployment"),
        arguments=(DEPLOYMENT,),
    ),
)
