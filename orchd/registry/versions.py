"""Which adapters are versions of one another, and which of them is meant by `NAME@author`. Pure.

Versions are one person's: a manifest's `supersedes` counts only when it names an adapter of the same author, so that
nobody's adapter is replaced by somebody else's claim. `supersedes` decides, not the author's clock; adapters of one
name without it are told apart by when they were made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter of a person, as far as versions go. Times in milliseconds since 1970."""

    id: str
    name: str
    supersedes: str | None
    created: int
    received: int
    admitted: bool


def family(made: Sequence[Made], names: Iterable[str] = (), ids: Iterable[str] = ()) -> list[Made]:
    """All versions of what has one of these names or ids, among the adapters of one person; newest first.

    What a version supersedes is one too, and what supersedes it, whatever they are called.
    """
    by_id = {one.id: one for one in made}
    next_ones = defaultdict(list)
    for one in made:
        if one.supersedes is not None:
            next_ones[one.supersedes].append(one.id)
    wanted, named = set(ids), set(names)
    waiting = [one.id for one in made if one.id in wanted or one.name in named]
    found: dict[str, Made] = {}
    while waiting:
        one = by_id[waiting.pop()]
        if one.id in found:
            continue
        found[one.id] = one
        waiting += next_ones[one.id]
        if one.supersedes in by_id:
            waiting.append(one.supersedes)
    return _newest_first(found)


def newest(versions: Sequence[Made]) -> Made | None:
    """The newest admitted one of a family, in `family`'s order."""
    return next((one for one in versions if one.admitted), None)


def _newest_first(found: Mapping[str, Made]) -> list[Made]:
    """No version stands after one that it supersedes; otherwise later made ones stand first."""
    generation: dict[str, int] = {}
    for id in found:
        _count(id, found, generation)
    latest = {id: (one.created, one.received, id) for id, one in found.items()}
    for one in sorted(found.values(), key=lambda one: generation[one.id]):
        if one.supersedes in latest:  # an author's clock that was set back hides no newer version
            latest[one.id] = max(latest[one.id], latest[one.supersedes])
    order = sorted(found, key=lambda id: (latest[id], generation[id]), reverse=True)
    return [found[id] for id in order]


def _count(id: str, found: Mapping[str, Made], generation: dict[str, int]) -> None:
    """How many versions an adapter replaces in a row. A ring, which digests rule out, is cut."""
    chain: dict[str, None] = {}
    at: str | None = id
    while at is not None and at in found and at not in generation and at not in chain:
        chain[at] = None
        at = found[at].supersedes
    before = generation.get(at, -1) if at is not None else -1
    for number, one in enumerate(reversed(chain), before + 1):
        generation[one] = number
