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
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import msgspec

from orchd.errors import AdapterUnknown, AmbiguousId, BlobUnknown, DigestMismatch, NothingToUndo, NotReleasable
from orchd.paths import sync
from orchd.records import Announcement, FileEntry, Manifest, Verified, parse_id, text_id, verify
from orchd.records.ids import ADAPTER, BASE, DATASET, SHORTEST, too_short
from orchd.registry import admission, bounds, rebuild, restand, restore, versions
from orchd.registry.admission import Candidate, Check, Known, judge
from orchd.registry.bases import Base
from orchd.registry.blobs import BlobStore
from orchd.registry.index import Index
from orchd.registry.journal import Journal
from orchd.registry.known_bases import KnownBases
from orchd.registry.local import Local, Undone, delete, put
from orchd.registry.local_rows import Bound, Dataset, DatasetTrash, Pin, Release, Rot, Trash, Verdict
from orchd.registry.manifest_files import ManifestFiles
from orchd.registry.names import Names, ambiguous
from orchd.registry.news import News
from orchd.registry.people import People
from orchd.registry.rebuild import insert_adapter
from orchd.registry.rows import AdapterRow, AnnouncementRow, adapter_row
from orchd.registry.standing import ADMITTED, QUARANTINED, REMOVED, StandingChange
from orchd.registry.trust import FOLLOWED, SELF
from orchd.registry.weighing import Weighing

