"""The names of adapters by id, which is the digest of a manifest with the name in it: what was looked up stays true."""

from __future__ import annotations

from collections.abc import Sequence

from orchd.registry.index import Index

#: Names kept in memory; above that they are looked up again.
KEPT = 10_000


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
