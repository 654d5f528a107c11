"""Makes the index's rows from what is on disk: manifests, blobs, the journal.

A manifest whose adapter has a verdict in the journal came through the door once: its signature is verified, its files
are looked for, and its rows are made. One without (a crash came before the verdict) is judged in full, like any at the
door.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from orchd.errors import BlobUnknown, Refused
from orchd.records import Manifest, Verified, parse_id, text_id
from orchd.records.ids import ADAPTER
from orchd.registry.admission import CHECKS, Known, judge
from orchd.registry.blobs import BlobStore
from orchd.registry.index import Cursor, Index
from orchd.registry.local import delete, put
from orchd.registry.local_rows import Pin, Received, Release, Rot, Trash, Verdict
from orchd.registry.reading import Read, read_all
from orchd.registry.restand import DAMAGED, MISSING
from orchd.registry.rows import adapter_values, edges, form
from orchd.registry.standing import QUARANTINED, Facts, standing

if TYPE_CHECKING:
    from orchd.registry.registry import Registry

LOG = logging.getLogger(__name__)
ID_TYPE = f"S{len(text_id(ADAPTER, bytes(32)))}"
BATCH = 1_000  # adapters that become one transaction
#: The topics under which the adapter $1 was announced.
TOPICS = "(SELECT coalesce(list_sort(list_distinct(flatten(list(topics)))), []) FROM announcement WHERE adapter = $1)"
NOT_WEIGHED = "not weighed yet"  # the reason until the standing was computed


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """How many adapters were put into the index, and how many came out of it because their manifest is gone."""

    put_back: int
    taken_out: int


def insert_adapter(cursor: Cursor, manifest: Verified[Manifest], verdict: Verdict) -> None:
    """The rows of one adapter, in quarantine until its standing was computed."""
    values = (*adapter_values(manifest, verdict), QUARANTINED, NOT_WEIGHED, False, verdict.received, [])
    cursor.execute(f"INSERT OR REPLACE INTO adapter VALUES ({', '.join('?' * len(values))})", list(values))
    cursor.execute(f"UPDATE adapter SET topics = {TOPICS} WHERE digest = $1", [manifest.id])
    for edge in edges(manifest):
        cursor.execute("INSERT OR REPLACE INTO edge VALUES (?, ?, ?, ?)", list(edge))


def rebuild(registry: Registry) -> Rebuilt:
    """Make every row again from what is on the disk. Nobody sees an index that lacks half of it meanwhile."""
    registry.local.refold()
    registry.people.forget()
    return reconcile(registry, everything=True)


def reconcile(registry: Registry, *, everything: bool = False) -> Rebuilt:
    """Compare index and disk, and put back what the index lacks; `everything`: make all rows again."""
    index = registry.index
    everything = everything or index.read("SELECT form FROM built") != [(form(),)]
    known = _known(index)  # first: what is admitted meanwhile is on the disk then, and not taken for lost
    here = _on_disk(registry)
    missing = here if everything else np.setdiff1d(here, known, assume_unique=True)
    gone = [id.decode() for id in np.setdiff1d(known, here, assume_unique=True).tolist()]
    put_back = 0
    for batch in read_all(registry.manifests.root, list(_batches(missing))):
        put_back += _put_back(registry, batch)
    _take_out(registry, gone)
    registry.news.fill()
    registry.people.forget()
    refresh_pins(index)
    refresh_topics(index)
    registry.restand(tell=False)
    if everything:
        index.execute("INSERT OR REPLACE INTO built VALUES (1, ?)", (form(),))
    return Rebuilt(put_back=put_back, taken_out=len(gone))


Ids = np.ndarray[Any, np.dtype[np.bytes_]]  # text ids, side by side: a hundred thousand of them take 6 MB


def _on_disk(registry: Registry) -> Ids:
    return np.fromiter((text_id(ADAPTER, digest) for digest in registry.manifests.digests()), ID_TYPE)


def _known(index: Index) -> Ids:
    return np.fromiter((row[0] for row in index.stream("SELECT digest FROM adapter")), ID_TYPE)


def not_indexed(registry: Registry) -> list[str]:
    """Adapters with a manifest on the disk that the index does not know."""
    unknown = np.setdiff1d(_on_disk(registry), _known(registry.index), assume_unique=True)
    return [id.decode() for id in unknown.tolist()]


def _batches(ids: Ids) -> Iterator[list[bytes]]:
    for start in range(0, len(ids), BATCH):
        yield [parse_id(id.decode(), ADAPTER) for id in ids[start : start + BATCH].tolist()]


def _put_back(registry: Registry, batch: Sequence[Read]) -> int:
    """One batch; how many of it were whole."""
    ids = [text_id(ADAPTER, read.digest) for read in batch]
    verdicts = {row.adapter: row for row in registry.local.where(Verdict, "adapter IN (SELECT unnest(?))", (ids,))}
    whole = list[tuple[Read, Verdict]]()
    for id, read in zip(ids, batch, strict=True):
        if read.error:
            _tell_unread(registry, read)
        elif verdict := verdicts.get(id) or _judge(registry, registry.manifests.read(read.digest)):
            whole.append((read, verdict))
    _note_lost_files(registry, [file for read, _ in whole for file in read.files])
    registry.index.write(lambda cursor: _append(cursor, whole))
    return len(whole)


def _tell_unread(registry: Registry, read: Read) -> None:
    if read.unreadable:
        registry.notices.append(f"the manifest {read.digest.hex()} can't be read: {read.error}")
    else:
        aside = registry.manifests.set_aside(read.digest)
        registry.notices.append(f"a manifest is damaged and was set aside as {aside}: {read.error}")


def _judge(registry: Registry, manifest: Verified[Manifest]) -> Verdict | None:
    """The verdict on an adapter that has none, kept in the journal; None when it does not pass the door."""
    files = {entry.path: registry.blobs.path(entry.sha256) for entry in manifest.record.files}
    # It was let in once: a clock that stands too early now is no reason to throw it out, and what was decided about
    # its author meanwhile is weighed with its standing.
    now = max(registry.clock(), manifest.record.created_ms)
    try:
        reasons = judge(replace(registry.candidate(manifest, files, now), known=Known()), CHECKS)
    except (Refused, FileNotFoundError) as error:
        aside = registry.manifests.set_aside(manifest.digest)
        registry.notices.append(f"an adapter is damaged; its manifest was set aside as {aside}: {error}")
        return None
    except OSError as error:
        registry.notices.append(f"the adapter {manifest.id} can't be read: {error}")
        return None
    verdict = Verdict(
        adapter=manifest.id, reasons=tuple(reasons), origin=_origin(registry, manifest), received=registry.clock()
    )
    registry.local.act("adapter.admit", put(verdict))
    return verdict


def _origin(registry: Registry, manifest: Verified[Manifest]) -> str:
    if manifest.author != registry.author:
        return "fetched"
    return "averaged" if manifest.record.lineage else "trained"


def _note_lost_files(registry: Registry, files: Iterable[tuple[bytes, int]]) -> None:
    """Blobs that are not there, or not whole, are written down as rot: it keeps the adapter in quarantine."""
    lost, now = dict[str, Rot](), registry.clock()
    for digest, size in files:
        if what := _what_is_wrong(registry.blobs, digest, size):
            lost[digest.hex()] = Rot(blob=digest.hex(), what=what, since=now)
    if lost:
        registry.local.act("blob.rot", *map(put, lost.values()))


def _what_is_wrong(blobs: BlobStore, digest: bytes, size: int) -> str:
    try:
        return "" if blobs.size(digest) == size else DAMAGED
    except BlobUnknown:
        return MISSING


def _append(cursor: Cursor, whole: Sequence[tuple[Read, Verdict]]) -> None:
    ids = [read.values[0] for read, _ in whole]
    before: dict[str, tuple[Any, ...]] = {
        row[0]: row[1:]
        for row in cursor.execute(
            "SELECT digest, state, reason, pinned, used, topics FROM adapter WHERE digest IN (SELECT unnest(?))", [ids]
        ).fetchall()
    }
    rows = [
        (*read.values, verdict.origin, verdict.received, *(before.get(id) or _as_judged(verdict)))
        for id, (read, verdict) in zip(ids, whole, strict=True)
    ]
    Index.append(cursor, "adapter", rows)
    cursor.execute("DELETE FROM edge WHERE child IN (SELECT unnest(?))", [ids])
    if found := [edge for read, _ in whole for edge in read.edges]:
        Index.append(cursor, "edge", found)


def _as_judged(verdict: Verdict) -> tuple[Any, ...]:
    """What is decided about an adapter, before anything but the verdict was looked at."""
    stands = standing(Facts(reasons=verdict.reasons))
    return stands.state, stands.reason, False, verdict.received, []


def _take_out(registry: Registry, gone: Iterable[str]) -> None:
    """Rows whose manifest is not on the disk: what was thrown out for good, or lost."""
    for id in gone:
        if registry.local.get(Trash, id) is None:
            registry.notices.append(f"the manifest of the adapter {id} is gone from the disk; fetch it again")
            registry.index.write(lambda cursor, id=id: delete_rows(cursor, id))  # type: ignore[misc]
        else:
            forget(registry, id)


def forget(registry: Registry, id: str) -> None:
    """Every decision about an adapter, and its rows, after its manifest was deleted."""
    changes = [delete(row, id) for row in (Verdict, Trash, Pin, Release)]
    if author := registry.news.author_of(id):  # so that a revocation still reaches what contains it
        changes.append(
            put(Received(digest=id, kind="manifest", adapter=id, author=author, envelope=b"", since=registry.clock()))
        )
    registry.local.act("adapter.purge", *changes, then=lambda cursor: delete_rows(cursor, id))


def delete_rows(cursor: Cursor, id: str) -> None:
    cursor.execute("DELETE FROM adapter WHERE digest = ?", [id])
    cursor.execute("DELETE FROM edge WHERE child = ?", [id])


def refresh_pins(index: Index) -> None:
    index.execute("UPDATE adapter SET pinned = NOT pinned WHERE pinned <> (digest IN (SELECT adapter FROM pin))")


def refresh_topics(index: Index) -> None:
    index.execute(
        "UPDATE adapter SET topics = n.topics FROM (SELECT adapter AS id, list_sort(list_distinct(flatten("
        "list(topics)))) AS topics FROM announcement GROUP BY 1) n WHERE digest = n.id AND adapter.topics <> n.topics"
    )
