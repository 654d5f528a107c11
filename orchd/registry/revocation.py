"""What a revocation reaches: the adapter itself, and everything that contains it.

"Contains" follows every edge of the lineage: leaves of an average, the adapter that training went on from, the one
that an increment is relative to, and a round's previous global. Cycles and forged parents only add edges: each adapter
is visited once. A revocation counts when it comes from the adapter's author, under whichever of their keys; of an
adapter that is not here that is known only once somebody has shown its signed manifest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from orchd.records import Revocation, verify
from orchd.registry.index import Index
from orchd.registry.trust import MANIFEST, REVOCATION, View

#: Pairs of (who contains, what is contained). UNION, not UNION ALL: a cycle ends there.
_CONTAINING = """
WITH RECURSIVE up(id, source) AS (
    SELECT DISTINCT child, parent FROM edge WHERE parent IN (SELECT unnest($1::VARCHAR[]))
    UNION
    SELECT e.child, up.source FROM edge e JOIN up ON e.parent = up.id)
SELECT id, list_sort(list(source)) FROM up WHERE id <> source GROUP BY id
"""

#: Revocations beside who is known to have made the adapter: from its row, or from a manifest that a peer showed.
_REVOCATIONS = """
SELECT r.adapter, r.author, coalesce(a.author, m.author), r.envelope FROM received r
LEFT JOIN adapter a ON a.digest = r.adapter
LEFT JOIN (SELECT adapter, author FROM received WHERE kind = $2) m ON m.adapter = r.adapter
WHERE r.kind = $1 ORDER BY r.since, r.digest
"""

_CLAIMS = """
SELECT r.adapter, n.author, r.author, r.envelope FROM received r JOIN announcement n ON n.adapter = r.adapter
WHERE r.kind = $1 ORDER BY r.since, r.digest
"""

#: Revoked adapters that are not here, that something here contains, and whose author is not known.
_UNPROVEN = """
SELECT DISTINCT r.adapter FROM received r JOIN edge e ON e.parent = r.adapter
WHERE r.kind = $1 AND NOT EXISTS (SELECT 1 FROM adapter a WHERE a.digest = r.adapter)
AND NOT EXISTS (SELECT 1 FROM received m WHERE m.kind = $2 AND m.adapter = r.adapter) ORDER BY 1
"""


def revoked(index: Index, view: View) -> dict[str, str]:
    """What their authors have revoked, with what they said, by id; also of adapters that are not here."""
    found: dict[str, str] = {}
    for adapter, revoker, author, envelope in index.read(_REVOCATIONS, (REVOCATION, MANIFEST)):
        if author is not None and adapter not in found and view.same(author, revoker):
            found[adapter] = _said(bytes(envelope))
    return found


def claimed(index: Index, view: View) -> dict[str, str]:
    """Announced adapters that everybody who announces them says to have revoked, with what one of them said, by id.

    That is no proof: whoever announces an adapter may not have made it. One announcer without revocation is enough
    to leave it out, so that nobody can make another's adapter look revoked.
    """
    rows = index.read(_CLAIMS, (REVOCATION,))
    announcers: dict[str, set[str]] = {}
    revokers: dict[str, dict[str, bytes]] = {}
    for adapter, announcer, revoker, envelope in rows:
        announcers.setdefault(adapter, set()).add(announcer)
        revokers.setdefault(adapter, {}).setdefault(revoker, bytes(envelope))
    return {
        adapter: _said(next(iter(revokers[adapter].values())), "whoever announced it")
        for adapter, keys in announcers.items()
        if all(any(view.same(key, revoker) for revoker in revokers[adapter]) for key in keys)
    }


def of(index: Index, view: View, adapter: str, author: str) -> str:
    """What this author said when revoking this adapter, empty when they have not."""
    rows = index.read(
        "SELECT author, envelope FROM received WHERE kind = ? AND adapter = ? ORDER BY since, digest",
        (REVOCATION, adapter),
    )
    return next((_said(bytes(envelope)) for revoker, envelope in rows if view.same(author, revoker)), "")


def _said(envelope: bytes, who: str = "its author") -> str:
    reason = verify(envelope, Revocation).record.reason.strip()
    return f"revoked by {who}" + (f": {reason[:200]}" if reason else "")


def containing(index: Index, ids: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """Who contains any of these adapters, and which of them. The adapters themselves are not among the keys, unless
    they contain another one."""
    if not ids:
        return {}
    return {id: tuple(sources) for id, sources in index.read(_CONTAINING, (sorted(ids),))}


def named(index: Index, ids: Collection[str]) -> dict[str, str]:
    """How adapters are told of: those that are here with their name, others by their id alone."""
    rows = index.read("SELECT digest, name FROM adapter WHERE digest IN (SELECT unnest($1::VARCHAR[]))", (sorted(ids),))
    return {id: id for id in ids} | {id: f"{name} ({id})" for id, name in rows}


def unproven(index: Index) -> list[str]:
    """Ids whose signed manifest would tell whether a revocation that was received concerns what is here."""
    return [row[0] for row in index.read(_UNPROVEN, (REVOCATION, MANIFEST))]
