"""Computes anew what adapters may do here, after something was decided or received.

Most adapters have nothing against them. So only those are looked at that something could be said about, or that are
not admitted now.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from orchd.registry import revocation
from orchd.registry.index import Cursor, Index
from orchd.registry.standing import ADMITTED, Facts, StandingChange, standing

#: What is said of an adapter's files on this disk.
DAMAGED, MISSING = "damaged", "missing"


class Judges(Protocol):
    """What people think of authors, and which revocations hold. Texts are reasons, empty where there is none."""

    def level(self, author: str) -> str: ...

    def blocked(self, author: str) -> str: ...

    def equivocated(self, author: str) -> bool: ...

    def policy_reason(self, author: str, adapter: str) -> str: ...

    def revoked(self) -> Mapping[str, str]:
        """The reason for each adapter that its author has revoked, here or not."""
        ...

    def containing(self, ids: Collection[str]) -> Mapping[str, Sequence[str]]:
        """Which of `ids` each adapter contains that contains any."""
        ...


class _Now(NamedTuple):
    """An adapter as it stands in the index."""

    id: str
    name: str
    author: str
    state: str
    reason: str
    reasons: tuple[str, ...]
    released: bool
    trashed: bool
    rot: str


QUERY = """
WITH bad AS (
    SELECT a.digest AS id, min(r.what) AS what FROM (SELECT digest, unnest(blobs) AS blob FROM adapter) a
    JOIN rot r ON r.blob = a.blob GROUP BY a.digest)
SELECT a.digest, a.name, a.author, a.state, a.reason, coalesce(v.reasons, []), e.adapter IS NOT NULL,
    t.adapter IS NOT NULL, coalesce(bad.what, '')
FROM adapter a LEFT JOIN verdict v ON v.adapter = a.digest LEFT JOIN release e ON e.adapter = a.digest
LEFT JOIN trash t ON t.adapter = a.digest LEFT JOIN bad ON bad.id = a.digest
"""
SOME = QUERY + "WHERE a.digest IN (SELECT unnest($1::VARCHAR[]))"
SUSPECT = (
    QUERY + "WHERE a.state <> 'admitted' OR len(v.reasons) > 0 OR t.adapter IS NOT NULL OR bad.id IS NOT NULL"
    " OR a.author IN (SELECT unnest($2::VARCHAR[])) OR a.digest IN (SELECT unnest($1::VARCHAR[]))"
)


def changes(index: Index, judges: Judges, ids: Collection[str] | None) -> list[StandingChange]:
    """How the standing of `ids` (of all, when None) differs from what the index says."""
    revoked = judges.revoked()
    containing = _named(index, judges.containing(revoked.keys()))
    if ids is None:
        rows = index.read(SUSPECT, (sorted({*revoked, *containing}), _adverse_authors(index, judges)))
    else:
        rows = index.read(SOME, (sorted(ids),))
    found = []
    for row in map(_now, rows):
        after = standing(_facts(row, judges, revoked, containing))
        if (after.state, after.reason) != (row.state, row.reason):
            found.append(
                StandingChange(id=row.id, name=row.name, before=row.state, after=after.state, reason=after.reason)
            )
    return found


def beyond_release(index: Index, judges: Judges, id: str) -> str:
    """What keeps an adapter that is here out of use even when it is released by hand; empty when nothing does."""
    revoked = judges.revoked()
    (row,) = index.read(SOME, ([id],))
    facts = _facts(_now(row), judges, revoked, _named(index, judges.containing(revoked.keys())))
    after = standing(msgspec.structs.replace(facts, released=True))
    return "" if after.state == ADMITTED else after.reason


def apply(cursor: Cursor, found: Sequence[StandingChange]) -> None:
    cursor.execute(
        "UPDATE adapter SET state = n.state, reason = n.reason"
        " FROM (SELECT unnest($1::VARCHAR[]) AS id, unnest($2::VARCHAR[]) AS state, unnest($3::VARCHAR[]) AS reason) n"
        " WHERE digest = n.id",
        [[change.id for change in found], [change.after for change in found], [change.reason for change in found]],
    )


def _named(index: Index, containing: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The same with names beside the ids of what is contained."""
    if not containing:
        return {}
    told = revocation.named(index, {one for sources in containing.values() for one in sources})
    return {id: [told[one] for one in sources] for id, sources in containing.items()}


def _adverse_authors(index: Index, judges: Judges) -> list[str]:
    """Authors of whom not everything is let in."""
    authors = [row[0] for row in index.read("SELECT DISTINCT author FROM adapter")]
    return [
        author
        for author in authors
        if judges.blocked(author) or judges.equivocated(author) or judges.policy_reason(author, "")
    ]


def _now(row: tuple[Any, ...]) -> _Now:
    id, name, author, state, reason, reasons, released, trashed, rot = row
    return _Now(id, name, author, state, reason, tuple(reasons), released, trashed, rot)


def _facts(row: _Now, judges: Judges, revoked: Mapping[str, str], containing: Mapping[str, Sequence[str]]) -> Facts:
    return Facts(
        reasons=row.reasons,
        policy=judges.policy_reason(row.author, row.id),
        released=row.released,
        trashed=row.trashed,
        rot=f"a file of it is {row.rot} on this disk; `orchctl adapter fetch` gets it again" if row.rot else "",
        revoked=revoked.get(row.id, ""),
        contains_revoked=tuple(containing.get(row.id, ())),
        blocked=judges.blocked(row.author),
        equivocated=judges.equivocated(row.author),
    )
