"""Which signed records are here, by topic, in memory: what gossip and repair ask at every message.

The registry's index is the truth. It is read anew before it matters, from where it was read last; when it has lost
records meanwhile (it was made again from the journal), all of it is.
"""

from __future__ import annotations

from collections import Counter

import trio

from orchd.net.policy.repair import Ids
from orchd.registry import told
from orchd.registry.registry import Registry


class Known:
    """Call `refresh` first."""

    def __init__(self, registry: Registry) -> None:
        self._index = registry.index
        self._lock = trio.Lock()
        self._read_to_ms = 0
        self._topics: dict[bytes, tuple[str, ...]] = {}
        self._ids: dict[str, Ids] = {}
        self._authors: Counter[str] = Counter()

    def __contains__(self, id: bytes) -> bool:
        return id in self._topics

    def __len__(self) -> int:
        return len(self._topics)

    def ids(self, topic: str) -> Ids:
        """What is here under a topic."""
        return self._ids.get(topic) or Ids()

    def heard_of(self, author: str) -> bool:
        """Whether a record of this author is here."""
        return author in self._authors

    def of_author(self, author: str) -> int:
        """How many records of this author are here."""
        return self._authors.get(author, 0)

    def came(self, id: bytes, author: str, topics: tuple[str, ...]) -> None:
        """A record has just been kept. The next `refresh` finds it, too."""
        self._add([told.Told(self._read_to_ms, id, author, topics)])

    async def refresh(self) -> None:
        """Learn what has come since the last time."""
        async with self._lock:
            rows, count = await trio.to_thread.run_sync(told.since, self._index, self._read_to_ms)
            self._add(rows)
            if len(self._topics) != count:
                self._topics, self._ids, self._authors = {}, {}, Counter()
                rows, _ = await trio.to_thread.run_sync(told.since, self._index, 0)
                self._add(rows)

    def _add(self, rows: list[told.Told]) -> None:
        fresh: dict[str, list[bytes]] = {}
        for row in rows:
            before = self._topics.get(row.id, ())
            for gone in set(before).difference(row.topics):
                self._ids[gone].discard(row.id)
            for name in set(row.topics).difference(before):
                fresh.setdefault(name, []).append(row.id)
            self._authors[row.author] += row.id not in self._topics
            self._topics[row.id] = row.topics
            self._read_to_ms = max(self._read_to_ms, row.received_ms)
        for name, ids in fresh.items():
            self._put(name, ids)

    def _put(self, name: str, ids: list[bytes]) -> None:
        there = self._ids.get(name)
        if there is None:
            self._ids[name] = Ids(ids)
            return
        for id in ids:
            there.add(id)
