"""The registry: adapters behind the one door, and the tables of what this node knows.

Truth is on disk as signed manifests and content-addressed blobs; the DuckDB index is made again from them when it is
lost. A manifest is written after its blobs and before its row, so that a crash at any moment leaves an adapter whole
or absent.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import msgspec

from orchd.errors import AdapterUnknown, AmbiguousId, BaseUnknown, BlobUnknown, DigestMismatch, IndexDamaged, Refused
from orchd.records import Announcement, Manifest, Verified, parse_id, text_id, verify
from orchd.records.ids import ADAPTER, BASE
from orchd.registry.admission import CHECKS, Candidate, Check
from orchd.registry.bases import Base, load
from orchd.registry.blobs import UNFINISHED, BlobStore, write_durably
from orchd.registry.index import Cursor, Index
from orchd.registry.rows import AdapterRow, AnnouncementRow, adapter_row, announcement_key

ADMITTED, QUARANTINED = "admitted", "quarantined"
SELF, STRANGER = "self", "stranger"
MIN_PREFIX = len(ADAPTER) + 4
MANIFEST_FILE = re.compile(r"\A[0-9a-f]{64}\Z")
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
        self.author = author
        #: Why the index was made again at start, empty when it was not.
        self.rebuilt = rebuilt
        self._clock = clock
        self._manifests = data / "manifests"
        self._folders = data / "adapters"
        self._bases: dict[str, Base] = {}
        #: Held while an adapter's blobs are kept or thrown away: two adapters may share one.
        self._keeping = threading.Lock()
        for directory in (self._manifests, self._folders):
            directory.mkdir(parents=True, exist_ok=True)
        for unfinished in self._folders.glob(".*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        for unfinished in self._manifests.glob(UNFINISHED + "*"):
            unfinished.unlink()

    @classmethod
    def open(
        cls, data: Path, clock: Callable[[], int], author: str = "", bases: Mapping[str, Path] | None = None
    ) -> Self:
        """The registry below `data`, made there when nothing is. A manifest without a row goes through the door again.

        `bases` are folders by name.
        """
        data.mkdir(parents=True, exist_ok=True)
        path, rebuilt = data / "registry.db", ""
        try:
            index = Index(path)
        except IndexDamaged as error:
            rebuilt = error.message
            _set_aside(path, clock())
            index = Index(path)
        registry = cls(data, index, clock, author, rebuilt=rebuilt)
        for name, folder in (bases or {}).items():
            registry.add_base(name, folder)
        registry._put_back_missing()
        return registry

    def close(self) -> None:
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
            return self._admission(manifest.id, new=False)
        reasons = self._judge(manifest, files, checks, self._clock())
        with self._keeping:
            if new := not self.has_adapter(manifest.id):
                self._keep(manifest, files)
                self._insert(manifest, reasons, origin)
        return self._admission(manifest.id, new=new)

    def _admission(self, id: str, *, new: bool) -> Admission:
        row = self._row(id)
        return Admission(id=row.id, verdict=row.state, reason=row.reason, new=new, row=row)

    def _judge(
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
            write_durably(self._manifests / manifest.digest.hex(), manifest.envelope)
            undo.pop_all()

    def _insert(self, manifest: Verified[Manifest], reasons: Sequence[str], origin: str) -> None:
        record = manifest.record
        values = (
            manifest.id,
            manifest.envelope,
            record.name,
            manifest.author,
            text_id(BASE, record.base.fingerprint),
            record.adapter.rank,
            list(record.adapter.target_modules),
            record.size,
            record.created_ms,
            self._clock(),
            QUARANTINED if reasons else ADMITTED,
            "; ".join(reasons),
            origin,
        )
        marks = ", ".join("?" * len(values))
        self.index.execute(f"INSERT INTO adapter VALUES ({marks}) ON CONFLICT DO NOTHING", values)

    def _put_back_missing(self) -> None:
        known = {row[0] for row in self.index.read("SELECT digest FROM adapter")}
        for path in sorted(self._manifests.iterdir()):
            if not MANIFEST_FILE.match(path.name) or text_id(ADAPTER, bytes.fromhex(path.name)) in known:
                continue
            try:
                self._put_back(path)
            except (Refused, FileNotFoundError) as error:
                LOG.warning("the adapter with the manifest %s is damaged and was set aside: %s", path, error)
                path.rename(path.with_name(f".damaged-{path.name}"))
            except OSError as error:
                LOG.warning("the manifest %s was passed over: %s", path, error)

    def _put_back(self, path: Path) -> None:
        manifest = verify(path.read_bytes(), Manifest)
        if manifest.digest.hex() != path.name:
            raise DigestMismatch(f"{path} holds another manifest than its name says")
        files = {entry.path: self.blobs.path(entry.sha256) for entry in manifest.record.files}
        # It was let in once: a clock that stands too early now is no reason to throw it out.
        reasons = self._judge(manifest, files, (), max(self._clock(), manifest.record.created_ms))
        self._insert(manifest, reasons, self._origin(manifest))

    def _origin(self, manifest: Verified[Manifest]) -> str:
        if manifest.author != self.author:
            return "fetched"
        return "averaged" if manifest.record.lineage else "trained"

    # ---- adapters -----------------------------------------------------------------------------------------------

    def adapters(self, *, state: str | None = None, topic: str | None = None) -> list[AdapterRow]:
        """Adapters that are here, newest first."""
        found = self._rows("WHERE ? IS NULL OR state = ?", (state, state))
        return [row for row in found if topic is None or topic in row.topics]

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
        if len(text) >= MIN_PREFIX:
            sql = "SELECT digest FROM adapter WHERE starts_with(digest, $1)"
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
            "SELECT digest, author FROM adapter WHERE name = ? ORDER BY created DESC, received DESC, digest", (name,)
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
        rows = self.index.read("SELECT envelope FROM adapter WHERE digest = ?", (id,))
        if not rows:
            raise AdapterUnknown(f"no adapter {id[:80]!r} is here", field="adapter")
        return verify(bytes(rows[0][0]), Manifest)

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
        """Forget an adapter and the blobs that no other adapter has."""
        with self._keeping:
            digests = {entry.sha256 for entry in self.manifest(id).record.files}
            self.index.execute("DELETE FROM adapter WHERE digest = ?", (id,))
            for other in self._manifests_here():
                digests -= {entry.sha256 for entry in other.record.files}
            (self._manifests / _digest_hex(id)).unlink(missing_ok=True)
            shutil.rmtree(self._folders / id, ignore_errors=True)
            for digest in digests:
                self.blobs.remove(digest)

    def _manifests_here(self) -> list[Verified[Manifest]]:
        return [verify(bytes(row[0]), Manifest) for row in self.index.read("SELECT envelope FROM adapter")]

    def trust(self, author: str) -> str:
        return SELF if author == self.author else STRANGER

    def _row(self, id: str) -> AdapterRow:
        rows = self._rows("WHERE digest = ?", (id,))
        if not rows:
            raise AdapterUnknown(f"no adapter {id[:80]!r} is here", field="adapter")
        return rows[0]

    def _rows(self, where: str, params: Sequence[Any]) -> list[AdapterRow]:
        rows = self.index.read(
            f"SELECT envelope, state, reason, origin, received FROM adapter {where} ORDER BY created DESC, digest",
            params,
        )
        topics = self._topics_by_adapter()
        return [self._adapter_row(row, topics) for row in rows]

    def _adapter_row(self, row: tuple[Any, ...], topics: Mapping[str, tuple[str, ...]]) -> AdapterRow:
        envelope, state, reason, origin, received = row
        manifest = verify(bytes(envelope), Manifest)
        return adapter_row(
            manifest,
            trust=self.trust(manifest.author),
            state=state,
            reason=reason,
            origin=origin,
            received_ms=received,
            topics=topics.get(manifest.id, ()),
        )

    def _topics_by_adapter(self) -> dict[str, tuple[str, ...]]:
        rows = self.index.read(
            "SELECT adapter, list_sort(list_distinct(flatten(list(topics)))) FROM announcement GROUP BY 1"
        )
        return {adapter: tuple(topics) for adapter, topics in rows}

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
            self._clock(),
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
            "SELECT envelope FROM adapter WHERE digest = $1 AND state = $2"
            " AND EXISTS (SELECT 1 FROM announcement n WHERE n.adapter = $1)",
            (id, ADMITTED),
        )
        return bytes(rows[0][0]) if rows else None

    def next_seq(self) -> int:
        """The number of this node's next announcement."""
        rows = self.index.read("SELECT coalesce(max(seq), 0) + 1 FROM announcement WHERE author = ?", (self.author,))
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


def _digest_hex(id: str) -> str:
    return parse_id(id, ADAPTER).hex()


def _set_aside(path: Path, now_ms: int) -> None:
    """Move a damaged index and its log out of the way; never delete it."""
    for name in (path, path.with_name(path.name + ".wal")):
        if name.exists():
            name.rename(name.with_name(f"{name.name}.damaged-{now_ms}"))
