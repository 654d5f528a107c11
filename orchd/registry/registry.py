"""The registry: adapters behind the one door, and the tables of what this node knows.

Truth is on disk as signed manifests, content-addressed blobs and the journal of what was decided here; the DuckDB
index is made again from them when it is lost. An adapter comes in blobs first, then its manifest, then the verdict in
the journal, then the rows, so that a crash at any moment leaves it whole or absent.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import msgspec

from orchd.errors import AdapterUnknown, AmbiguousId, BaseUnknown, BlobUnknown, NotReleasable
from orchd.records import Announcement, Manifest, Verified, parse_id, text_id, verify
from orchd.records.ids import ADAPTER, BASE
from orchd.registry import rebuild, restand, restore
from orchd.registry.admission import CHECKS, Candidate, Check
from orchd.registry.bases import Base, load
from orchd.registry.blobs import BlobStore
from orchd.registry.index import Cursor, Index
from orchd.registry.journal import Journal
from orchd.registry.local import Local, Undone, delete, put
from orchd.registry.local_rows import OwnAnnouncement, Pin, Release, Trash, Verdict
from orchd.registry.manifest_files import ManifestFiles
from orchd.registry.rebuild import insert_adapter
from orchd.registry.restand import Judges, Nobody
from orchd.registry.rows import AdapterRow, AnnouncementRow, adapter_row, announcement_key
from orchd.registry.standing import ADMITTED, QUARANTINED, StandingChange

SELF = "self"
MIN_PREFIX = len(ADAPTER) + 4
WHOLE_ID = len(text_id(ADAPTER, bytes(32)))
LOG = logging.getLogger(__name__)


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one adapter at the door. `new` is false when it was here already."""

    id: str
    verdict: str
    reason: str
    new: bool
    row: AdapterRow


