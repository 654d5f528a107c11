"""Row `search-100k`: a page of 50 adapters out of 100,000, for a fixed mix of questions, in CPU milliseconds.

What is timed is what `adapter.search` does in the daemon: names looked up, the ids, the rows. The peer is the same
question in SQL to SQLite in memory, with indexes, which gives the ids only; both must find the same.
"""

from __future__ import annotations

import json
import random
import re
import sqlite3
import statistics
import time
from collections.abc import Callable, Sequence

import msgspec

from benchmarks.registry import indexed, many
from benchmarks.report import Row, lower_is_better
from orchd.registry.registry import Registry
from orchd.registry.search import Query, Threshold, meaning, search, statement

GOAL_MS = 25.0
QUESTIONS, SEED = 300, 7


def rows() -> list[Row]:
    registry = indexed.open_registry(indexed.home().data)
    try:
        return [search_row(registry)]
    finally:
        registry.close()


def search_row(registry: Registry) -> Row:
    """Needs a registry with announcements and followed authors."""
    asked = mix(registry)
    peer = Peer(registry)
    ours, theirs = list[float](), list[float]()
    for query in asked:
        agreed(registry, peer, query)
        ours.append(cpu_ms(lambda query=query: search(registry, query)))  # type: ignore[misc]
        said = peer.statement(query)
        theirs.append(cpu_ms(lambda said=said: peer.ids(*said)))  # type: ignore[misc]
    return lower_is_better(
        "search-100k",
        "ms",
        percentile(ours, 95),
        ("SQLite, ids only", percentile(theirs, 95)),
        ("p95 ≤ 25 ms CPU", GOAL_MS),
        p50=statistics.median(ours),
        worst=max(ours),
        peer_p50=statistics.median(theirs),
    )


# ---- the mix --------------------------------------------------------------------------------------------------------


def mix(registry: Registry) -> list[Query]:
    """What people ask: mostly words or a base, with one to three filters; every third is somebody's second page."""
    rng = random.Random(SEED)
    sample = registry.index.read(
        "SELECT digest, name, author, base, tags, words, capabilities FROM adapter ORDER BY digest"
    )
    asked = []
    for number in range(QUESTIONS):
        query = _question(rng, rng.choice(sample))
        page = search(registry, query)
        if number % 3 == 0 and page.next is not None:
            query = _with(query, cursor=page.next)
        asked.append(query)
    return asked


def _question(rng: random.Random, like: tuple[object, ...]) -> Query:
    """A question that this adapter is one of the answers to, as far as it goes."""
    id, name, author, base, tags, words, capabilities = like
    assert isinstance(tags, list)
    assert isinstance(capabilities, list)
    mates = "averageable" in capabilities and rng.random() < 0.5
    first = rng.choice(str(words).split())
    query = rng.choice(
        [
            Query(text=first),
            Query(text=f"{first} {rng.choice(str(words).split())}"),
            Query(text=str(name)[:5]),
            Query(base=str(base)),
            Query(compatible_with=str(id)) if mates else Query(base=str(base), text=first),
            Query(author=str(author)),
            Query(tags=(str(tags[0]),)) if tags else Query(text=first),
            Query(topic=f"topic/{rng.randrange(many.TOPICS)}"),
        ]
    )
    for _ in range(rng.randrange(3)):
        query = _with(query, **rng.choice(_FURTHER))
    return query


_FURTHER: tuple[dict[str, object], ...] = (
    {"min_rank": 8, "max_rank": 32},
    {"modules": ("q_proj", "v_proj")},
    {"modules": ("down_proj", "gate_proj", "up_proj")},
    {"licence": "Apache-2.0"},
    {"trust": ("self", "followed")},
    {"trust": ("stranger",)},
    {"metrics": (Threshold(metric="loss", at_most=1.5),), "sort": "loss"},
    {"metrics": (Threshold(metric="exact_match", at_least=0.8),), "sort": "exact_match"},
    {"state": "admitted"},
    {"sort": "size"},
    {"sort": "name"},
)


def _with(query: Query, **changes: object) -> Query:
    return msgspec.structs.replace(query, **changes)


# ---- the peer -------------------------------------------------------------------------------------------------------

PEER_COLUMNS = (
    "digest", "name", "author", "base", "adapter_rank", "modules", "licence", "tags", "size", "created", "words",
    "loss", "exact_match", "capabilities", "received", "state", "used", "topics",
)  # fmt: skip
#: What SQLite says in another way. A list is text there, with a comma before and after each part.
_OTHER_WORDS = (
    (re.compile(r"CASE WHEN [^?]+ THEN (contains\(words, \?\)) ELSE false END"), r"\1"),
    (re.compile(r"list_contains\((\w+), (\?|'\w+')\)"), r"instr(\1, ',' || \2 || ',') > 0"),
    (re.compile(r"contains\((\w+), \?\)"), r"instr(\1, ?) > 0"),
    (re.compile(r"contains\(topics, (chr\(10\) \|\| \? \|\| chr\(10\))\)"), r"instr(topics, \1) > 0"),
    (re.compile(r"chr\("), "char("),
    (re.compile(r"starts_with\((\w+), \?\)"), r"instr(\1, ?) = 1"),
    (re.compile(r"SELECT unnest\(\?::VARCHAR\[\]\)"), "SELECT value FROM json_each(?)"),
    (re.compile(r"'infinity'::DOUBLE"), "9e999"),
)


class Peer:
    """The same columns in SQLite in memory, with the indexes that anybody would make, without what is only shown."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._sqlite = sqlite3.connect(":memory:")
        self._sqlite.execute(f"CREATE TABLE adapter({', '.join(PEER_COLUMNS)})")
        rows = registry.index.stream(f"SELECT {', '.join(PEER_COLUMNS)} FROM adapter")
        self._sqlite.executemany(
            f"INSERT INTO adapter VALUES ({', '.join('?' * len(PEER_COLUMNS))})",
            ([f",{','.join(value)}," if isinstance(value, list) else value for value in row] for row in rows),
        )
        for column in ("digest", "author", "base", "created"):
            self._sqlite.execute(f"CREATE INDEX by_{column} ON adapter({column})")
        self._sqlite.execute("ANALYZE")

    def statement(self, query: Query) -> tuple[str, list[object]]:
        sql, values = statement(query, meaning(self._registry, query), alike=True)
        for ours, theirs in _OTHER_WORDS:
            sql = ours.sub(theirs, sql)
        return sql, [json.dumps(value) if isinstance(value, list) else value for value in values]

    def ids(self, sql: str, values: list[object]) -> list[str]:
        return [row[0] for row in self._sqlite.execute(sql, values)]


def agreed(registry: Registry, peer: Peer, query: Query) -> None:
    """Both must find the same, or the figures compare nothing."""
    ours = [row.id for row in search(registry, query).adapters]
    theirs = peer.ids(*peer.statement(query))[: query.limit]
    if ours != theirs:
        raise AssertionError(f"{query}: {len(ours)} found, and {len(theirs)} by SQLite")


def cpu_ms(work: Callable[[], object]) -> float:
    """Of all threads of this process; the smaller of two times, the first of which warms up."""
    taken = []
    for _ in range(2):
        begun = time.process_time()
        work()
        taken.append((time.process_time() - begun) * 1e3)
    return min(taken)


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]
