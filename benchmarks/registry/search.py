"""Row `search-100k`: a page of 50 adapters out of 100,000, for a fixed mix of questions, in CPU milliseconds.

What is timed is what `adapter.search` does in the daemon: names looked up, the ids, the rows. The peer is the same
filter as plain SQL on an SQLite database without indexes and with the same columns, which gives ids only.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence

from benchmarks.registry import many
from benchmarks.report import Row, lower_is_better
from orchd.registry.local import put
from orchd.registry.local_rows import Trust
from orchd.registry.registry import Registry
from orchd.registry.search import Query, Threshold, search

GOAL_MS = 25.0
QUESTIONS, SEED, FOLLOWED = 300, 7, 100


def rows() -> list[Row]:
    with many.data_folder() as data:
        registry = Registry.open(data, lambda: many.NOW_MS, many.me().author)
        try:
            many.fill_announcements(registry)
            follow_some(registry)
            return [search_row(registry)]
        finally:
            registry.close()


def search_row(registry: Registry) -> Row:
    """Needs a registry with announcements and followed authors."""
    asked = mix(registry)
    ours = [cpu_ms(lambda query=query: search(registry, query)) for query in asked]  # type: ignore[misc]
    return lower_is_better(
        "search-100k",
        "ms",
        percentile(ours, 95),
        ("sqlite scan, ids only", percentile(_scans(registry, asked), 95)),
        ("p95 ≤ 25 ms CPU", GOAL_MS),
        p50=statistics.median(ours),
        worst=max(ours),
    )


def follow_some(registry: Registry) -> None:
    """A node that has opinions: a hundred authors are followed."""
    authors = registry.index.read(
        "SELECT author FROM adapter GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT ?", (FOLLOWED,)
    )
    rows = [
        Trust(subject=author, kind="author", verdict="follow", note="", auto_update=False, since=0)
        for (author,) in authors
    ]
    registry.local.act("trust.follow", *map(put, rows))
    registry.people.forget()
    registry.restand()


# ---- the mix --------------------------------------------------------------------------------------------------------


def mix(registry: Registry) -> list[Query]:
    """What people ask: mostly words or a base, with one to three filters; every third is somebody's second page."""
    rng = random.Random(SEED)
    sample = registry.index.read("SELECT digest, name, author, base, tags, words FROM adapter ORDER BY digest")
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
    id, name, author, base, tags, words = like
    assert isinstance(tags, list)
    first = rng.choice(str(words).split())
    query = rng.choice(
        [
            Query(text=first),
            Query(text=f"{first} {rng.choice(str(words).split())}"),
            Query(text=str(name)[:5]),
            Query(base=str(base)),
            Query(compatible_with=str(id)) if rng.random() < 0.5 else Query(base=str(base), text=first),
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
    import msgspec

    return msgspec.structs.replace(query, **changes)


# ---- the peer -------------------------------------------------------------------------------------------------------


def _scans(registry: Registry, asked: Sequence[Query]) -> list[float]:
    raise NotImplementedError


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
