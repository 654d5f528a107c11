"""Makes the index's rows from what is on disk: manifests, blobs, the journal.

A manifest whose adapter has a verdict in the journal came through the door once: its signature is verified, its files
are looked for, and its rows are made. One without (a crash came before the verdict) is judged in full, like any at the
door.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from orchd.errors import BlobUnknown, Refused
from orchd.records import Manifest, Verified, text_id
from orchd.records.ids import ADAPTER
from orchd.registry.admission import CHECKS, Known, judge
from orchd.registry.blobs import BlobStore
from orchd.registry.index import Cursor, Index
from orchd.registry.local import delete, put
from orchd.registry.local_rows import Pin, Received, RecipeCheck, Release, Rot, Trash, Verdict
from orchd.registry.reading import Read, read_all
from orchd.registry.restand import DAMAGED, MISSING
from orchd.registry.rows import ADAPTER_COLUMNS, ANNOUNCED, Edge, adapter_values, edges, form, joined_topics
from orchd.registry.standing import QUARANTINED, Facts, Standing, standing

if TYPE_CHECKING:
    from orchd.registry.registry import Registry

LOG = logging.getLogger(__name__)
ID_TYPE = f"S{len(text_id(ADAPTER, bytes(32)))}"
LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz234567", np.uint8)  # of base32
BATCH = 2_000  # adapters that become one transaction
DECIDED = "state, reason, pinned, used, topics"  # columns of `adapter` that no manifest and no verdict tells
NOT_WEIGHED = "not weighed yet"  # the reason until the standing was computed
Progress = Callable[[int, int], None]


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """How many adapters were put into the index, and how many came out of it because their manifest is gone."""

    put_back: int
    taken_out: int


def insert_adapter(
    cursor: Cursor, manifest: Verified[Manifest], verdict: Verdict, stands: Standing | None = None
) -> None:
    """The rows of one adapter, in quarantine until its standing was computed, where that was not done before."""
    state, reason = (QUARANTINED, NOT_WEIGHED) if stands is None else (stands.state, stands.reason)
    told = cursor.execute("SELECT topics FROM announcement WHERE adapter = ?", [manifest.id]).fetchall()
    topics = joined_topics(topic for (topics,) in told for topic in topics)
    values = (*adapter_values(manifest, verdict), state, reason, False, verdict.received, topics)
    Index.put(cursor, "adapter", "digest", values)
    for edge in edges(manifest):
        cursor.execute("INSERT OR REPLACE INTO edge VALUES (?, ?, ?, ?)", list(edge))


def rebuild(registry: Registry, progress: Progress = lambda done, total: None) -> Rebuilt:
    """Make every row again from what is on the disk, and put it in the place of one that differs.

    Nobody sees an index that lacks half of it meanwhile. `progress` is told adapters done and in all.
    """
    with registry.tidying:
        registry.local.refold()
        registry.people.forget()
        return reconcile(registry, everything=True, served=True, progress=progress)


def reconcile(
    registry: Registry,
    *,
    everything: bool = False,
    served: bool = False,
    progress: Progress = lambda done, total: None,
) -> Rebuilt:
    """Compare index and disk, and put back what the index lacks; `everything`: make all rows again.

    `served`: others read the index meanwhile, so that what comes in new waits in quarantine until all was weighed.
    """
    index = registry.index
    everything = everything or index.read("SELECT form FROM built") != [(form(),)]
    known = _known(index)  # first: what is admitted meanwhile is on the disk then, and not taken for lost
    digests, here = _on_disk(registry)
    missing = digests if everything else digests[np.isin(here, known, assume_unique=True, invert=True)]
    gone = [id.decode() for id in np.setdiff1d(known, here, assume_unique=True).tolist()]
    put_back = done = 0
    for batch in read_all(registry.manifests.root, list(_batches(missing))):
        put_back += _put_back(registry, batch, served=served)
        done += len(batch)
        progress(done, len(missing))
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
Digests = np.ndarray[Any, np.dtype[np.uint8]]  # [n, 32]


def _on_disk(registry: Registry) -> tuple[Digests, Ids]:
    """The digests of the manifests that are here, and the same as ids."""
    digests = np.frombuffer(b"".join(registry.manifests.digests()), np.uint8).reshape(-1, 32)
    return digests, text_ids(digests)


def text_ids(digests: Digests) -> Ids:
    """What `text_id` gives for each adapter. One by one they would take seconds, all at once a hundred MB."""
    ids = np.empty(len(digests), ID_TYPE)
    for start in range(0, len(digests), BATCH):
        ids[start : start + BATCH] = _text_ids(digests[start : start + BATCH])
    return ids


def _text_ids(digests: Digests) -> Ids:
    padded = np.zeros((len(digests), 7, 5), np.uint64)  # 40 bits are eight letters
    padded.reshape(-1, 35)[:, :32] = digests
    bits = np.bitwise_or.reduce(padded << np.arange(32, -1, -8, dtype=np.uint64), axis=2)
    letters = LETTERS[(bits[:, :, None] >> np.arange(35, -1, -5, dtype=np.uint64)) & np.uint64(31)].reshape(-1, 56)
    ids = np.empty((len(digests), np.dtype(ID_TYPE).itemsize), np.uint8)
    ids[:, : len(ADAPTER)] = np.frombuffer(ADAPTER.encode(), np.uint8)
    ids[:, len(ADAPTER) :] = letters[:, : ids.shape[1] - len(ADAPTER)]
    return ids.view(ID_TYPE).reshape(-1)


def _known(index: Index) -> Ids:
    return np.fromiter((row[0] for row in index.stream("SELECT digest FROM adapter")), ID_TYPE)


def not_indexed(registry: Registry) -> list[str]:
    """Adapters with a manifest on the disk that the index does not know."""
    unknown = np.setdiff1d(_on_disk(registry)[1], _known(registry.index), assume_unique=True)
    return [id.decode() for id in unknown.tolist()]


def _batches(digests: Digests) -> Iterator[list[bytes]]:
    for start in range(0, len(digests), BATCH):
        yield [digest.tobytes() for digest in digests[start : start + BATCH]]


def _put_back(registry: Registry, batch: Sequence[Read], *, served: bool) -> int:
    """One batch; how many of it were whole."""
    ids = [read.id for read in batch]
    verdicts = {row.adapter: row for row in registry.local.where(Verdict, "adapter IN (SELECT unnest(?))", (ids,))}
    whole = list[tuple[Read, Verdict]]()
    for read in batch:
        if read.error:
            _tell_unread(registry, read)
        elif verdict := verdicts.get(read.id) or _judge_if_there(registry, read.digest):
            whole.append((read, verdict))
    _note_lost_files(registry, [file for read, _ in whole for file in read.files])
    registry.index.write(lambda cursor: _append(cursor, whole, served=served))
    return len(whole)


def _tell_unread(registry: Registry, read: Read) -> None:
    if read.unreadable:
        registry.notices.append(f"the manifest {read.digest.hex()} can't be read: {read.error}")
    else:
        aside = registry.manifests.set_aside(read.digest)
        registry.notices.append(f"a manifest is damaged and was set aside as {aside}: {read.error}")


def _judge_if_there(registry: Registry, digest: bytes) -> Verdict | None:
    """The verdict on what has none yet: coming in now, or left by a crash. The door is waited for."""
    with registry.keeping:
        if not registry.manifests.path(digest).exists():
            return None  # it was refused meanwhile
        known = registry.local.get(Verdict, text_id(ADAPTER, digest))
        return known or _judge(registry, registry.manifests.read(digest))


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


def _append(cursor: Cursor, whole: Sequence[tuple[Read, Verdict]], *, served: bool) -> None:
    """Rows and edges, where they are not as they should be already: to replace a row takes longer than to compare."""
    before, edges_before = _rows_of(cursor, [read.id for read, _ in whole])
    rows, leading, changed = list[tuple[Any, ...]](), list[Edge](), list[str]()
    for read, verdict in whole:
        told, old = (*read.values, verdict.origin, verdict.received), before.get(read.id, ())
        if told != old[: len(told)]:
            rows.append((*told, *(old[len(told) :] or _new(verdict, served=served))))
        if set(read.edges) != edges_before.get(read.id, set()):
            changed.append(read.id)
            leading.extend(read.edges)
    if rows:
        Index.append(cursor, "adapter", rows)
    if changed:
        cursor.execute("DELETE FROM edge WHERE child IN (SELECT unnest(?))", [changed])
    if leading:
        Index.append(cursor, "edge", leading)


def _rows_of(cursor: Cursor, ids: Sequence[str]) -> tuple[dict[str, tuple[Any, ...]], dict[str, set[Edge]]]:
    """The rows of these adapters as they are now, and their edges."""
    some = "BETWEEN $1 AND $2 AND {0} IN (SELECT unnest($3))"  # the bounds spare most of the table
    which = [min(ids, default=""), max(ids, default=""), list(ids)]
    columns = f"{', '.join(ADAPTER_COLUMNS)}, {DECIDED}"
    rows = cursor.execute(f"SELECT {columns} FROM adapter WHERE digest {some.format('digest')}", which).fetchall()
    edges = defaultdict[str, set[Edge]](set)
    for edge in cursor.execute(f"SELECT * FROM edge WHERE child {some.format('child')}", which).fetchall():
        edges[edge[0]].add(edge)
    return {row[0]: row for row in rows}, edges


def _new(verdict: Verdict, *, served: bool) -> tuple[Any, ...]:
    """`DECIDED` of an adapter of which nothing but the verdict was looked at."""
    stands = standing(Facts(reasons=verdict.reasons))
    state, reason = (QUARANTINED, NOT_WEIGHED) if served else (stands.state, stands.reason)
    return state, reason, False, verdict.received, ""


def _take_out(registry: Registry, gone: Iterable[str]) -> None:
    """Rows whose manifest is not on the disk: what was thrown out for good, or lost."""
    for id in gone:
        if registry.local.get(Verdict, id) is None:  # thrown out for good, and no row was left to be taken out
            registry.index.write(lambda cursor, id=id: delete_rows(cursor, id))  # type: ignore[misc]
        elif registry.local.get(Trash, id) is None:
            registry.notices.append(f"the manifest of the adapter {id} is gone from the disk; fetch it again")
            registry.index.write(lambda cursor, id=id: delete_rows(cursor, id))  # type: ignore[misc]
        else:
            forget(registry, id)


def forget(registry: Registry, id: str) -> None:
    """Every decision about an adapter, and its rows, after its manifest was deleted."""
    changes = [delete(row, id) for row in (Verdict, Trash, Pin, Release, RecipeCheck)]
    if author := registry.news.author_of(id):  # so that a revocation still reaches what contains it
        changes.append(
            put(Received(digest=id, kind="manifest", adapter=id, author=author, envelope=b"", since=registry.clock()))
        )
    registry.local.act("adapter.purge", *changes, then=lambda cursor: delete_rows(cursor, id), urgent=True)


def delete_rows(cursor: Cursor, id: str) -> None:
    cursor.execute("DELETE FROM adapter WHERE digest = ?", [id])
    cursor.execute("DELETE FROM edge WHERE child = ?", [id])


def refresh_pins(index: Index) -> None:
    index.execute("UPDATE adapter SET pinned = NOT pinned WHERE pinned <> (digest IN (SELECT adapter FROM pin))")


def refresh_topics(index: Index) -> None:
    index.execute(
        "UPDATE adapter SET topics = n.told"
        f" FROM (SELECT adapter AS id, {ANNOUNCED} AS told FROM announcement GROUP BY 1) n"
        " WHERE digest = n.id AND adapter.topics <> n.told"
    )
