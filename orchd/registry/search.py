"""Search: one typed query, one SQL statement, pages by cursor.

A `Query` holds what people say (a base's name, levels of trust); `search` looks that up and `statement` makes SQL of
it, with every value as a parameter. What was measured decides its form: `list_contains` for each module instead of
`list_has_all` (a third of the time), no id read before the page is known (each costs more than all numbers of its
row), rows fetched by id then, no count of all hits; a word is looked for only where `trigrams` says that it may be
(with CASE, because DuckDB takes the search of the text for the cheaper condition).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from orchd.errors import BaseChanged, BaseUnknown, NotAverageable, ParamsInvalid
from orchd.identity import KEY_PREFIX
from orchd.records.ids import BASE, too_short
from orchd.registry import trigrams, versions
from orchd.registry.attested import Standing, standings
from orchd.registry.index import Cancel
from orchd.registry.rows import UNDER, AdapterRow
from orchd.registry.trust import View

if TYPE_CHECKING:
    from orchd.registry.registry import Registry

State = Literal["admitted", "quarantined", "removed"]
Level = Literal["self", "followed", "allowed", "stranger", "blocked"]
Sort = Literal["best", "newest", "received", "used", "name", "size", "rank", "attested", "loss", "exact_match"]
Word = Annotated[str, Meta(min_length=1, max_length=200)]
Words = Annotated[tuple[Word, ...], Meta(max_length=16)]
MAX_TERMS = 16
MAX_LIMIT = 500
#: More than any time in milliseconds: adapters whose name begins with the first word stand before the others.
BY_NAME = 1 << 60
MIN_PREFIX = len(BASE) + 4

#: By sort: what is compared, and whether more is first. Adapters without the figure come last either way.
SORTS: dict[str, tuple[str, bool]] = {
    "newest": ("created", True),
    "received": ("received", True),
    "used": ("used", True),
    "name": ("name", False),
    "size": ("size", False),
    "rank": ("adapter_rank", False),
    "loss": ("loss", False),
    "exact_match": ("exact_match", True),
}
METRICS = frozenset({"loss", "exact_match"})
#: Sorts by what many adapters have in common.
MUCH_ALIKE = frozenset({"name", "rank", "size"})


class Threshold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bound on the author's own measurement: `loss` in nats a token, `exact_match` from 0 to 1.

    An adapter without that measurement does not pass.
    """

    metric: Literal["loss", "exact_match"]
    at_least: float | None = None
    at_most: float | None = None


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to look for; everything given must hold.

    `text`: words that all stand in the name, tags, description or base's hint, as parts of words too. `base`: a
    base's name here, or its fingerprint or the beginning of one. `trust`: any of these levels. `modules`, `tags`: all
    of these. `author`: a key or the beginning of one, or `me`. `compatible_with`: an adapter that the found ones could
    be averaged with. Without `state` what was removed is left out. `sort`: `best` is those whose name begins with the
    first word, then the newest; `attested` by how much better than the base those you follow have measured it to be, at
    the lower end of the interval; `loss` and `exact_match` are the author's claims. `reverse` turns the order around.
    `cursor`: the `next` of the page before.
    """

    text: Annotated[str, Meta(max_length=1_000)] = ""
    base: Word | None = None
    min_rank: int | None = None
    max_rank: int | None = None
    modules: Words = ()
    licence: Word | None = None
    author: Word | None = None
    trust: tuple[Level, ...] = ()
    metrics: Annotated[tuple[Threshold, ...], Meta(max_length=16)] = ()
    tags: Words = ()
    topic: Word | None = None
    state: State | None = None
    compatible_with: Word | None = None
    sort: Sort = "best"
    reverse: bool = False
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT)] = 50
    cursor: Annotated[str, Meta(max_length=4_000)] | None = None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One page. `next` is the cursor of the next one, None on the last. `attested`: by id, what those whom this node
    follows have measured of adapters on the page."""

    adapters: list[AdapterRow]
    next: str | None
    attested: dict[str, Standing] = {}


class Meaning(msgspec.Struct, frozen=True, kw_only=True):
    """What the names in a query stand for: ids and keys as they are in the index.

    None does not restrict. `known` are all keys that this node has an opinion of, `trusted` those of the wanted
    levels; `strangers` are all others. `standings` are all that there are, where they are sorted by.
    """

    bases: tuple[str, ...] | None = None
    base_prefix: str | None = None
    authors: tuple[str, ...] | None = None
    author_prefix: str | None = None
    trusted: tuple[str, ...] | None = None
    strangers: bool = False
    known: tuple[str, ...] = ()
    mate: str | None = None
    standings: Mapping[str, Standing] = {}


