"""The newest of what is here and of what peers offer: so many, and how many there are in all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from orchd.registry.rows import UNDER, AdapterRow, AnnouncementRow

if TYPE_CHECKING:
    from orchd.registry.registry import Registry

HERE = (
    "FROM adapter WHERE CASE WHEN $1 IS NULL THEN state <> 'removed' ELSE state = $1 END"
    f" AND ($2 IS NULL OR {UNDER.format('$2')})"
)
#: The newest announcement of each adapter that is not here.
OFFERED = (
    "FROM (SELECT arg_max(n.digest, n.created) AS digest, max(n.created) AS created FROM announcement n"
    " ANTI JOIN adapter a ON a.digest = n.adapter WHERE ($1 IS NULL OR list_contains(n.topics, $1)) GROUP BY n.adapter)"
)


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """Newest first. `here` and `offered` say how many there are in all."""

    adapters: list[AdapterRow]
    here: int
    announced: list[AnnouncementRow]
    offered: int


def newest(registry: Registry, *, state: str | None, topic: str | None, limit: int) -> Listed:
    """At most `limit` of each; `state` and `topic` (None: any) are for what is here, `topic` for offers too."""
    read = registry.index.read
    ids = read(f"SELECT digest {HERE} ORDER BY created DESC, digest LIMIT $3", (state, topic, limit))
    [(here,)] = read(f"SELECT count(*) {HERE}", (state, topic))
    offers = read(f"SELECT digest {OFFERED} ORDER BY created DESC, digest LIMIT $2", (topic, limit))
    [(offered,)] = read(f"SELECT count(*) {OFFERED}", (topic,))
    return Listed(
        adapters=registry.rows_of([id for (id,) in ids]),
        here=here,
        announced=registry.announcements(digests=[digest for (digest,) in offers]),
        offered=offered,
    )


def offered(registry: Registry, prefix: str) -> list[str]:
    """Adapters that peers offer whose id begins so."""
    rows = registry.index.read("SELECT DISTINCT adapter FROM announcement WHERE starts_with(adapter, ?)", (prefix,))
    return [id for (id,) in rows]
