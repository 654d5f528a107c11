"""Why an adapter may not be used, said with the step that helps."""

from __future__ import annotations

from orchd.errors import NotAdmitted
from orchd.registry.registry import Registry
from orchd.registry.rows import AdapterRow
from orchd.registry.standing import REMOVED


def not_admitted(registry: Registry, row: AdapterRow, field: str = "adapter") -> NotAdmitted:
    """The refusal of an adapter that is not admitted. `field` is the parameter that named it."""
    if row.state == REMOVED:
        hint: str | None = f"`orchctl undo {row.id}` brings it back."
        return NotAdmitted(f"{row.name} ({row.id}) was removed, and lies in the trash", hint=hint, field=field)
    against = registry.people.against([row.id]).get(row.id)
    reason = f"{row.name} ({row.id}) is quarantined: {against or row.reason}"
    return NotAdmitted(reason, hint=None if against is None else against_hint(registry, row.id), field=field)


def against_hint(registry: Registry, id: str) -> str:
    """The next step where something is against an adapter that no release lifts."""
    author = next((row.author for row in registry.rows_of([id])), "")
    if registry.people.revocation(id, author):
        return "No command here lets it out: its author has revoked it, for good."
    if registry.people.blocked(author):
        return f"`orchctl trust remove {author}` lifts the block."
    if registry.people.equivocated(author):
        return "No command here lets it out: its author has signed two records that contradict each other."
    return "No command here lets it out: what an author has revoked stays out, and so does what contains it."
