"""Signed records that nodes tell each other besides manifests: what is kept of them, and in which order they came.

Announcements of others are kept in the index alone, since the network tells them again. Revocations, attestations, key
rotations and proofs of equivocation are journalled first. What concerns an adapter goes to everybody who has heard of
that adapter, or of one that contains it, under any topic.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from orchd.identity import author_text
from orchd.records import (
    Announcement,
    Attestation,
    Federation,
    KeyRotation,
    Manifest,
    Record,
    Revocation,
    Verified,
    text_id,
    verify,
)
from orchd.records.ids import ADAPTER, BASE
from orchd.registry import announced
from orchd.registry.announced import ANNOUNCEMENT, Told
from orchd.registry.index import Cursor
from orchd.registry.local import put
from orchd.registry.local_rows import OwnAnnouncement, Received
from orchd.registry.revocation import containing, named
from orchd.registry.trust import ATTESTATION, EQUIVOCATION, MANIFEST, REVOCATION, ROTATION

if TYPE_CHECKING:
    from orchd.registry.registry import Registry

FEDERATION = "federation"
#: A record may be dated this far in the future, in milliseconds. Revocations are taken however they are dated.
CLOCK_WINDOW_MS = 10 * 60 * 1000
#: Records kept that one author, and all together, have sent about adapters and authors of which nothing is here.
UNKNOWN_OF_ONE, UNKNOWN_IN_ALL = 200, 10_000
#: Attestations kept of one author, whatever they are about.
ATTESTATIONS_OF_ONE = 2_000
#: What the journal tells of records of three kinds that are no news, as news again. Without their topics they go under
#: those of this node's announcements.
_FILL = """
INSERT INTO news SELECT r.digest, r.kind, r.adapter, r.author,
    CASE WHEN len(r.topics) > 0 THEN r.topics ELSE coalesce((
        SELECT list_sort(list_distinct(flatten(list(n.topics)))) FROM announcement n
        WHERE n.adapter = r.adapter OR (r.kind = $3 AND n.author = r.author)), []) END,
    r.since, r.envelope
FROM received r WHERE r.kind IN ($1, $2, $3) ON CONFLICT DO NOTHING
"""


class Heard(NamedTuple):
    """A record, the peer who told it, and topics for what concerns nothing that was announced here: those that are
    shared with the peer."""

    record: Verified[Record]
    peer: str
    topics: tuple[str, ...] = ()


class Item(NamedTuple):
    """A signed record, the topics whose members are told of it, and those of them that it names itself (none where it
    names no topics). Half of a proof of equivocation concerns topics that only the other half names."""

    envelope: bytes
    topics: tuple[str, ...]
    named: tuple[str, ...] = ()


class Taken(NamedTuple):
    """What came of a record: whether it was new, what to pass on, what to tell as events (kind, data)."""

    new: bool = False
    items: tuple[Item, ...] = ()
    events: tuple[tuple[str, dict[str, Any]], ...] = ()


class Known(NamedTuple):
    """A record, and the point of this node's record where it stands."""

    received_ms: int
    id: str
    envelope: bytes


NOTHING = Taken()


