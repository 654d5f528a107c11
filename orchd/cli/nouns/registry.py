"""`orchctl registry`, `orchctl undo`."""

from __future__ import annotations

from typing import Any

from orchd.cli.command import Command, arg, switch
from orchd.cli.text import counted, fields, size, when


def human_stats(shown: dict[str, Any]) -> str:
    return fields(
        [
            ("admitted", shown["admitted"]),
            ("quarantined", shown["quarantined"]),
            ("in the trash", shown["removed"]),
            ("pinned", shown["pinned"]),
            ("blobs", f"{shown['blobs']}, {size(shown['blob_bytes'])} together"),
            ("quota", size(shown["quota_bytes"]) if shown["quota_bytes"] else "none (registry.quota_mb)"),
            ("damaged or missing", shown["rotten"]),
            ("index", size(shown["index_bytes"])),
            ("journal", size(shown["journal_bytes"])),
            ("newest backup", shown["backup"] or "none yet"),
            ("free on the disk", size(shown["free_bytes"])),
            ("at start", "\n".join(shown["notices"])),
        ]
    )


def human_collected(shown: dict[str, Any]) -> str:
    verb = "would be thrown away" if shown["dry_run"] else "thrown away"
    trash = [counted(len(shown["adapters"]), "adapter")]
    if shown["datasets"]:
        trash.append(counted(len(shown["datasets"]), "data set"))
    counts = f"{' and '.join(trash)} of the trash and {counted(shown['blobs'], 'blob')}"
    young = "\nbytes that came less than a day ago stay until then" if shown["adapters"] and not shown["blobs"] else ""
    return f"{counts} of {size(shown['bytes'])} {verb}{young}"


def human_scrubbed(shown: dict[str, Any]) -> str:
    found = [f"{counted(shown['blobs'], 'blob')} of {size(shown['bytes'])} read"]
    for what in ("damaged", "missing"):
        found.extend(_told(id, what, repaired=id in shown["repaired"]) for id in shown[what])
    if shown["mended"]:
        found.append(f"{counted(shown['mended'], 'blob')} whole again")
    if len(found) == 1:
        found.append("all are whole")
    return "\n".join(found)


def _told(id: str, what: str, *, repaired: bool) -> str:
    if repaired:
        return f"a file of {id} was {what}; a peer gave it again"
    return (
        f"a file of {id} is {what}, and no connected peer gives it, so the adapter is quarantined:\n"
        f"  `orchctl adapter fetch {id}` once one does, or `orchctl adapter import` a bundle of it"
    )


def human_rebuilt(shown: dict[str, Any]) -> str:
    return f"{counted(shown['put_back'], 'adapter')} put into the index, {shown['taken_out']} taken out of it"


def human_undone(shown: dict[str, Any]) -> str:
    word = "would take back" if shown["preview"] else "took back"
    about = map(_about, shown["keys"], shown["about"])
    told = [f"{word} `{_words(shown['act'])}` of {when(shown['done_ms'])}: {', '.join(about)}"]
    told += [f"passed over `{_words(act)}`: that was changed again since" for act in shown["passed_over"]]
    for row in shown["changed"]:
        because = f": {row['reason']}" if row["reason"] else ""
        told.append(f"{row['name']} is {row['state']}{because}")
    if more := shown["changed_in_all"] - len(shown["changed"]):
        told.append(f"and the standing of {more:,} more is as it was before")
    if shown["deployments"]:
        names = ", ".join(shown["deployments"])
        told.append(f"still with the plain base, until `orchctl deploy` is run again: {names}")
    return "\n".join(told)


def _about(key: str, name: str) -> str:
    return f"{name} ({key})" if key.startswith(("adp_", "dst_")) and name != key else name


def _words(act: str) -> str:
    """`adapter.remove adp_…` as the command is written."""
    return act.replace(".", " ", 1)


COMMANDS = (
    Command("stats", "How much is in the registry", human_stats, method="registry.stats"),
    Command(
        "scrub",
        "Hash every byte again; what is damaged is fetched again or quarantined",
        human_scrubbed,
        method="registry.scrub",
        job=True,
    ),
    Command(
        "gc",
        "Throw away the old part of the trash, and bytes that no adapter here needs any more",
        human_collected,
        method="registry.gc",
        arguments=(
            switch("--empty-trash", "also what was removed less than 30 days ago"),
            switch("--dry-run", "only say what would go", dest="preview"),
        ),
    ),
    Command(
        "rebuild", "Make the index again from what is on the disk", human_rebuilt, method="registry.rebuild", job=True
    ),
    Command(
        "backup",
        "Copy the index, as it is done every night",
        lambda shown: f"{shown['path']} ({size(shown['size'])})",
        method="registry.backup",
    ),
)
UNDO = Command(
    "undo",
    "Take back what was done last",
    human_undone,
    method="registry.undo",
    arguments=(
        arg("what", "only what was done to this: an adapter's name, an id or the beginning of one, a topic", nargs="?"),
        switch("--dry-run", "only say what would be taken back", dest="preview"),
    ),
    more="Once more takes back what was done before that. Removing, pinning, releasing, bases, deleted data sets,\n"
    "topics joined and left, and what was decided about authors and policies can be taken back; what peers sent, and\n"
    "what was signed, can not.",
)