class Registry:
    """Safe to use from several threads. `clock` gives milliseconds since 1970; `author` is this node."""

    def __init__(self, data: Path, index: Index, clock: Callable[[], int], author: str, *, rebuilt: str) -> None:
        self.data = data
        self.index = index
        self.blobs = BlobStore(data / "blobs")
        self.manifests = ManifestFiles(data / "manifests")
        self.author = author
        #: Why the index was made again at start, empty when it was not.
        self.rebuilt = rebuilt
        #: What the user has to know about how this start went.
        self.notices: list[str] = [rebuilt] if rebuilt else []
        #: Told of every adapter whose state is another, after it is.
        self.on_standing: Callable[[StandingChange], None] | None = None
        self.clock = clock
        self.local = Local(Journal(data / "journal.log", clock()), index, clock)
        self.judges: Judges = Nobody(author)
        self._folders = data / "adapters"
        self._bases: dict[str, Base] = {}
        #: Held while an adapter's blobs are kept or thrown away: two adapters may share one.
        self._keeping = threading.Lock()
        self._announcing = threading.Lock()
        self._folders.mkdir(parents=True, exist_ok=True)
        for unfinished in self._folders.glob(".*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    @classmethod
    def open(
        cls, data: Path, clock: Callable[[], int], author: str = "", bases: Mapping[str, Path] | None = None
    ) -> Self:
        """The registry below `data`, made there when nothing is. What the index lacks is put back.

        `bases` are folders by name.
        """
        data.mkdir(parents=True, exist_ok=True)
        index, rebuilt = restore.open_index(data / "registry.db", clock())
        try:
            registry = cls(data, index, clock, author, rebuilt=rebuilt)
            for name, folder in (bases or {}).items():
                registry.add_base(name, folder)
            if registry.local.lost:
                registry.notices.append(
                    f"{registry.local.lost} lines of the journal were damaged; they lie in journal.log.damaged-*"
                )
            rebuild.reconcile(registry)
        except BaseException:
            index.close()
            raise
        return registry

    def close(self) -> None:
        self.local.close()
        self.index.close()

    # ---- admission ----------------------------------------------------------------------------------------------

    def admit(
        self, envelope: bytes, files: Mapping[str, Path], *, origin: str, checks: Sequence[Check] = ()
    ) -> Admission:
        """Let an adapter in, or raise the refusal and keep nothing. `files` are copied.

        `origin` is trained, averaged, fetched or imported; `checks` come after the built-in ones.
        """
        manifest = verify(envelope, Manifest)
        if self.has_adapter(manifest.id):
            return self._admission(manifest.id, new=self._take_from_trash(manifest.id))
        reasons = self.judge(manifest, files, checks, self.clock())
        with self._keeping:
            if new := not self.has_adapter(manifest.id):
                self._keep(manifest, files)
                verdict = Verdict(adapter=manifest.id, reasons=tuple(reasons), origin=origin, received=self.clock())
                self._insert(manifest, verdict)
        return self._admission(manifest.id, new=new)

    def _take_from_trash(self, id: str) -> bool:
        """What was removed here and comes again is wanted again; whether it was in the trash."""
        if self.local.get(Trash, id) is None:
            return False
        self.local.act("adapter.restore", delete(Trash, id))
        self.restand([id])
        return True

    def _admission(self, id: str, *, new: bool) -> Admission:
        row = self._row(id)
        return Admission(id=row.id, verdict=row.state, reason=row.reason, new=new, row=row)

    def judge(
        self, manifest: Verified[Manifest], files: Mapping[str, Path], checks: Sequence[Check], now_ms: int
    ) -> list[str]:
        """The reasons for quarantine, none for an adapter to admit. Raises the refusal."""
        candidate = Candidate(manifest, files, self._base_of(manifest), now_ms)
        return [reason for check in (*CHECKS, *checks) if (reason := check(candidate))]

    def _keep(self, manifest: Verified[Manifest], files: Mapping[str, Path]) -> None:
        """Blobs first, then the manifest; when one can't be written, no new blob stays."""
        with ExitStack() as undo:
            for entry in manifest.record.files:
                if not self.blobs.has(entry.sha256):
                    self.blobs.put_file(files[entry.path], entry.sha256)
                    undo.callback(self.blobs.remove, entry.sha256)
            self.manifests.write(manifest)
            undo.pop_all()

    def _insert(self, manifest: Verified[Manifest], verdict: Verdict) -> None:
        """The verdict in the journal, then the rows; the adapter stands in quarantine until everything was weighed."""
        self.local.act("adapter.admit", put(verdict), then=lambda cursor: insert_adapter(cursor, manifest, verdict))
        self.restand([manifest.id], tell=False)

    def restand(self, ids: Collection[str] | None = None, *, tell: bool = True) -> list[StandingChange]:
        """Compute anew what adapters (all, when None) may do here, after something was decided or received."""
        found = restand.changes(self.index, self.judges, ids)
        if found:
            self.index.write(lambda cursor: restand.apply(cursor, found))
        if tell and self.on_standing is not None:
            for change in found:
                if change.before != change.after:
                    self.on_standing(change)
        return found

    # ---- adapters -----------------------------------------------------------------------------------------------

    def adapters(self, *, state: str | None = None, topic: str | None = None) -> list[AdapterRow]:
        """Adapters that are here and not removed, newest first; `state` removed gives those in the trash."""
        found = self.index.read(
            "SELECT digest FROM adapter WHERE CASE WHEN $1 IS NULL THEN state <> 'removed' ELSE state = $1 END"
            " ORDER BY created DESC, digest",
            (state,),
        )
        rows = self.rows_of([row[0] for row in found])
        return [row for row in rows if topic is None or topic in row.topics]

    def adapter(self, text: str) -> AdapterRow:
        """By id, unique prefix of an id, or unique name. Raises `AdapterUnknown` or `AmbiguousId`."""
        return self._row(self.resolve(text))

    def resolve(self, text: str) -> str:
        """The whole id for an id, a unique prefix or a name.

        What looks like an id is never taken as a name: names are chosen by strangers. Of several adapters with one
        name the newest of this node's own is meant; strangers' ones must be told apart by id.
        """
        if not text.startswith(ADAPTER):
            return self._named(text)
        if MIN_PREFIX <= len(text) < WHOLE_ID:
            sql = "SELECT digest FROM adapter WHERE digest >= $1 AND digest < $1 || '~' AND state <> 'removed'"
        else:
            sql = "SELECT digest FROM adapter WHERE digest = $1"
        found = {row[0] for row in self.index.read(sql, (text,))}
        if len(found) > 1:
            raise AmbiguousId(f"{text!r} fits {len(found)} adapters: {', '.join(sorted(found))}", field="adapter")
        if not found:
            raise AdapterUnknown(f"no adapter {text[:80]!r} is here", field="adapter")
        return str(found.pop())

    def _named(self, name: str) -> str:
        rows = self.index.read(
            "SELECT digest, author FROM adapter WHERE name = ? AND state <> 'removed'"
            " ORDER BY created DESC, received DESC, digest",
            (name,),
        )
        own = [id for id, author in rows if author == self.author]
        if own:
            return str(own[0])
        if not rows:
            raise AdapterUnknown(f"no adapter {name[:80]!r} is here", field="adapter")
        if len(rows) > 1:
            listed = ", ".join(f"{id} by {author}" for id, author in rows)
            raise AmbiguousId(f"{len(rows)} adapters are called {name!r}: {listed}", hint="Say which by its id.")
        return str(rows[0][0])

    def has_adapter(self, id: str) -> bool:
        return bool(self.index.read("SELECT 1 FROM adapter WHERE digest = ?", (id,)))

    def manifest(self, id: str) -> Verified[Manifest]:
        """The signed manifest, verified again. Raises `AdapterUnknown`."""
        if not self.has_adapter(id):
            raise AdapterUnknown(f"no adapter {id[:80]!r} is here", field="adapter")
        return self.manifests.read(parse_id(id, ADAPTER))

    def files(self, id: str) -> dict[str, Path]:
        """The adapter's files by name; the paths are blobs and are not to be written to."""
        return {entry.path: self.blobs.path(entry.sha256) for entry in self.manifest(id).record.files}

    def adapter_folder(self, id: str) -> Path:
        """A PEFT folder of links to the adapter's blobs, for workers. Read-only. Raises `BlobUnknown`."""
        folder = self._folders / id
        if folder.is_dir():
            return folder
        files = self.files(id)
        making = Path(tempfile.mkdtemp(dir=self._folders, prefix="."))
        try:
            for name, blob in files.items():
                os.link(blob, making / name)
            making.rename(folder)
        except FileNotFoundError as error:
            raise BlobUnknown(f"a file of the adapter {id} is gone: {error.filename}") from None
        except OSError:
            if not folder.is_dir():  # else another thread was first
                raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
        return folder

    def remove(self, id: str) -> None:
        """Into the trash: it is not found any more, and `undo` brings it back for a while. Raises `AdapterUnknown`."""
        self._row(id)
        self.local.act("adapter.remove", put(Trash(adapter=id, since=self.clock())), undoable=True)
        self.restand([id])

    def pin(self, id: str, pinned: bool = True) -> None:
        """Whether an adapter is kept when room is made. Raises `AdapterUnknown`."""
        self._row(id)
        self.local.act(
            "adapter.pin" if pinned else "adapter.unpin",
            put(Pin(adapter=id)) if pinned else delete(Pin, id),
            undoable=True,
            then=lambda cursor: cursor.execute("UPDATE adapter SET pinned = ? WHERE digest = ?", [pinned, id]),
        )

    def release(self, id: str) -> AdapterRow:
        """Let an adapter out of quarantine by hand. Raises `AdapterUnknown`, or `NotReleasable` with what keeps it."""
        row = self._row(id)
        if row.state == QUARANTINED:
            self.local.act("adapter.release", put(Release(adapter=id, since=self.clock())), undoable=True)
            self.restand([id])
            row = self._row(id)
        if row.state != ADMITTED:
            raise NotReleasable(f"{row.name} stays in quarantine: {row.reason}", field="adapter")
        return row

    def undo(self) -> Undone:
        """Take back the newest act that can be. Raises `NothingToUndo` or `UndoStale`."""
        undone = self.local.undo()
        rebuild.refresh_pins(self.index)
        self.restand()
        return undone

    def trust(self, author: str) -> str:
        return self.judges.level(author)

    def _row(self, id: str) -> AdapterRow:
        rows = self.rows_of([id])
        if not rows:
            raise AdapterUnknown(f"no adapter {id[:80]!r} is here", field="adapter")
        return rows[0]

    def rows_of(self, ids: Sequence[str]) -> list[AdapterRow]:
        """The rows of adapters that are here, in the order of `ids`; unknown ones are left out."""
        rows = self.index.read(ROWS, (list(ids),))
        return [self._adapter_row(row) for row in rows]

    def _adapter_row(self, row: tuple[Any, ...]) -> AdapterRow:
        shown, author, state, reason, origin, received, pinned, topics = row
        return adapter_row(
            shown,
            trust=self.trust(author),
            state=state,
            reason=reason,
            origin=origin,
            received_ms=received,
            pinned=pinned,
            topics=tuple(topics),
        )

    # ---- announcements ------------------------------------------------------------------------------------------

    def record_announcement(self, announcement: Verified[Announcement], peer: str) -> bool:
        """Remember what `peer` told; whether it was new."""
        record = announcement.record
        values = (
            announcement.id,
            announcement_key(announcement),
            list(record.topics),
            announcement.author,
            record.seq,
            record.size,
            text_id(BASE, record.base),
            peer,
            record.created_ms,
            self.clock(),
            announcement.envelope,
        )

        def insert(cursor: Cursor) -> bool:
            marks = ", ".join("?" * len(values))
            sql = f"INSERT INTO announcement VALUES ({marks}) ON CONFLICT DO NOTHING RETURNING digest"
            return bool(cursor.execute(sql, list(values)).fetchall())

        return self.index.write(insert)

    def announcements(self, topic: str | None = None) -> list[AnnouncementRow]:
        """What peers and this node have announced, newest first."""
        rows = self.index.read(
            "SELECT n.adapter, n.author, n.topics, n.size, n.base, n.peer, n.created, a.digest IS NOT NULL"
            " FROM announcement n LEFT JOIN adapter a ON a.digest = n.adapter"
            " WHERE $1 IS NULL OR list_contains(n.topics, $1) ORDER BY n.created DESC, n.digest",
            (topic,),
        )
        return [
            AnnouncementRow(
                adapter=adapter,
                author=author,
                topics=tuple(topics),
                size=size,
                base=base,
                peer=peer,
                created_ms=created,
                here=here,
            )
            for adapter, author, topics, size, base, peer, created, here in rows
        ]

    def announcement_envelopes(self, topic: str) -> list[bytes]:
        """The signed bytes of every announcement under a topic, oldest first, to pass on."""
        rows = self.index.read(
            "SELECT envelope FROM announcement WHERE list_contains(topics, ?) ORDER BY received, digest", (topic,)
        )
        return [bytes(row[0]) for row in rows]

    def announcements_after(
        self, topics: Sequence[str], received_ms: int, id: str, limit: int
    ) -> list[tuple[int, str, bytes]]:
        """Announcements under any of `topics` that came here after a point of this record, oldest first.

        Each as (when it came, its id, the signed bytes); the last one's first two are the next point.
        """
        rows = self.index.read(
            "SELECT received, digest, envelope FROM announcement WHERE list_has_any(topics, $1)"
            " AND (received > $2 OR (received = $2 AND digest > $3)) ORDER BY received, digest LIMIT $4",
            (list(topics), received_ms, id, limit),
        )
        return [(received, digest, bytes(envelope)) for received, digest, envelope in rows]

    def shared_manifest(self, id: str) -> bytes | None:
        """The signed manifest of an adapter that is admitted and has been announced: what peers may ask for."""
        rows = self.index.read(
            "SELECT 1 FROM adapter WHERE digest = $1 AND state = $2"
            " AND EXISTS (SELECT 1 FROM announcement n WHERE n.adapter = $1)",
            (id, ADMITTED),
        )
        return self.manifests.read(parse_id(id, ADAPTER)).envelope if rows else None

    def announce(self, make: Callable[[int], Verified[Announcement]], peer: str) -> Verified[Announcement]:
        """Sign an announcement of this node, with the number that `make` is given, and remember it.

        No number is given twice, also not after the index was made again.
        """
        with self._announcing:
            signed = make(self.next_seq())
            own = OwnAnnouncement(digest=signed.id, seq=signed.record.seq, envelope=signed.envelope)
            self.local.act("announce", put(own))
            self.record_announcement(signed, peer)
        return signed

    def next_seq(self) -> int:
        """The number of this node's next announcement."""
        rows = self.index.read(
            "SELECT greatest((SELECT coalesce(max(seq), 0) FROM announcement WHERE author = $1),"
            " (SELECT coalesce(max(seq), 0) FROM own_announcement)) + 1",
            (self.author,),
        )
        return int(rows[0][0])

    # ---- bases --------------------------------------------------------------------------------------------------

    def add_base(self, name: str, folder: Path) -> Base:
        """Make a base known under a name. Raises `BaseUnknown` when the folder is none."""
        base = load(name, folder)
        self._bases[name] = base
        return base

    def bases(self) -> list[Base]:
        return list(self._bases.values())

    def base(self, text: str) -> Base:
        """By name or fingerprint. Raises `BaseUnknown`."""
        for base in self._bases.values():
            if text in (base.name, base.fingerprint):
                return base
        raise BaseUnknown(f"no base {text[:80]!r} is here", field="base")

    def _base_of(self, manifest: Verified[Manifest]) -> Base | None:
        wanted = manifest.record.base.fingerprint
        return next((base for base in self._bases.values() if base.digest == wanted), None)


ROWS = """
SELECT a.shown, a.author, a.state, a.reason, a.origin, a.received, a.pinned, coalesce(n.topics, [])
FROM unnest($1::VARCHAR[]) WITH ORDINALITY u(id, place) JOIN adapter a ON a.digest = u.id
LEFT JOIN (
    SELECT adapter, list_sort(list_distinct(flatten(list(topics)))) AS topics FROM announcement
    WHERE adapter IN (SELECT unnest($1::VARCHAR[])) GROUP BY adapter) n ON n.adapter = a.digest
ORDER BY u.place
"""