def search(registry: Registry, query: Query, cancel: Cancel | None = None) -> Found:
    """A page of adapters that are here.

    Raises `ParamsInvalid`, `AdapterUnknown`, `AmbiguousId`, `NotAverageable`, or `ReadCancelled`.
    """
    meant = meaning(registry, query)
    found = registry.index.read(*statement(query, meant), cancel)
    if _tied(query, found) and query.sort not in MUCH_ALIKE:
        found = registry.index.read(*statement(query, meant, alike=True), cancel)
    page = found[: query.limit]
    after = _cursor(query, page[-1], tied=_tied(query, found)) if len(found) > query.limit else None
    ids = [id for id, _ in page]
    attested = standings(registry, registry.people.view(), ids)
    return Found(adapters=registry.rows_of(ids), next=after, attested=attested)


def _tied(query: Query, found: Sequence[tuple[Any, ...]]) -> bool:
    """Whether the page ends between two adapters that only their ids put in order."""
    return len(found) > query.limit and found[query.limit - 1][1] == found[query.limit][1]


# ---- from words to ids ----------------------------------------------------------------------------------------------


def meaning(registry: Registry, query: Query) -> Meaning:
    """Look up the names in a query."""
    view = registry.people.view()
    found = Meaning(standings=standings(registry, view) if query.sort == "attested" else {})
    if query.base is not None:
        found = _base(registry, found, query.base)
    if query.author is not None:
        found = _author(view, found, query.author)
    if query.trust:
        found = _trust(view, found, query.trust)
    if query.compatible_with is not None:
        found = _mate(registry, found, query.compatible_with)
    return found


def _base(registry: Registry, found: Meaning, text: str) -> Meaning:
    try:
        fingerprint = registry.base(text).fingerprint
    except (BaseUnknown, BaseChanged):
        if not text.startswith(BASE) or len(text) < MIN_PREFIX:
            raise
        if len(_linked(registry, text)) == 1:
            return msgspec.structs.replace(found, base_prefix=text)
        fingerprint = text
    return msgspec.structs.replace(found, bases=_linked(registry, fingerprint))


def _linked(registry: Registry, fingerprint: str) -> tuple[str, ...]:
    """All fingerprints of one base."""
    return tuple(sorted(registry.known_bases.same(fingerprint)))


def _author(view: View, found: Meaning, text: str) -> Meaning:
    key = view.me if text == versions.ME else text
    if len(key) >= versions.KEY_LENGTH:
        return msgspec.structs.replace(found, authors=tuple(sorted(view.keys_of(key))))
    if len(key) < versions.MIN_PREFIX:
        raise ParamsInvalid(too_short(text, KEY_PREFIX), field="author")
    return msgspec.structs.replace(found, author_prefix=key)


def _trust(view: View, found: Meaning, levels: Sequence[str]) -> Meaning:
    known = sorted({key for one in (view.me, *view.opinions) for key in view.keys_of(one)})
    trusted = tuple(key for key in known if view.level(key) in levels)
    return msgspec.structs.replace(found, trusted=trusted, strangers="stranger" in levels, known=tuple(known))


def _mate(registry: Registry, found: Meaning, text: str) -> Meaning:
    mate = registry.adapter(text)
    if "averageable" not in mate.capabilities:
        raise NotAverageable(f"{mate.name} ({mate.id}) can't be averaged with anything", field="compatible_with")
    same = _linked(registry, mate.base)
    bases = same if found.bases is None else tuple(base for base in found.bases if base in same)
    return msgspec.structs.replace(found, bases=bases, mate=mate.id)


# ---- from ids to SQL ------------------------------------------------------------------------------------------------


class _Where:
    """Conditions and their parameters, in step."""

    def __init__(self) -> None:
        self.conditions: list[str] = []
        self.values: list[Any] = []

    def add(self, condition: str, *values: Any) -> None:
        self.conditions.append(condition)
        self.values.extend(values)


def statement(query: Query, meant: Meaning, *, alike: bool = False) -> tuple[str, list[Any]]:
    """SQL for the ids of one page and one more, each with what it was sorted by, and the parameters.

    The order is by that, then by id. Unless `alike`, which of several adapters with the last value are on the page is
    left open.
    """
    where = _Where()
    _plain_filters(where, query)
    _looked_up_filters(where, meant)
    terms = terms_of(query.text)
    for term in terms:
        likely = trigrams.condition(term)
        where.add(
            f"CASE WHEN {likely} THEN contains(words, ?) ELSE false END" if likely else "contains(words, ?)", term
        )
    key, key_values, descending = _key(query, terms, meant.standings)
    if query.cursor is not None:
        _after(where, query, key, key_values, descending=descending)
    alike = alike or query.sort in MUCH_ALIKE
    direction = "DESC" if descending else "ASC"
    sql = (
        "SELECT a.digest, page.k FROM adapter a JOIN ("
        f"SELECT rowid AS r, {key} AS k FROM adapter WHERE {' AND '.join(where.conditions)}"
        f" ORDER BY k {direction}{f', digest {direction}' if alike else ''} LIMIT {query.limit + 1}"
        f") page ON a.rowid = page.r ORDER BY page.k {direction}, a.digest {direction}"
    )
    return sql, [*key_values, *where.values]


