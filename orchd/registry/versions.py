"""Which adapters are versions of one another, and which of them is meant by `NAME@author`.

Versions are one person's: a manifest's `supersedes` counts only when it names an adapter of the same author, so that
nobody's adapter is replaced by somebody else's claim. `supersedes` decides, not the author's clock; adapters of one
name without it are told apart by when they were made.

A person is all keys that rotations join. What was removed is no version.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from orchd.errors import AdapterUnknown, AmbiguousId, ParamsInvalid
from orchd.identity import KEY_PREFIX
from orchd.records.ids import SHORTEST, too_short
from orchd.registry.index import Index
from orchd.registry.trust import View

ME = "me"
#: A key's text in whole; anything shorter is the beginning of one.
KEY_LENGTH = len(KEY_PREFIX) + 52
MIN_PREFIX = len(KEY_PREFIX) + SHORTEST


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


def older(index: Index, view: View, new: Made, author: str) -> list[Made]:
    """The versions here that `new` comes after, newest first; `new` itself need not be here."""
    others = [one for one in _made_by(index, view.keys_of(author)) if one.id != new.id]
    found = family([*others, new], names=[new.name], ids=[new.id])
    return found[found.index(new) + 1 :]


def newest(versions: Sequence[Made]) -> Made | None:
    """The newest admitted one of a family, in `family`'s order."""
    return next((one for one in versions if one.admitted), None)


def split(text: str) -> tuple[str, str] | None:
    """`NAME@author` as name and author, None for anything else. What looks like that is never taken as a name."""
    name, at, author = text.rpartition("@")
    return (name, author) if at and (author == ME or author.startswith(KEY_PREFIX)) else None


def versions(index: Index, view: View, id: str) -> list[Made]:
    """All versions of an adapter that are here, itself among them, newest first. Raises `AdapterUnknown`."""
    rows = index.read("SELECT name, author FROM adapter WHERE digest = ?", (id,))
    if not rows:
        raise AdapterUnknown(f"no adapter {id[:80]!r} is here", field="adapter")
    name, author = rows[0]
    return family(_made_by(index, view.keys_of(author)), names=[name], ids=[id])


def named(index: Index, view: View, name: str, author: str) -> str:
    """The id that `NAME@author` stands for: the newest admitted version.

    `author` is a key, the beginning of one, or `me`. Raises `AdapterUnknown`, `AmbiguousId` when the beginning fits
    several people, `ParamsInvalid`.
    """
    found = family(_made_by(index, _person(index, view, name, author)), names=[name])
    best = newest(found)
    if best is None:
        waiting = f" ({len(found)} in quarantine)" if found else ""
        raise AdapterUnknown(f"no admitted adapter {name[:80]!r} by {author[:80]} is here{waiting}", field="adapter")
    return best.id


def _person(index: Index, view: View, name: str, author: str) -> frozenset[str]:
    if author == ME or len(author) >= KEY_LENGTH:
        return view.keys_of(view.me if author == ME else author)
    if len(author) < MIN_PREFIX:
        raise ParamsInvalid(too_short(author, KEY_PREFIX), field="adapter")
    rows = index.read(
        "SELECT DISTINCT author FROM adapter WHERE name = ? AND starts_with(author, ?) AND state <> 'removed'",
        (name, author),
    )
    people = {view.keys_of(key) for (key,) in rows}
    if len(people) > 1:
        listed = ", ".join(sorted(key for (key,) in rows))
        raise AmbiguousId(f"{author!r} is the beginning of several authors of {name[:80]!r}: {listed}", field="adapter")
    return people.pop() if people else frozenset()


def _made_by(index: Index, keys: Iterable[str]) -> list[Made]:
    wanted = sorted(keys)
    rows = index.read(
        "SELECT digest, name, supersedes, created, received, state = 'admitted' FROM adapter"
        f" WHERE author IN ({', '.join('?' * len(wanted)) or 'NULL'}) AND state <> 'removed'",
        wanted,
    )
    return [
        Made(id=id, name=name, supersedes=supersedes, created=created, received=received, admitted=admitted)
        for id, name, supersedes, created, received, admitted in rows
    ]


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
