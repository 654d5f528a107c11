"""`orchctl adapter leak-report`, and how a report reads."""

from __future__ import annotations

from typing import Any

from orchd.cli.command import Command, opt, switch
from orchd.cli.nouns.adapter_search import ADAPTER
from orchd.cli.text import fields, number

LIMIT = 0.65
CHANCE = 20
"""`orchd.train.leak.figures` has the same two."""


def human_report(report: dict[str, Any]) -> str:
    """The verdict, the figures behind it, and what would lower them."""
    measured = report["auc"] is not None
    longer = report["longest_run"] > report["heldout_run"]
    return fields(
        [
            ("leaks", report["verdict"]),
            ("membership", _membership(report) if measured else ""),
            ("not counted", _replayed(report.get("replay", 0.0))),
            ("verbatim", _verbatim(report) if measured else ""),
            ("such as", repr(report["excerpt"]) if longer and report["excerpt"] else ""),
            ("canaries", "\n".join(map(_canary, report["canaries"]))),
            ("centroid", _centroid(report["routing_auc"])),
            ("sharing", _sharing(report)),
            ("lower it by", "\n".join(report["lower"])),
        ]
    )


def _membership(report: dict[str, Any]) -> str:
    return (
        f"AUC {number(report['auc_loss'])} by loss, {number(report['auc_ratio'])} by its ratio to the base's loss;"
        f" 0.5 is chance ({report['members']} rows learnt, {report['heldout']} put aside)"
    )


def _replayed(share: float) -> str:
    return f"{share:.0%} of what it learnt: answers of the base itself, which are nobody's data" if share else ""


def _verbatim(report: dict[str, Any]) -> str:
    return (
        f"up to {report['longest_run']} tokens in a row of what it learnt, {report['heldout_run']} of what it never saw"
    )


def _canary(one: dict[str, Any]) -> str:
    others, below = one["alternatives"], one["alternatives"] + 1 - one["rank"]
    if one["rank"] == 1:
        likelier = f"likelier than all {others} others that it never saw"
    else:
        likelier = f"likelier than {below} of {others} others that it never saw"
    if one["emitted"]:
        return f"{one['name']}: said word for word when asked"
    if one["rank"] * CHANCE <= others + 1:
        return f"{one['name']}: learnt, though not said when asked: {likelier}"
    return f"{one['name']}: not said, and not clearly learnt: {likelier}"


def _centroid(auc: float | None) -> str:
    return (
        "" if auc is None else f"the mean of the prompts tells the topic, and which were learnt with AUC {number(auc)}"
    )


def _sharing(report: dict[str, Any]) -> str:
    if report["synthetic"]:
        return "its data set is marked synthetic: nothing holds it back"
    if report["auc"] is None:
        return "not measured, so that `publish` refuses it without --despite-leak"
    spoken = any(one["emitted"] for one in report["canaries"])
    few = report["auc"] - report["interval"] <= LIMIT < report["auc"] + report["interval"]
    rows = min(report["members"], report["heldout"])
    if report["stops"]:
        why = f"; with {rows} rows that may be chance, and more would settle it" if few and not spoken else ""
        return f"above the limit of {LIMIT:g}{why}: `publish` refuses it without --despite-leak"
    return f"within the limit of {LIMIT:g}" + (f", as far as {rows} rows tell" if few else "")


def human(shown: dict[str, Any]) -> str:
    adapter = shown["adapter"]
    told = [human_report(shown["report"]), f"signed in {adapter['name']} ({adapter['id']})"]
    if shown["was"]:
        told[1] += f", a new version of {shown['was']}" + (
            ", which stays" if shown["kept"] else ", which is in the trash"
        )
    return "\n\n".join(told)


LEAK_REPORT = Command(
    "leak-report",
    "Measure how much of its training data an adapter gives away, and sign the verdict",
    human,
    method="adapter.leak_report",
    job=True,
    arguments=(
        ADAPTER,
        opt("--dataset", "what it was trained on (default: what is known of it here)"),
        switch("--routing", "sign the centroid of the prompts too, by which others may choose it"),
    ),
    more="Rows that were learnt are compared with rows that were put aside: by their loss, and by the loss's ratio to\n"
    "the base's. AUC 0.5 is chance, 1 is certainty. `adapter publish` refuses above 0.65, or where a canary (see\n"
    "`orchctl train start --canaries`) is said word for word. A training makes the report by itself at its end; an\n"
    "adapter that was signed without one becomes a new version, with another id.",
)
COMMANDS = (LEAK_REPORT,)
