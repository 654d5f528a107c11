"""Which signed records are here, and under which topics: what the network compares with other nodes. Synchronous.

Ids are the 32 bytes of a record's digest here, because that is what nodes compare; the index has them as text.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from typing import NamedTuple

from orchd.records import ids, text_id
from orchd.registry.announced import ANNOUNCEMENT
from orchd.registry.index import Cursor, Index
from orchd.registry.trust import ATTESTATION, REVOCATION, ROTATION

FEDERATION = "federation"
#: What an id in the table `news` may begin with.
PREFIXES = (ids.ANNOUNCEMENT, ids.REVOCATION, ids.ATTESTATION, ids.ROTATION, ids.FEDERATION)


class Told(NamedTuple):
    """A record that is here. `received_ms`: when it came, or was told under further topics."""

    received_ms: int
    id: bytes
    author: str
    topics: tuple[str, ...]


def since(index: Index, received_ms: int) -> tuple[list[Told], int]:
    """What came at that time or later, and how many records are here in all, both at one moment."""
    rows = index.read(
        "SELECT received, digest, author, topics FROM news WHERE received >= ?"
        " UNION ALL SELECT count(*), NULL, NULL, NULL FROM news",
        (received_ms,),
    )
    count = next(received for received, text, *_ in rows if text is None)
    return [
        Told(received, _digest(text), author, tuple(topics)) for received, text, author, topics in rows if text
    ], count


def has_adapters(index: Index) -> bool:
    return bool(index.read("SELECT 1 FROM adapter LIMIT 1"))


def envelopes(index: Index, digests: Sequence[bytes], topics: Sequence[str]) -> list[bytes]:
    """Those of these records that are here under any of `topics`."""
    names = [text_id(prefix, digest) for digest in digests for prefix in PREFIXES]
    rows = index.read(
        "SELECT envelope FROM news WHERE digest IN (SELECT unnest($1::VARCHAR[])) AND list_has_any(topics, $2)",
        (names, list(topics)),
    )
    return [bytes(envelope) for (envelope,) in rows]


def widen(index: Index, id: str, topics: Sequence[str], now_ms: int) -> None:
    """Somebody has told a record that is here, under `topics`: it goes to their members too.

    Only for kinds that name no topics themselves.
    """

    def change(cursor: Cursor) -> None:
        cursor.execute(
            "UPDATE news SET topics = list_sort(list_distinct(list_concat(topics, $2))), received = $3"
            " WHERE digest = $1 AND kind IN ($4, $5, $6) AND NOT list_has_all(topics, $2)",
            [id, list(topics), now_ms, REVOCATION, ATTESTATION, ROTATION],
        )

    index.write(change)


def forget(index: Index, count: int, spared: Collection[str]) -> int:
    """Make room: so many announcements of strangers are forgotten; how many were.

    Strangers are authors who are not `spared` and of whom no adapter is here. Who has announced the most loses the
    oldest first; among those with equally many, chance decides.
    """

    def change(cursor: Cursor) -> int:
        rows = cursor.execute(
            "SELECT digest FROM news WHERE kind IN ($1, $2) AND NOT list_contains($3::VARCHAR[], author)"
            " AND adapter NOT IN (SELECT digest FROM adapter) AND author NOT IN (SELECT author FROM adapter)"
            " ORDER BY row_number() OVER (PARTITION BY author ORDER BY received DESC) DESC, random() LIMIT $4",
            [ANNOUNCEMENT, FEDERATION, list(spared), count],
        ).fetchall()
        digests = [digest for (digest,) in rows]
        for table in ("news", "announcement"):
            cursor.execute(f"DELETE FROM {table} WHERE digest IN (SELECT unnest($1::VARCHAR[]))", [digests])
        return len(digests)

    return index.write(change)


def _digest(text: str) -> bytes:
    body = text.partition("_")[2].upper()
    return base64.b32decode(body + "=" * (-len(body) % 8))
