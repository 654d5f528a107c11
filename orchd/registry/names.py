"""The names of adapters by id, which is the digest of a manifest with the name in it: what was looked up stays true."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from orchd.errors import AmbiguousId
from orchd.registry.index import Index

#: Names kept in memory; above that they are looked up again.
KEPT = 10_000
SHOWN_KEY = 14  # characters of an author's key


class Names:
    """Safe to use from several threads."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._known: dict[str, str] = {}

    def of(self, ids: Sequence[str]) -> dict[str, str]:
        """The names of those that are here or were looked up before."""
        known = {id: name for id in ids if (name := self._known.get(id)) is not None}
        if unknown := [id for id in ids if id not in known]:
            marks = ", ".join("?" * len(unknown))  # each is looked up by its key then; a list would be a scan of all
            found = dict(self._index.read(f"SELECT digest, name FROM adapter WHERE digest IN ({marks})", unknown))
            if len(self._known) + len(found) > KEPT:
                self._known = {}
            self._known |= found
            known |= found
        return known


def ambiguous(name: str, rows: Sequence[tuple[str, str]], people: Collection[str]) -> AmbiguousId:
    """Several adapters have one name; `people` are who made them."""
    by = f"{name}@{rows[0][1][:SHOWN_KEY]}"
    if len(people) == 1:
        hint = f"{by} is the newest that is admitted, and `orchctl adapter versions {by}` lists all."
        ids = ", ".join(id for id, _ in rows)
        return AmbiguousId(
            f"{len(rows)} versions of {name!r} by one author are here: {ids}", hint=hint, field="adapter"
        )
    listed = ", ".join(f"{id} by {author[:SHOWN_KEY]}…" for id, author in rows)
    hint = f"Say whose, as in {by}, or give the id."
    return AmbiguousId(f"{len(rows)} adapters are called {name!r}: {listed}", hint=hint, field="adapter")