class News:
    """Safe to use from several threads."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._index, self._local = registry.index, registry.local
        #: Two records with one number that come at once are found out all the same.
        self._taking = threading.Lock()

    def after(self, topics: Sequence[str], received_ms: int, id: str, limit: int) -> list[Known]:
        """At most `limit` records under any of `topics` that came here after a point of this record, oldest first."""
        rows = self._index.read(
            "SELECT received, digest, envelope FROM news WHERE list_has_any(topics, $1)"
            " AND (received > $2 OR (received = $2 AND digest > $3)) ORDER BY received, digest LIMIT $4",
            (list(topics), received_ms, id, limit),
        )
        return [Known(received, digest, bytes(envelope)) for received, digest, envelope in rows]

    def take(self, record: Verified[Record], peer: str, topics: Sequence[str] = ()) -> Taken:
        """Keep a record that `peer` told, or that this node has just signed.

        `topics` are for what concerns nothing that was announced here: those that are shared with the peer.
        """
        return self.take_all([Heard(record, peer, tuple(topics))])[0]

    def take_all(self, heard: Sequence[Heard]) -> list[Taken]:
        """Keep records as `take` does, one after the other; announcements that follow each other in few statements."""
        found: list[Taken] = []
        with self._taking:
            for are_announcements, group in groupby(heard, lambda one: isinstance(one.record.record, Announcement)):
                if are_announcements:
                    while batch := list(islice(group, announced.AT_ONCE)):
                        found += self._announcements(batch)
                else:
                    found += [self._take(*one) for one in group]
        return found

    def _take(self, record: Verified[Record], peer: str, topics: Sequence[str]) -> Taken:
        if (revocation := record.of(Revocation)) is not None:
            return self._revocation(revocation, topics)
        if self._is_early(record):
            return NOTHING
        if (attestation := record.of(Attestation)) is not None:
            return self._attestation(attestation, topics)
        if (rotation := record.of(KeyRotation)) is not None:
            return self._rotation(rotation, topics)
        if (federation := record.of(Federation)) is not None:
            return self._federation(federation)
        return NOTHING

    def _is_early(self, record: Verified[Any]) -> bool:
        return bool(record.record.created_ms > self._registry.clock() + CLOCK_WINDOW_MS)

    def item(self, id: str) -> tuple[Item, ...]:
        """A record that is kept, to pass on again."""
        rows = self._index.read("SELECT envelope, topics FROM news WHERE digest = ?", (id,))
        return tuple(Item(bytes(envelope), tuple(topics)) for envelope, topics in rows)

    def has(self, id: str) -> bool:
        return bool(self._index.read("SELECT 1 FROM news WHERE digest = ?", (id,)))

    # ---- announcements ---------------------------------------------------------------------------------------

    def _announcements(self, heard: Sequence[Heard]) -> list[Taken]:
        """Those of others with numbers of their own in one transaction; then the rest, each in its own."""
        told = [Told(record, one.peer) for one in heard if (record := one.record.of(Announcement)) is not None]
        there = announced.here(self._index, told)
        used = Counter(dict.fromkeys(there.numbers, 1))
        used.update((one.record.author, one.record.record.seq) for one in told)
        view, now = self._registry.people.view(), self._registry.clock()
        wanted = [
            one
            for one in told
            if one.record.id not in there.known
            and not view.blocked(one.record.author)
            and not self._is_early(one.record)
        ]
        alone = {
            one.record.id
            for one in wanted
            if one.record.author == self._registry.author or used[one.record.author, one.record.record.seq] > 1
        }
        plain = [one for one in wanted if one.record.id not in alone]
        if plain:
            self._index.write(lambda cursor: announced.insert(cursor, plain, now))
        found = {one.record.id: _told(one) for one in plain}
        return [
            self._announcement(one, now) if one.record.id in alone else found.get(one.record.id, NOTHING)
            for one in told
        ]

    def _announcement(self, told: Told, now_ms: int) -> Taken:
        """One of this node, or one whose number its author has used before."""
        announcement = told.record
        if self.has(announcement.id):
            return NOTHING
        other = self.rival(announcement)
        if other is not None:
            return self._equivocation(announcement, other, told.peer)
        if announcement.author != self._registry.author:
            self._index.write(lambda cursor: announced.insert(cursor, [told], now_ms))
            return _told(told)
        own = OwnAnnouncement(digest=announcement.id, seq=announcement.record.seq, envelope=announcement.envelope)
        self._local.act("announce", put(own), then=lambda cursor: announced.insert(cursor, [told], now_ms))
        return _told(told)

    def rival(self, announcement: Verified[Announcement]) -> Verified[Announcement] | None:
        """Another announcement with this author and number: both together prove that the author equivocates."""
        rows = self._index.read(
            "SELECT envelope FROM announcement WHERE author = ? AND seq = ? AND digest <> ? LIMIT 1",
            (announcement.author, announcement.record.seq, announcement.id),
        )
        return verify(bytes(rows[0][0]), Announcement) if rows else None

    def _equivocation(self, new: Verified[Announcement], old: Verified[Announcement], peer: str) -> Taken:
        """Both records are kept, and passed on to everybody whom either concerns: who has both has the proof."""
        author, now = new.author, self._registry.clock()
        proof = Received(
            digest=f"{EQUIVOCATION} {author}",
            kind=EQUIVOCATION,
            adapter="",
            author=author,
            envelope=msgspec.msgpack.encode([old.envelope, new.envelope]),
            since=now,
        )
        topics = tuple(dict.fromkeys((*old.record.topics, *new.record.topics)))

        def insert(cursor: Cursor) -> None:
            _insert_announcement(cursor, new, peer, now)
            for one in (old, new):
                cursor.execute("DELETE FROM news WHERE digest = ?", [one.id])
                _insert_news(cursor, one, ANNOUNCEMENT, text_id(ADAPTER, one.record.manifest), topics, now)

        first = not self._registry.people.view().equivocated(author)
        self._local.act("equivocation received", *([put(proof)] if first else []), then=insert)
        self._changed(self._of_person(author))
        told = (("author.equivocated", {"author": author, "seq": new.record.seq, "peer": peer}),) if first else ()
        return Taken(True, tuple(Item(one.envelope, topics, one.record.topics) for one in (old, new)), told)

    # ---- revocations, attestations, rotations ----------------------------------------------------------------

    def _revocation(self, revocation: Verified[Revocation], topics: Sequence[str]) -> Taken:
        adapter = text_id(ADAPTER, revocation.record.manifest)
        author = self.author_of(adapter)
        if author is None:
            if self._is_full(revocation.author):
                return NOTHING
        elif not self._registry.people.view().same(author, revocation.author):
            return NOTHING
        above = sorted(containing(self._index, [adapter]))
        item = self._keep(revocation, REVOCATION, adapter, self._topics_of([adapter, *above]) or tuple(topics))
        if item is None:
            return NOTHING
        self._changed([adapter, *above])
        reached = self._here([adapter, *above]) if author is not None else []
        told = {
            "id": adapter,
            "author": revocation.author,
            "reason": revocation.record.reason,
            "known": author is not None,
            "affected": reached,
            "names": sorted(named(self._index, reached).values()),
        }
        return Taken(True, (item,), (("adapter.revoked", told),))

    def prove(self, manifest: Verified[Manifest]) -> Taken:
        """A peer has shown the manifest of an adapter that is not here: whose it is, and so whether a revocation of
        it counts, is known now."""
        if self.author_of(manifest.id) is not None:
            return NOTHING
        row = Received(
            digest=manifest.id,
            kind=MANIFEST,
            adapter=manifest.id,
            author=manifest.author,
            envelope=b"",
            since=self._registry.clock(),
        )
        self._local.act("manifest shown", put(row))
        concerned = [manifest.id, *sorted(containing(self._index, [manifest.id]))]
        self._changed(concerned)
        if manifest.id not in self._registry.people.revoked():
            return Taken(True)
        reached = self._here(concerned)
        told = {"id": manifest.id, "author": manifest.author, "reason": self._registry.people.revoked()[manifest.id],
                "known": True, "affected": reached, "names": sorted(named(self._index, reached).values())}  # fmt: skip
        return Taken(True, (), (("adapter.revoked", told),))

    def _attestation(self, attestation: Verified[Attestation], topics: Sequence[str]) -> Taken:
        adapter, author = text_id(ADAPTER, attestation.record.manifest), attestation.author
        view = self._registry.people.view()
        if view.blocked(author) or self._received_of(author, ATTESTATION) >= ATTESTATIONS_OF_ONE:
            return NOTHING
        heard_of = bool(self._topics_of([adapter])) or self.author_of(adapter) is not None
        if not heard_of and self._is_full(author):
            return NOTHING
        item = self._keep(attestation, ATTESTATION, adapter, self._topics_of([adapter]) or tuple(topics))
        if item is None:
            return NOTHING
        self._changed([adapter])
        told = {"id": adapter, "evaluator": author, "metric": attestation.record.metric, "trust": view.level(author)}
        return Taken(True, (item,), (("adapter.attested", told),))

    def _rotation(self, rotation: Verified[KeyRotation], topics: Sequence[str]) -> Taken:
        old, new = author_text(rotation.record.old), author_text(rotation.record.new)
        known = self._topics_of_author((old, new))
        here = self._index.read("SELECT 1 FROM adapter WHERE author IN ($1, $2) LIMIT 1", (old, new))
        opinions = self._registry.people.view().opinions
        heard_of = known or here or old in opinions or new in opinions or old == self._registry.author
        if not heard_of and self._is_full(old):
            return NOTHING
        item = self._keep(rotation, ROTATION, "", known or tuple(topics))
        if item is None:
            return NOTHING
        self._changed([*self._of_person(old), *self._of_person(new)])
        view = self._registry.people.view()
        if old in view.contested:
            return Taken(True, (item,), (("author.equivocated", {"author": old, "key": new}),))
        return Taken(True, (item,), (("author.key_changed", {"old": old, "new": new, "trust": view.level(new)}),))

    def _federation(self, federation: Verified[Federation]) -> Taken:
        topics, now = (federation.record.topic,), self._registry.clock()
        if self.has(federation.id) or self._registry.people.view().blocked(federation.author):
            return NOTHING
        self._index.write(lambda cursor: _insert_news(cursor, federation, FEDERATION, "", topics, now))
        told = {"id": federation.id, "author": federation.author, "topic": federation.record.topic}
        return Taken(True, (Item(federation.envelope, topics),), (("federation.announced", told),))

    # ---- parts -----------------------------------------------------------------------------------------------

    def _keep(self, record: Verified[Any], kind: str, adapter: str, topics: Sequence[str]) -> Item | None:
        """Journal, row and news in one; None for what is here already."""
        if self._index.read("SELECT 1 FROM received WHERE digest = ?", (record.id,)):
            return None
        now = self._registry.clock()
        row = Received(
            digest=record.id,
            kind=kind,
            adapter=adapter,
            author=record.author,
            envelope=record.envelope,
            since=now,
            topics=tuple(topics),
        )
        self._local.act(
            f"{kind} received",
            put(row),
            then=lambda cursor: _insert_news(cursor, record, kind, adapter, topics, now),
        )
        return Item(record.envelope, tuple(topics))

    def _changed(self, ids: Iterable[str]) -> None:
        self._registry.people.forget()
        self._registry.restand(list(dict.fromkeys(ids)))

    def author_of(self, adapter: str) -> str | None:
        """Who made an adapter that is here, or whose signed manifest a peer has shown."""
        rows = self._index.read(
            "SELECT author FROM adapter WHERE digest = $1"
            " UNION ALL SELECT author FROM received WHERE kind = $2 AND adapter = $1 LIMIT 1",
            (adapter, MANIFEST),
        )
        return str(rows[0][0]) if rows else None

    def _here(self, ids: Sequence[str]) -> list[str]:
        rows = self._index.read(
            "SELECT digest FROM adapter WHERE digest IN (SELECT unnest($1::VARCHAR[])) ORDER BY 1", (list(ids),)
        )
        return [row[0] for row in rows]

    def _of_person(self, author: str) -> list[str]:
        """Adapters by any key of a person."""
        keys = sorted(self._registry.people.view().keys_of(author))
        rows = self._index.read("SELECT digest FROM adapter WHERE author IN (SELECT unnest($1::VARCHAR[]))", (keys,))
        return [row[0] for row in rows]

    def _topics_of(self, adapters: Sequence[str]) -> tuple[str, ...]:
        """Under which any of these adapters was announced."""
        return self._topics("adapter", adapters)

    def _topics_of_author(self, authors: Sequence[str]) -> tuple[str, ...]:
        return self._topics("author", authors)

    def _topics(self, column: str, values: Sequence[str]) -> tuple[str, ...]:
        rows = self._index.read(
            f"SELECT DISTINCT unnest(topics) FROM announcement WHERE {column} IN (SELECT unnest($1::VARCHAR[]))"
            " ORDER BY 1",
            (list(values),),
        )
        return tuple(row[0] for row in rows)

    def _received_of(self, author: str, kind: str) -> int:
        return int(
            self._index.read("SELECT count(*) FROM received WHERE author = ? AND kind = ?", (author, kind))[0][0]
        )

    def _is_full(self, author: str) -> bool:
        """Whether enough is kept already about what is not known here."""
        rows = self._index.read(
            "SELECT count(*), count(*) FILTER (WHERE r.author = $1) FROM received r WHERE r.kind <> $2"
            " AND NOT EXISTS (SELECT 1 FROM adapter a WHERE a.digest = r.adapter)",
            (author, EQUIVOCATION),
        )
        in_all, of_one = rows[0]
        return bool(of_one >= UNKNOWN_OF_ONE or in_all >= UNKNOWN_IN_ALL)

    # ---- after a rebuild -------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Put back what the journal knows and the index lacks, each record under the topics that it came under.

        Of those that an older orchd has journalled, without their topics, go those about adapters that this node has
        announced, under their topics; the others are told to nobody until a peer has told them under one.
        """
        self._journal_own()
        own = self._index.read(
            "SELECT o.envelope FROM own_announcement o"
            " WHERE NOT EXISTS (SELECT 1 FROM announcement n WHERE n.digest = o.digest) ORDER BY o.seq"
        )
        proofs = self._index.read("SELECT envelope FROM received WHERE kind = ?", (EQUIVOCATION,))
        pairs = [bytes(one) for row in proofs for one in msgspec.msgpack.decode(bytes(row[0]), type=list[bytes])]
        announcements = [verify(bytes(row[0]), Announcement) for row in own]
        announcements += [verify(envelope, Announcement) for envelope in pairs]
        now = self._registry.clock()

        def insert(cursor: Cursor) -> None:
            for one in announcements:
                _insert_announcement(cursor, one, "", now)
                adapter = text_id(ADAPTER, one.record.manifest)
                _insert_news(cursor, one, ANNOUNCEMENT, adapter, one.record.topics, now)
            cursor.execute(_FILL, [REVOCATION, ATTESTATION, ROTATION])

        self._index.write(insert)

    def _journal_own(self) -> None:
        """Announcements of this node that an orchd without a journal has made, so that no number is used again."""
        rows = self._index.read(
            "SELECT digest, seq, envelope FROM announcement n WHERE author = ?"
            " AND NOT EXISTS (SELECT 1 FROM own_announcement o WHERE o.digest = n.digest) ORDER BY seq",
            (self._registry.author,),
        )
        if rows:
            own = [OwnAnnouncement(digest=id, seq=seq, envelope=bytes(envelope)) for id, seq, envelope in rows]
            self._local.act("announced before", *map(put, own))


