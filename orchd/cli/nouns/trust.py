"""`orchctl trust`."""

from __future__ import annotations

from typing import Any

from orchd.cli.command import Command, arg, opt, switch
from orchd.cli.text import fields, table, when

SUBJECT = arg("subject", "an author's key, a peer's id, or an adapter that is here, whose author is meant")
NOTE = opt("--note", "a few words for yourself; they stay here")


def human_list(shown: dict[str, Any]) -> str:
    rows = table(
        ("who", "what", "verdict", "updates", "adapters", "since", "note"),
        [
            (
                row["subject"],
                row["kind"],
                row["verdict"],
                "yes" if row["auto_update"] else "",
                row["adapters"],
                when(row["since_ms"]),
                row["note"],
            )
            for row in shown["subjects"]
        ],
        empty="nothing was decided about anybody: all others are strangers",
    )
    return "\n\n".join(filter(None, [rows, _warnings(shown), human_policies(shown)]))


def _warnings(shown: dict[str, Any]) -> str:
    """Changed keys and liars, loudly."""
    lines = []
    for change in shown["key_changes"]:
        old, new = change["old"], change["new"]
        if change["contested"]:
            lines.append(f"!! TWO KEYS CLAIM TO FOLLOW {old}: {new} is one of them. Neither inherits its trust.")
        else:
            lines.append(f"!! KEY CHANGED on {when(change['created_ms'])}, signed by both keys; now {change['trust']}:")
            lines.append(f"     old {old}\n     new {new}")
    for author in shown["equivocators"]:
        lines.append(f"!! {author} has signed two different records with one number; its adapters are in quarantine.")
    return "\n".join(lines)


def human_policies(shown: dict[str, Any]) -> str:
    policies = shown["policies"]
    return fields(
        [
            ("fetch by itself", "what followed authors announce" if policies["auto_fetch"] != "off" else "nothing"),
            ("quarantine", "strangers' adapters" if policies["quarantine"] != "off" else "nobody for being a stranger"),
            (
                "attestations",
                f"{policies['attestations']} by followed authors needed" if policies["attestations"] else "none needed",
            ),
        ]
    )


def human_decided(shown: dict[str, Any]) -> str:
    said = {"follow": "followed", "allow": "allowed", "block": "blocked", "": "a stranger again"}.get(
        shown["verdict"], shown["verdict"]
    )
    return "\n".join(filter(None, [f"{shown['kind']} {shown['subject']} is {said}", _changed(shown)]))


def human_policy(shown: dict[str, Any]) -> str:
    return "\n".join(filter(None, [human_policies(shown), _changed(shown)]))


def _changed(shown: dict[str, Any]) -> str:
    return f"another standing have now: {', '.join(shown['changed'])}" if shown["changed"] else ""


COMMANDS = (
    Command(
        "list",
        "Whom this node follows, allows and blocks, its policies, and changed keys",
        human_list,
        method="trust.list",
    ),
    Command(
        "follow",
        "Follow an author (policies and updates count on them) or a peer",
        human_decided,
        method="trust.follow",
        changes=True,
        arguments=(SUBJECT, NOTE, switch("--auto-update", "fetch what supersedes an adapter of theirs that is here")),
        more="Peers that are followed are asked first when an adapter is fetched.\n"
        "What updates an adapter must do no worse than the old one on data of yours, where there is any;\n"
        "the old one is kept.",
    ),
    Command(
        "allow",
        "Take an author or a peer for no stranger, and no more than that",
        human_decided,
        method="trust.allow",
        changes=True,
        arguments=(SUBJECT, NOTE),
    ),
    Command(
        "block",
        "Let nothing in of an author, or have nothing to do with a peer",
        human_decided,
        method="trust.block",
        changes=True,
        arguments=(SUBJECT, NOTE),
        more="What is here of a blocked author goes to quarantine, and deployments of it fall back to the base.",
    ),
    Command(
        "remove",
        "Forget what was decided about an author or a peer",
        human_decided,
        method="trust.remove",
        changes=True,
        arguments=(SUBJECT,),
    ),
    Command(
        "policy",
        "Set or show what is decided without asking",
        human_policy,
        method="trust.policy",
        changes=True,
        arguments=(
            opt("--auto-fetch", "fetch what followed authors announce", choices=("off", "followed")),
            opt("--quarantine", "keep strangers' adapters in quarantine", choices=("off", "strangers")),
            opt(
                "--attestations",
                "how many distinct followed authors must have measured an adapter, no worse than the base",
                type=int,
            ),
        ),
    ),
)
