"""What the user is told without asking: keys that changed, authors who contradict themselves, deployments that fell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchd.registry.registry import Registry
from orchd.registry.trust import View

ASK = "`orchctl trust list` tells more"
#: Kinds of event that the daemon's log warns of; `warning` puts them in words.
KINDS = ("author.key_changed", "author.equivocated", "adapter.revoked")


def warnings(registry: Registry) -> list[str]:
    """What the user should look into, in whole sentences. A changed key is told until something is decided about the
    new one; of strangers who have nothing here it is not told."""
    view = registry.people.view()
    if not (view.changes or view.equivocators):
        return []
    here = {row[0] for row in registry.index.read("SELECT DISTINCT author FROM adapter WHERE state <> 'removed'")}
    told = [
        f"{change.old} signs as {change.new} now; {ASK}, `orchctl trust follow|allow|block {change.new}` decides"
        for change in view.changes
        if change.old not in view.contested and change.new not in view.opinions and _concerns(view, change.old, here)
    ]
    liars = sorted(view.equivocators | view.contested)
    return told + [
        f"{author} has signed records that contradict each other; {ASK}"
        for author in liars
        if _concerns(view, author, here, mine=True)
    ]


def _concerns(view: View, author: str, here: set[str], *, mine: bool = False) -> bool:
    """Whether an author is one that was decided about or has adapters here, and not this node."""
    keys = view.keys_of(author)
    if view.same(author, view.me):
        return mine
    return bool(keys & view.opinions.keys() or keys & here)


def warning(kind: str, data: Mapping[str, Any]) -> str:
    """A line for the log, empty for what concerns nothing here."""
    match kind:
        case "author.key_changed":
            return f"KEY CHANGED: {data['old']} ({data['trust']}) signs as {data['new']} now; {ASK}"
        case "author.equivocated":
            return f"{data['author']} has signed records that contradict each other; {ASK}"
        case "adapter.revoked" if data["affected"]:
            reason = f" ({data['reason']})" if data["reason"] else ""
            reached = ", ".join(data.get("names", data["affected"]))
            return f"REVOKED by its author{reason}: {data['id']}; here it reaches {reached}"
    return ""