USED_EVERY_MS = 3_600_000
MIN_PREFIX = len(ADAPTER) + SHORTEST
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
        self.names = Names(index)
        self.blobs = BlobStore(data / "blobs")
        self.manifests = ManifestFiles(data / "manifests")
        self.author = author
        #: Why the index was made again at start, empty when it was not.
        self.rebuilt = rebuilt
        #: What the user has to know about how this start went.
        self.notices: list[str] = [rebuilt] if rebuilt else []
        #: Told of every adapter whose state is another, after it is.
        self.on_standing: Callable[[StandingChange], None] | None = None
        #: Further checks of every adapter, which other rooms bring.
        self.also: tuple[Check, ...] = ()
        self.clock = clock
        self.local = Local(Journal(data / "journal.log", clock()), index, clock)
        #: What was decided and received about authors, and what they signed besides manifests.
        self.people = People(self.local, index, author)
        self.news = News(self)
        self._folders = data / "adapters"
        self.known_bases = KnownBases(self.local, clock)
        #: Held while an adapter's blobs are kept or thrown away: two adapters may share one.
        self.keeping = threading.Lock()
        #: Held while all rows are made again, or adapters thrown out for good: the one would bring back the other's.
        #: Taken before `keeping`.
        self.tidying = threading.RLock()
        self._announcing = threading.Lock()
        #: Whether something was decided whose consequences were not written down, for want of room.
        self._unsettled = False
        self._folders.mkdir(parents=True, exist_ok=True)
        for unfinished in self._folders.glob(".*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    @classmethod
    def open(
        cls,
        data: Path,
        clock: Callable[[], int],
        author: str = "",
        bases: Mapping[str, Path] | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Self:
        """The registry below `data`, made there when nothing is. What the index lacks is put back.

        `bases` are folders by name. `progress` is told of adapters that are put back: how many were, and are in all.
        """
        data.mkdir(parents=True, exist_ok=True)
        index, rebuilt = restore.open_index(data / "registry.db", clock())
        try:
            registry = cls(data, index, clock, author, rebuilt=rebuilt)
            for name, folder in (bases or {}).items():
                registry.add_base(name, folder)
            if registry.local.lost:
                registry.notices.append(
                    f"{registry.local.lost} decisions made here could not be read (they lie in journal.log.damaged-*)"
                    " and may be lost: look at `orchctl trust list` and at what is pinned"
                )
            rebuild.reconcile(registry, progress=progress)
            for folder in (data, data.parent):  # what was made in them stays, also when the power goes
                sync(folder)
        except BaseException:
            index.close()
            raise
        return registry

    def become(self, author: str) -> None:
        """This node signs with another key from now on."""
        self.author = self.people.me = author
        self.people.forget()
        self.restand()

    def close(self) -> None:
        self.local.close()
        self.index.close()

    # ---- admission ----------------------------------------------------------------------------------------------

    def admit(
        self,
        envelope: bytes,
        files: Mapping[str, Path],
        *,
        origin: str,
        checks: Sequence[Check] = (),
        verified: Mapping[str, bytes] | None = None,
    ) -> Admission:
        """Let an adapter in, or raise the refusal and keep nothing.

        `origin` is trained, averaged, fetched or imported; `checks` come after the built-in ones. `files` are copied,
        but for those that `verified` names with their SHA-256: they lie below the registry's folder, and whoever wrote
        them made it meanwhile, and compared every chunk with the manifest. They are moved, if they are new here.
        """
        manifest = verify(envelope, Manifest)
        with self.keeping:  # or it is thrown out for good at this moment
            known = self.has_adapter(manifest.id)
            wanted = known and self._take_from_trash(manifest.id)
        if known:
            mended = self._mend(manifest, files)
            self.restand([manifest.id])  # the disk may have been full when it came first
            return self._admission(manifest.id, new=mended or wanted)
        candidate = replace(self.candidate(manifest, files, self.clock()), verified=verified or {})
        judge(candidate, (*admission.RECORD_CHECKS, admission.check_came))
        with self.keeping:
            if new := not self.has_adapter(manifest.id):
                self._let_in(candidate, origin, checks)
        return self._admission(manifest.id, new=new)

    def _take_from_trash(self, id: str) -> bool:
        """What was removed here and comes again is wanted again; whether it was in the trash."""
        if self.local.get(Trash, id) is None:
            return False
        self.local.act("adapter.restore", delete(Trash, id))
        return True

    def is_whole(self, id: str) -> bool:
        """Whether an adapter is here with all its files, none of them damaged as far as is known."""
        return self.has_adapter(id) and not self._rot(self.manifest(id))

    def _rot(self, manifest: Verified[Manifest]) -> list[Rot]:
        blobs = [entry.sha256.hex() for entry in manifest.record.files]
        return self.local.where(Rot, "blob IN (SELECT unnest(?))", (blobs,))

    def _mend(self, manifest: Verified[Manifest], files: Mapping[str, Path]) -> bool:
        """Put files in the place of those that are damaged or missing here; whether any was."""
        rotten = {row.blob for row in self._rot(manifest)}
        with self.keeping:
            for entry in manifest.record.files:
                if entry.sha256.hex() in rotten and entry.path in files:
                    if not self.blobs.has(entry.sha256):
                        self.blobs.put_file(files[entry.path], entry.sha256)
                    self.local.act("blob.mended", delete(Rot, entry.sha256.hex()))
        if rotten:
            self.restand()
        return bool(rotten)

    def _admission(self, id: str, *, new: bool) -> Admission:
        row = self._row(id)
        return Admission(id=row.id, verdict=row.state, reason=row.reason, new=new, row=row)

    def check_record(self, manifest: Verified[Manifest]) -> None:
        """What needs no file, before the first byte of one is fetched. Raises the refusal."""
        judge(self.candidate(manifest, {}, self.clock()), admission.RECORD_CHECKS)

    def candidate(self, manifest: Verified[Manifest], files: Mapping[str, Path], now_ms: int) -> Candidate:
        """An adapter at the door, with what was decided and received about it and its author, and seen of its base."""
        base = text_id(BASE, manifest.record.base.fingerprint)
        known = Known(
            blocked=self.people.blocked(manifest.author),
            revoked=self.people.revocation(manifest.id, manifest.author),
            bounds={row.key: row for row in self.local.few(Bound, "starts_with(key, ?)", (bounds.key(base, ""),))},
        )
        return Candidate(manifest, files, self._base_of(manifest), now_ms, known)

    def _let_in(self, candidate: Candidate, origin: str, checks: Sequence[Check]) -> None:
        """Blobs first, then the checks on them as they lie, then the manifest; when one fails, no new blob stays."""
        manifest = candidate.manifest
        with ExitStack() as undo:
            stored, verified = dict[str, Path](), dict[str, bytes]()
            for entry in manifest.record.files:
                if not self.blobs.keep(entry.sha256):
                    self._store(candidate, entry)
                    undo.callback(self.blobs.remove, entry.sha256)
                    if entry.path in candidate.verified:
                        verified[entry.path] = entry.sha256
                stored[entry.path] = self.blobs.path(entry.sha256)
            lying = replace(candidate, files=stored, verified=verified)
            reasons = judge(lying, (*admission.CONTENT_CHECKS, *self.also, *checks))
            undo.callback(self.manifests.remove, manifest.digest)
            self.manifests.write(manifest)
            verdict = Verdict(adapter=manifest.id, reasons=tuple(reasons), origin=origin, received=self.clock())
            rotten = self._rot(manifest)
            stands = self._insert(lying, verdict, mended=rotten)
            undo.pop_all()
        if not stands:
            self.restand([manifest.id], tell=False)
        if rotten:  # others have the file that is whole again
            self.restand()

    def _store(self, candidate: Candidate, entry: FileEntry) -> None:
        file, digest = candidate.files[entry.path], candidate.verified.get(entry.path)
        try:
            if digest is None:
                self.blobs.put_file(file, entry.sha256)
            else:
                self.blobs.adopt(file, digest, entry.sha256)
        except DigestMismatch as error:
            raise DigestMismatch(f"{entry.path}: {error.message}") from None

    def _insert(self, candidate: Candidate, verdict: Verdict, mended: Sequence[Rot]) -> bool:
        """The verdict in the journal, then the rows; whether it stands as it should, or in quarantine until everything
        was weighed. `mended` are its files that were damaged or missing; they have just been read, and are whole."""
        weighing = Weighing.begin(self.local, self.people, candidate.manifest, verdict)
        manifest, seen = candidate.manifest, tuple[Bound, ...]()
        if not verdict.reasons and self.trust(manifest.author) in (SELF, FOLLOWED):
            base = text_id(BASE, manifest.record.base.fingerprint)
            seen = bounds.learned(candidate.known.bounds, base, candidate.norms)
        self.local.act(
            "adapter.admit",
            put(verdict),
            *map(put, seen),
            *(delete(Rot, row.blob) for row in mended),
            then=lambda cursor: insert_adapter(cursor, manifest, verdict, weighing.use()),
        )
        return weighing.holds() and not self._unsettled

    def restand(self, ids: Collection[str] | None = None, *, tell: bool = True) -> list[StandingChange]:
        """Compute anew what adapters (all, when None) may do here, after something was decided or received."""
        try:
            found = restand.changes(self.index, self.people, None if self._unsettled else ids)
            if found:
                self.index.write(lambda cursor: restand.apply(cursor, found))
        except BaseException:
            self._unsettled = True
            raise
        self._unsettled = False
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
        """By id, unique prefix of an id, name, or `NAME@author`. Raises `AdapterUnknown` or `AmbiguousId`."""
        whole = text.startswith(ADAPTER) and len(text) == WHOLE_ID
        return self._row(text if whole else self.resolve(text))

    def resolve(self, text: str) -> str:
        """The whole id for an id, a unique prefix or a name.

        What looks like an id is never taken as a name: names are chosen by strangers. Of several adapters with one
        name the newest of this node's own is meant; strangers' ones must be told apart by id. `NAME@author` is the
        newest admitted version by that author.
        """
        if (asked := versions.split(text)) is not None:
            return versions.named(self.index, self.people.view(), *asked)
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
            raise self._unknown(text, "starts_with(digest, ?)")
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
            raise self._unknown(name, "name = ?")
        if len(rows) > 1:
            raise ambiguous(name, rows, {self.people.view().newest(author) for _, author in rows})
        return str(rows[0][0])

    def _unknown(self, text: str, condition: str) -> AdapterUnknown:
        """Nothing is here that `text` means; what fits the condition in the trash is told of."""
        if text.startswith(ADAPTER) and len(text) < MIN_PREFIX:
            return AdapterUnknown(too_short(text, ADAPTER), field="adapter")
        message, hint = f"no adapter {text[:80]!r} is here", None
        sql = f"SELECT digest FROM adapter WHERE state = 'removed' AND {condition} ORDER BY digest LIMIT 1"
        if rows := self.index.read(sql, (text,)):
            message, hint = f"{message}: it was removed", f"`orchctl undo {rows[0][0]}` brings it back."
        return AdapterUnknown(message, hint=hint, field="adapter")

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
        self._used(id)
        files = self.files(id)
        stale = folder.is_dir()
        if stale and all(_is_same(folder / name, blob) for name, blob in files.items()):
            return folder
        making = Path(tempfile.mkdtemp(dir=self._folders, prefix="."))
        try:
            for name, blob in files.items():
                os.link(blob, making / name)
            if stale:  # it holds what was damaged and set aside
                shutil.rmtree(folder, ignore_errors=True)
            making.rename(folder)
        except FileNotFoundError as error:
            raise BlobUnknown(f"a file of the adapter {id} is gone: {error.filename}") from None
        except OSError:
            if not folder.is_dir():  # else another thread was first
                raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
        return folder

    def _used(self, id: str) -> None:
        """Remember that it was used, so that others are thrown out before it; not more than once an hour."""
        now = self.clock()
        if self.index.read("SELECT 1 FROM adapter WHERE digest = ? AND used < ?", (id, now - USED_EVERY_MS)):
            self.index.execute("UPDATE adapter SET used = ? WHERE digest = ?", (now, id))

    def drop_folder(self, id: str) -> None:
        """Remove what `adapter_folder` made. Nobody sees half of it, and starting clears what a crash leaves."""
        going = self._folders / f".{id}"
        with suppress(FileNotFoundError):
            (self._folders / id).rename(going)
        shutil.rmtree(going, ignore_errors=True)

    def remove(self, id: str) -> None:
        """Into the trash: it is not found any more, and `undo` brings it back for a while. Raises `AdapterUnknown`."""
        if self._row(id).state != REMOVED:
            self.local.act("adapter.remove", put(Trash(adapter=id, since=self.clock())), undoable=True, urgent=True)
            self.restand([id])

    def pin(self, id: str, pinned: bool = True) -> None:
        """Whether an adapter is kept when room is made. Raises `AdapterUnknown`, also for one in the trash."""
        self._not_in_trash(id)
        self.local.act(
            "adapter.pin" if pinned else "adapter.unpin",
            put(Pin(adapter=id)) if pinned else delete(Pin, id),
            undoable=True,
            then=lambda cursor: cursor.execute("UPDATE adapter SET pinned = ? WHERE digest = ?", [pinned, id]),
        )

    def release(self, id: str) -> AdapterRow:
        """Let an adapter out of quarantine by hand. Raises `AdapterUnknown`, or `NotReleasable` with what keeps it."""
        row = self._not_in_trash(id)
        if kept := restand.beyond_release(self.index, self.people, id):  # nothing is written down that has no effect
            raise NotReleasable(f"{row.name} stays where it is: {kept}", field="adapter")
        if row.state == QUARANTINED:
            self.local.act("adapter.release", put(Release(adapter=id, since=self.clock())), undoable=True)
            self.restand([id])
        return self._row(id)

    def _not_in_trash(self, id: str) -> AdapterRow:
        row = self._row(id)
        if row.state == REMOVED:
            hint = f"`orchctl undo {row.id}` brings it back."
            raise AdapterUnknown(f"{row.name} was removed, and lies in the trash", hint=hint, field="adapter")
        return row

    def undo(self, what: str = "", *, preview: bool = False) -> Undone:
        """Take back the newest act that can be; with `what`, the newest that was done to it.

        `what` is an adapter's name, or a key as `Undone` tells it, or the beginning of an id. Raises `NothingToUndo` or
        `UndoStale`.
        """
        rows = self.index.read("SELECT digest FROM adapter WHERE name = ?", (what,)) if what else []
        meant = {what, *(row[0] for row in rows)}

        def touches(key: str) -> bool:
            return not what or key in meant or (len(what) >= MIN_PREFIX and key.startswith(what))

        try:
            undone = self.local.undo(touches, preview=preview, gone=self._is_gone)
        except NothingToUndo as error:
            if not what:
                raise
            hint = "`orchctl undo --dry-run` says what was done last. What was thrown out of the trash is gone."
            message = f"nothing that was done to {what[:80]!r} is left to be undone"
            raise NothingToUndo(message, hint=hint) from error
        if preview:
            return undone
        rebuild.refresh_pins(self.index)
        self.people.forget()
        changes = tuple(change for change in self.restand() if change.before != change.after)
        return msgspec.structs.replace(undone, changes=changes)

    def _is_gone(self, key: str) -> bool:
        """Whether what has this key (an adapter or a data set) is neither here nor in the trash."""
        if key.startswith(ADAPTER):
            return not self.has_adapter(key)
        rows = (Dataset, DatasetTrash)
        return key.startswith(DATASET) and all(self.local.get(kind, key) is None for kind in rows)

    def trust(self, author: str) -> str:
        return self.people.level(author)

    def _row(self, id: str) -> AdapterRow:
        rows = self.rows_of([id])
        if not rows:
            raise AdapterUnknown(f"no adapter {id[:80]!r} is here", field="adapter")
        return rows[0]

    def rows_of(self, ids: Sequence[str]) -> list[AdapterRow]:
        """The rows of adapters that are here, in the order of `ids`; unknown ones are left out."""
        rows = self.index.read(ONE, ids) if len(ids) == 1 else self.index.read(SOME, (list(ids),))
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
            topics=tuple(filter(None, topics.split("\n"))),
        )

    # ---- announcements ------------------------------------------------------------------------------------------

    def record_announcement(self, announcement: Verified[Announcement], peer: str) -> bool:
        """Remember what `peer` told; whether it was new."""
        return self.news.take(announcement, peer).new

    def announcements(self, topic: str | None = None, *, digests: Sequence[str] | None = None) -> list[AnnouncementRow]:
        """What peers and this node have announced, or only these, newest first."""
        rows = self.index.read(
            "SELECT n.adapter, n.author, n.topics, n.size, n.base, n.peer, n.created, a.digest IS NOT NULL"
            " FROM announcement n LEFT JOIN adapter a ON a.digest = n.adapter"
            " WHERE ($1 IS NULL OR list_contains(n.topics, $1)) AND ($2 IS NULL OR list_contains($2, n.digest))"
            " ORDER BY n.created DESC, n.digest",
            (topic, digests),
        )
        view, revoked = self.people.view(), self.people.said_revoked() if rows else {}
        return [
            AnnouncementRow(
                adapter=adapter,
                author=author,
                trust=view.level(author),
                revoked=revoked.get(adapter, ""),
                topics=tuple(topics),
                size=size,
                base=base,
                peer=peer,
                created_ms=created,
                here=here,
            )
            for adapter, author, topics, size, base, peer, created, here in rows
        ]

    def is_shared(self, id: str, *, revoked_too: bool = False) -> bool:
        """Whether an adapter is admitted and has been announced: peers may have it then.

        `revoked_too`: also one that its author has taken back.
        """
        rows = self.index.read("SELECT state FROM adapter WHERE digest = ?", (id,))
        is_given = bool(rows) and (rows[0][0] == ADMITTED or (revoked_too and id in self.people.revoked()))
        return is_given and bool(self.index.read("SELECT 1 FROM announcement WHERE adapter = ? LIMIT 1", (id,)))

    def announced_under(self, id: str) -> frozenset[str]:
        """Names of the topics that any announcement of an adapter gives."""
        rows = self.index.read("SELECT DISTINCT unnest(topics) FROM announcement WHERE adapter = $1", (id,))
        return frozenset(name for (name,) in rows)

    def shared_manifest(self, id: str, *, revoked_too: bool = False) -> bytes | None:
        """The signed manifest of what is shared."""
        shared = self.is_shared(id, revoked_too=revoked_too)
        return self.manifests.read(parse_id(id, ADAPTER)).envelope if shared else None

    def announce(self, make: Callable[[int], Verified[Announcement]], peer: str) -> Verified[Announcement]:
        """Sign an announcement of this node, with the number that `make` is given, and remember it.

        No number is given twice, also not after the index was made again.
        """
        with self._announcing:
            signed = make(self.next_seq())
            self.record_announcement(signed, peer)
        return signed

    def next_seq(self) -> int:
        """The number of this node's next announcement: the time, or one more than the last where that is more.

        A home that was put back from a copy knows no newer announcement than the copy did. Counting on from there
        would use numbers twice, which convicts its author everywhere.
        """
        rows = self.index.read(
            "SELECT greatest((SELECT coalesce(max(seq), 0) FROM announcement WHERE author = $1),"
            " (SELECT coalesce(max(seq), 0) FROM own_announcement)) + 1",
            (self.author,),
        )
        return max(int(rows[0][0]), self.clock())

    # ---- bases --------------------------------------------------------------------------------------------------

    def add_base(self, name: str, path: Path) -> Base:
        """Make a base known that the program brings along. Raises `BaseUnknown` when there is none."""
        return self.known_bases.build_in(name, path)

    def bases(self) -> list[Base]:
        """Every base that can be used now."""
        return self.known_bases.all()

    def base(self, text: str) -> Base:
        """By name, fingerprint, or a fingerprint that is linked to it. Raises `BaseUnknown` or `BaseChanged`."""
        return self.known_bases.get(text)

    def _base_of(self, manifest: Verified[Manifest]) -> Base | None:
        return self.known_bases.of(manifest.record.base.fingerprint)


def _is_same(link: Path, blob: Path) -> bool:
    try:
        return link.samefile(blob)
    except FileNotFoundError:
        return False


SHOWN = "SELECT a.shown, a.author, a.state, a.reason, a.origin, a.received, a.pinned, a.topics FROM adapter a"
ONE = f"{SHOWN} WHERE a.digest = ?"
SOME = f"{SHOWN} JOIN (SELECT unnest($1::VARCHAR[]) AS id, unnest(range(len($1::VARCHAR[]))) AS place) u"
SOME += " ON a.digest = u.id ORDER BY u.place"
