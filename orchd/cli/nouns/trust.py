"""`orchctl trust`."""

from __future__ import annotations

from typing import Any

from orchd.cli.command import Command, arg, opt, switch
from orchd.cli.text import counted, fields, table, when

SUBJECT = arg(
    "subject", "an author's key or its beginning, a peer's id, or an adapter that is here, whose author is meant"
)
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
        old, new, whose = change["old"], change["new"], _whose(change["trust"])
        if change["contested"]:
            lines.append(f"!! TWO KEYS CLAIM TO FOLLOW {old}: {new} is one of them. Neither inherits its trust.")
        else:
            lines.append(f"!! {whose} KEY CHANGED on {when(change['created_ms'])}; the old key has signed the new one:")
            lines.append(f"     old {old}\n     new {new}")
    for author in shown["equivocators"]:
        lines.append(f"!! {author}")
        lines.append("     HAS SIGNED RECORDS THAT CONTRADICT EACH OTHER; its adapters are in quarantine for good.")
    return "\n".join(lines)


WHOSE = {"self": "THIS NODE'S", "stranger": "A STRANGER'S", "allowed": "AN ALLOWED AUTHOR'S"}


def _whose(trust: str) -> str:
    return WHOSE.get(trust, f"A {trust.upper()} AUTHOR'S")


def human_policies(shown: dict[str, Any]) -> str:
    policies = shown["policies"]
    needed = policies["attestations"]
    return fields(
        [
            ("fetched by itself", "what followed authors announce" if policies["auto_fetch"] != "off" else "nothing"),
            ("strangers' adapters", "stay in quarantine" if policies["quarantine"] != "off" else "are let in"),
            ("attestations needed", f"{needed}, by followed authors" if needed else "none"),
        ]
    )


def human_show(shown: dict[str, Any]) -> str:
    about = fields(
        [
            (shown["kind"], shown["subject"]),
            ("is", {"self": "this node itself", "stranger": "a stranger"}.get(shown["level"], shown["level"])),
            ("since", when(shown["since_ms"]) if shown["verdict"] else ""),
            ("note", shown["note"]),
            ("updates", "fetched by themselves" if shown["auto_update"] else ""),
            ("signs as", shown["now"] if len(shown["keys"]) > 1 else ""),
            ("signed as", "\n".join(key for key in shown["keys"] if key != shown["now"])),
            ("!!", "has signed records that contradict each other" if shown["equivocates"] else ""),
        ]
    )
    return f"{about}\n\n{_standings(shown['adapters'])}" if shown["adapters"] else about


def _standings(rows: list[dict[str, Any]]) -> str:
    return table(("adapter", "state", "id", "why"), [(r["name"], r["state"], r["id"], r["reason"]) for r in rows])


SAID = {"follow": "followed", "allow": "allowed", "block": "blocked"}


def human_decided(shown: dict[str, Any]) -> str:
    who = f"{shown['kind']} {shown['subject']}"
    said = SAID.get(shown["verdict"])
    told = [f"{who} is {said}" if said else f"nothing is decided about {who} any more", standing_now(shown)]
    if said and not shown["heard_of"]:
        told.append(f"nothing of this {shown['kind']} is here or was announced: is it written rightly?")
    if shown["containing"]:
        told.append(
            f"what was made from theirs (averages, further training) stays in use, deployed too:"
            f" {counted(shown['containing'], 'adapter')}; `orchctl adapter why ID` names what one was made from"
        )
    if shown["deployments"]:
        told.append(f"deployments that fall back to the base: {', '.join(shown['deployments'])}")
    if shown["verdict"] == "block":
        told.append(f"`orchctl undo` lifts it again{AGAIN if shown['deployments'] else ''}")
    return "\n".join(filter(None, told))


AGAIN = "; deployments stay with the base until `orchctl deploy` is run"


def human_policy(shown: dict[str, Any]) -> str:
    return "\n".join(filter(None, [human_policies(shown), standing_now(shown)]))


def standing_now(shown: dict[str, Any]) -> str:
    """A line for each adapter whose standing is another now, or the first of them."""
    told = [f"{one['name']} ({one['id']}) is {one['state']} now{_why(one)}" for one in shown["changed"]]
    if more := shown["changed_in_all"] - len(told):
        told.append(f"the standing of {more:,} more has changed; `orchctl adapter search` shows all by pages")
    return "\n".join(told)


def _why(one: dict[str, Any]) -> str:
    return f": {one['reason']}" if one["reason"] else ""


COMMANDS = (
    Command(
        "list",
        "Whom this node follows, allows and blocks, its policies, and changed keys",
        human_list,
        method="trust.list",
    ),
    Command(
        "show",
        "One author or peer: what was decided, its keys, its adapters here",
        human_show,
        method="trust.show",
        arguments=(SUBJECT,),
    ),
    Command(
        "follow",
        "Follow an author (policies and updates count on them) or a peer",
        human_decided,
        method="trust.follow",
        changes=True,
        subject=("trust.show", "subject"),
        arguments=(SUBJECT, NOTE, switch("--auto-update", "fetch what supersedes an adapter of theirs that is here")),
        more="Peers that are followed are asked first when an adapter is fetched.\n"
        "A newer version waits in quarantine until it was tested on your newest data set that has a test part, and\n"
        "stays there when it does worse than the newest version that is admitted. Without such a data set it is let\n"
        "in. The old one is kept.",
    ),
    Command(
        "allow",
        "No longer treat an author or a peer as a stranger, and no more than that",
        human_decided,
        method="trust.allow",
        changes=True,
        subject=("trust.show", "subject"),
        arguments=(SUBJECT, NOTE),
    ),
    Command(
        "block",
        "Keep out everything by an author, or have nothing to do with a peer",
        human_decided,
        method="trust.block",
        changes=True,
        subject=("trust.show", "subject"),
        arguments=(SUBJECT, NOTE),
        more="What is here of a blocked author goes to quarantine, and deployments of it fall back to the base.\n"
        "What contains an adapter of theirs stays: `orchctl adapter why` names it.",
    ),
    Command(
        "remove",
        "Forget what was decided about an author or a peer",
        human_decided,
        method="trust.remove",
        changes=True,
        subject=("trust.show", "subject"),
        arguments=(SUBJECT,),
    ),
    Command(
        "policy",
        "Set or show what is decided without asking",
        human_policy,
        method="trust.policy",
        changes=True,
        more="Policies hold for what is here too; deployments that run go on. Own adapters are never quarantined by\n"
        "them. `orchctl adapter release` lets a single adapter out, `orchctl undo` takes a policy back.",
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