def _after(where: _Where, query: Query, key: str, key_values: Sequence[Any], *, descending: bool) -> None:
    """Only what comes after the cursor."""
    position, sign = _position(query), "<" if descending else ">"
    if position.tied:
        condition = f"({key}) {sign}= ? AND (({key}) {sign} ? OR digest {sign} ?)"
        where.add(condition, *key_values, position.value, *key_values, position.value, position.id)
    else:
        where.add(f"({key}) {sign} ?", *key_values, position.value)


def terms_of(text: str) -> list[str]:
    """The words to look for, in the form that the index has them in."""
    terms = list(dict.fromkeys(unicodedata.normalize("NFC", text).lower().split()))
    if len(terms) > MAX_TERMS:
        raise ParamsInvalid(f"{len(terms)} words; at most {MAX_TERMS} can be looked for", field="text")
    return terms


def _plain_filters(where: _Where, query: Query) -> None:
    if query.state is None:
        where.add("state <> 'removed'")
    else:
        where.add("state = ?", query.state)
    if query.licence is not None:
        where.add("lower(licence) = lower(?)", query.licence)
    if query.min_rank is not None:
        where.add("adapter_rank >= ?", query.min_rank)
    if query.max_rank is not None:
        where.add("adapter_rank <= ?", query.max_rank)
    for metric in query.metrics:
        if metric.at_least is None and metric.at_most is None:
            where.add(f"{metric.metric} IS NOT NULL")
        if metric.at_least is not None:
            where.add(f"{metric.metric} >= ?", metric.at_least)
        if metric.at_most is not None:
            where.add(f"{metric.metric} <= ?", metric.at_most)
    for module in query.modules:
        where.add("list_contains(modules, ?)", module)
    for tag in query.tags:
        where.add("list_contains(tags, ?)", tag)
    if query.topic is not None:
        where.add(UNDER.format("?"), query.topic)


def _looked_up_filters(where: _Where, meant: Meaning) -> None:
    if meant.bases is not None:
        where.add(f"base IN ({_marks(meant.bases)})" if meant.bases else "false", *meant.bases)
    if meant.base_prefix is not None:
        where.add("starts_with(base, ?)", meant.base_prefix)
    if meant.authors is not None:
        where.add(f"author IN ({_marks(meant.authors)})", *meant.authors)
    if meant.author_prefix is not None:
        where.add("starts_with(author, ?)", meant.author_prefix)
    if meant.trusted is not None and not meant.strangers:
        where.add("author IN (SELECT unnest(?::VARCHAR[]))", list(meant.trusted))
    elif meant.trusted is not None:
        others = sorted(set(meant.known) - set(meant.trusted))
        where.add("author NOT IN (SELECT unnest(?::VARCHAR[]))", others)
    if meant.mate is not None:
        where.add("digest <> ? AND list_contains(capabilities, 'averageable')", meant.mate)


def _key(query: Query, terms: Sequence[str], standings: Mapping[str, Standing]) -> tuple[str, list[Any], bool]:
    """What is sorted by, its parameters, and whether descending."""
    if query.sort == "attested":
        last = "infinity" if query.reverse else "-infinity"
        found = f"coalesce(list_extract(?::DOUBLE[], list_position(?::VARCHAR[], digest)), '{last}'::DOUBLE)"
        return found, [[one.low for one in standings.values()], list(standings)], not query.reverse
    if query.sort == "best":
        if not terms:
            return "created", [], not query.reverse
        return f"created + CASE WHEN starts_with(words, ?) THEN {BY_NAME} ELSE 0 END", [terms[0]], not query.reverse
    column, descending = SORTS[query.sort]
    descending ^= query.reverse
    if column in METRICS:
        return f"coalesce({column}, {'-' if descending else ''}'infinity'::DOUBLE)", [], descending
    return column, [], descending


def _marks(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))


# ---- pages ----------------------------------------------------------------------------------------------------------


def _fingerprint(query: Query) -> bytes:
    """Of everything that decides about order and hits: a cursor goes on with the same question only."""
    asked = msgspec.structs.replace(query, cursor=None, limit=1)
    return hashlib.sha256(msgspec.msgpack.encode(asked)).digest()[:8]


class _Position(msgspec.Struct, frozen=True, array_like=True):
    """The last adapter of a page: what it was sorted by, its id, and whether the next one has the same value."""

    query: bytes
    value: int | float | str
    id: str
    tied: bool


def _cursor(query: Query, last: tuple[Any, ...], *, tied: bool) -> str:
    id, value = last
    position = _Position(query=_fingerprint(query), value=value, id=id, tied=tied)
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(position)).decode().rstrip("=")


def _position(query: Query) -> _Position:
    text = query.cursor or ""
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        position = msgspec.msgpack.decode(packed, type=_Position)
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        raise ParamsInvalid(f"{text[:80]!r} is no cursor", hint=_PAGES, field="cursor") from None
    text_sorted = query.sort == "name"
    if position.query != _fingerprint(query) or isinstance(position.value, str) != text_sorted:
        raise ParamsInvalid("this cursor belongs to another query", hint=_PAGES, field="cursor")
    return position


_PAGES = "Take `next` of the page before, and ask for the same otherwise; without a cursor the first page comes."
