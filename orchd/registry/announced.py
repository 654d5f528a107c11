"""Announcements as rows, many at once: most of what a record costs is a statement, and one takes all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from orchd.records import Announcement, Verified, text_id
from orchd.records.ids import ADAPTER, BASE
from orchd.registry.index import Cursor, Index
from orchd.registry.rows import TOPICS
from orchd.registry.trust import ATTESTATION, REVOCATION

ANNOUNCEMENT = "announcement"
#: Announcements of one statement: each of its values is a parameter.
AT_ONCE = 64


class Told(NamedTuple):
    """An announcement and the peer who told it."""

    record: Verified[Announcement]
    peer: str

    @property
    def adapter(self) -> str:
        return text_id(ADAPTER, self.record.record.manifest)


class Here(NamedTuple):
    """Which of some announcements are here, and which numbers their authors have used, as far as that was asked."""

    known: frozenset[str]
    numbers: frozenset[tuple[str, int]]


def here(index: Index, told: Sequence[Told]) -> Here:
    """Of at most `AT_ONCE` announcements."""
    records = [one.record for one in told]
    ids, authors, numbers = (_marks(len(told), start) for start in range(1, 3 * len(told) + 1, len(told)))
    rows = index.read(
        "SELECT digest, author, seq FROM announcement"
        f" WHERE digest IN ({ids}) OR (author IN ({authors}) AND seq IN ({numbers}))",
        [
            *(record.id for record in records),
            *(record.author for record in records),
            *(record.record.seq for record in records),
        ],
    )
    return Here(
        known=frozenset(digest for digest, _, _ in rows),
        numbers=frozenset((author, seq) for _, author, seq in rows),
    )


def insert(cursor: Cursor, told: Sequence[Told], now_ms: int) -> None:
    """Rows of announcements that are not here, inside a `write`."""
    rows, news = [], []
    for one in told:
        record, adapter = one.record.record, one.adapter
        rows += [one.record.id, adapter, list(record.topics), one.record.author, record.seq, record.size,
                 text_id(BASE, record.base), one.peer, record.created_ms, now_ms, one.record.envelope]  # fmt: skip
        news += [one.record.id, ANNOUNCEMENT, adapter, one.record.author, list(record.topics), now_ms,
                 one.record.envelope]  # fmt: skip
    cursor.execute(f"INSERT INTO announcement VALUES {_rows(len(told), 11)}", rows)
    cursor.execute(f"INSERT INTO news VALUES {_rows(len(told), 7)}", news)
    adapters = _marks(len(told), 1)
    found = cursor.execute(
        f"SELECT digest FROM adapter WHERE digest IN ({adapters})"
        f" UNION ALL SELECT adapter FROM received WHERE adapter IN ({adapters})",
        [one.adapter for one in told],
    ).fetchall()
    concerned = {id for (id,) in found}
    for one in told:
        if one.adapter in concerned:
            refresh_topics(cursor, one.adapter)
            widen(cursor, one.adapter, one.record.record.topics, now_ms)


def refresh_topics(cursor: Cursor, adapter: str) -> None:
    """The topics of an adapter's row are those of its announcements."""
    cursor.execute(f"UPDATE adapter SET topics = {TOPICS} WHERE digest = $1", [adapter])


def widen(cursor: Cursor, adapter: str, topics: Sequence[str], now_ms: int) -> None:
    """An adapter was announced under further topics: what was said of it concerns them too, and is told again there."""
    rows = cursor.execute(
        "SELECT digest, kind, author, topics, envelope FROM news WHERE adapter = $1 AND kind IN ($2, $3)"
        " AND NOT list_has_all(topics, $4)",
        [adapter, REVOCATION, ATTESTATION, list(topics)],
    ).fetchall()
    for digest, kind, author, before, envelope in rows:
        wider = list(dict.fromkeys((*before, *topics)))
        cursor.execute("DELETE FROM news WHERE digest = ?", [digest])
        cursor.execute(
            "INSERT INTO news VALUES (?, ?, ?, ?, ?, ?, ?)", [digest, kind, adapter, author, wider, now_ms, envelope]
        )


def _marks(count: int, start: int) -> str:
    return ", ".join(f"${number}" for number in range(start, start + count))


def _rows(count: int, width: int) -> str:
    return ", ".join([f"({', '.join('?' * width)})"] * count)