def receive(registry: Registry, record: Verified[Record], peer: str = "") -> bool:
    """Take a record from elsewhere than the network, such as a bundle; whether it was new.

    A manifest only proves who made an adapter that is not here.
    """
    if (manifest := record.of(Manifest)) is not None:
        return registry.news.prove(manifest).new
    return registry.news.take(record, peer).new


def _told(told: Told) -> Taken:
    """What comes of an announcement that is new here."""
    record = told.record.record
    event = {
        "id": told.adapter,
        "author": told.record.author,
        "topics": list(record.topics),
        "size": record.size,
        "peer": told.peer,
    }
    return Taken(True, (Item(told.record.envelope, record.topics),), (("adapter.announced", event),))


def _insert_announcement(cursor: Cursor, announcement: Verified[Announcement], peer: str, now_ms: int) -> None:
    record = announcement.record
    values = [
        announcement.id,
        text_id(ADAPTER, record.manifest),
        list(record.topics),
        announcement.author,
        record.seq,
        record.size,
        text_id(BASE, record.base),
        peer,
        record.created_ms,
        now_ms,
        announcement.envelope,
    ]
    cursor.execute(f"INSERT INTO announcement VALUES ({', '.join('?' * len(values))}) ON CONFLICT DO NOTHING", values)
    announced.refresh_topics(cursor, text_id(ADAPTER, record.manifest))


def _insert_news(
    cursor: Cursor, record: Verified[Any], kind: str, adapter: str, topics: Sequence[str], now_ms: int
) -> None:
    values = [record.id, kind, adapter, record.author, list(topics), now_ms, record.envelope]
    cursor.execute("INSERT INTO news VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", values)
