"""`orchctl adapter revoke|attest|cosign`."""

from __future__ import annotations

from typing import Any

from orchd.cli.command import Command, opt, switch
from orchd.cli.nouns.adapter_search import ADAPTER
from orchd.cli.text import fields, number, percent, table


def human_revoked(shown: dict[str, Any]) -> str:
    rows = [(one["name"], one["state"], one["id"]) for one in shown["affected"]]
    name, id = shown["adapter"]["name"], shown["adapter"]["id"]
    done = f"revoked {name} ({id}) for good, and told its topics; {shown['revocation']}"
    return "\n".join(
        [
            f"would revoke {name} ({id}) for good, everywhere: there is no undo" if shown["preview"] else done,
            "",
            table(("here it reaches", "state", "id"), rows),
            f"deployments that fall back to the base: {', '.join(shown['deployments']) or 'none'}",
        ]
    )


def human_attested(shown: dict[str, Any]) -> str:
    as_text = number if shown["metric"] == "loss" else percent
    figure = f"{as_text(shown['value'])} ± {as_text(shown['interval'])}, the base {as_text(shown['base_value'])}"
    return fields(
        [
            ("attested", f"{shown['adapter']['name']} ({shown['adapter']['id']})"),
            (shown["metric"], f"{figure} ({shown['examples']} examples)"),
            ("signed as", shown["attestation"]),
        ]
    )


COMMANDS = (
    Command(
        "revoke",
        "Take an adapter of this node back, everywhere and for good",
        human_revoked,
        method="adapter.revoke",
        for_good="Every node that hears of it takes the adapter out of use, and what contains it; nothing undoes that.",
        arguments=(
            ADAPTER,
            opt("--reason", "is signed and told to everybody"),
            switch("--dry-run", "only say which adapters and deployments here it would reach", dest="preview"),
        ),
        more="Whoever has it, or what was averaged or trained from it, puts that into quarantine and deploys the\n"
        "base instead. Nothing undoes it: whoever was wrong makes the adapter again, under another id.",
    ),
    Command(
        "attest",
        "Measure somebody's adapter on data of one's own, and sign the figure",
        human_attested,
        method="adapter.attest",
        job=True,
        arguments=(
            ADAPTER,
            opt("--dataset", "what to measure on; it stays here", required=True),
            opt("--metric", "which figure (loss)", choices=("loss", "exact_match")),
            opt("--split", "which part (test)", choices=("train", "validation", "test")),
        ),
        more="Figures are rounded to hundredths and the number of examples to fives or more: they tell nothing of\n"
        "single rows. They are told under the adapter's topics. Those who follow you find the adapter by them\n"
        "(`orchctl adapter search --sort attested`), and may want such figures before it is\n"
        "let in (`orchctl trust policy --attestations`). `orchctl adapter show` lists all that were heard of.",
    ),
    Command(
        "cosign",
        "Sign an adapter's manifest too, beside its author",
        lambda shown: (
            f"{shown['adapter']['name']} is co-signed by {', '.join(shown['cosigners'])};\n"
            "whoever fetches it from this node from now on sees that"
        ),
        method="adapter.cosign",
        changes=True,
        subject=("adapter.show", "adapter"),
        arguments=(ADAPTER,),
    ),
)
