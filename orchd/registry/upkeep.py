"""What keeps the store in order: the trash, garbage, rot, the quota, backups.

An adapter goes its last way in four steps, each of which the next start finishes when a crash comes between: it is in
the trash (the journal says so), its manifest is deleted, the decisions about it and its rows are, and its blobs when
no other adapter and no deployment has them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from orchd.errors import BlobUnknown, RegistryIncomplete
from orchd.records import parse_id
from orchd.records.ids import ADAPTER
from orchd.registry import rebuild, restore
from orchd.registry.local import delete, put
from orchd.registry.local_rows import Rot, Trash
from orchd.registry.restand import DAMAGED, MISSING

if TYPE_CHECKING:
    from orchd.registry.registry import Registry

DAY_MS = 86_400_000
TRASH_MS = 30 * DAY_MS
#: A blob that nothing has is left alone this long: somebody may be about to want it.
GRACE_MS = DAY_MS
LIVE = "SELECT unnest(blobs) AS blob FROM adapter UNION SELECT blob FROM deployment"
Progress = Callable[[int, int], None]


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What was thrown away, or would be: adapters of the trash, blobs that nothing has, their bytes."""

    adapters: tuple[str, ...]
    blobs: int
    bytes: int
    dry_run: bool


class Scrubbed(msgspec.Struct, frozen=True, kw_only=True):
    """`damaged` and `missing` are the adapters with such a file; `mended` blobs are whole again."""

    blobs: int
    bytes: int
    damaged: tuple[str, ...]
    missing: tuple[str, ...]
    mended: int


class Evicted(msgspec.Struct, frozen=True, kw_only=True):
    """Adapters thrown out to make room, and the bytes of all blobs before and after."""

    adapters: tuple[str, ...]
    before: int
    after: int


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes in bytes; `backup` is the newest one's name, empty when there is none."""

    admitted: int
    quarantined: int
    removed: int
    pinned: int
    blobs: int
    blob_bytes: int
    rotten: int
    index_bytes: int
    journal_bytes: int
    backup: str
    free_bytes: int
    notices: tuple[str, ...]


# ---- the trash and garbage ---------------------------------------------------------------------------------------


def purge(registry: Registry, removed_before_ms: int) -> tuple[str, ...]:
    """Delete for good what has been in the trash since before a time."""
    rows = registry.local.where(Trash, "since < ?", (removed_before_ms,))
    for row in rows:
        digest = parse_id(row.adapter, ADAPTER)
        shutil.rmtree(registry.folder_of(row.adapter), ignore_errors=True)
        registry.manifests.remove(digest)
        rebuild.forget(registry, row.adapter)
    return tuple(row.adapter for row in rows)


def collect(registry: Registry, *, dry_run: bool = False, empty_trash: bool = False) -> Collected:
    """Throw away the old part of the trash (all of it with `empty_trash`) and blobs that nothing has for a day.

    Raises `RegistryIncomplete` when a manifest on the disk is not in the index: its blobs would look like garbage.
    """
    now = registry.clock()
    if dry_run:
        before = now + 1 if empty_trash else now - TRASH_MS
        adapters = tuple(row.adapter for row in registry.local.where(Trash, "since < ?", (before,)))
    else:
        adapters = purge(registry, now + 1 if empty_trash else now - TRASH_MS)
    _check_complete(registry)
    live = {row[0] for row in registry.index.stream(LIVE)}
    count = size = 0
    for digest, facts in registry.blobs.all():
        if digest.hex() in live or facts.st_mtime_ns >= (now - GRACE_MS) * 1_000_000:
            continue
        with registry.keeping:  # an adapter that comes in now and has it makes it new
            gone = dry_run or registry.blobs.remove_older(digest, now - GRACE_MS)
        count, size = count + gone, size + gone * facts.st_size
    return Collected(adapters=adapters, blobs=count, bytes=size, dry_run=dry_run)


def _check_complete(registry: Registry) -> None:
    if unknown := rebuild.not_indexed(registry):
        raise RegistryIncomplete(f"{len(unknown)} manifests are not in the index, so nothing was thrown away")


# ---- rot ---------------------------------------------------------------------------------------------------------


def scrub(registry: Registry, progress: Progress = lambda done, total: None) -> Scrubbed:
    """Hash every blob. One that is not what it should be is set aside, and adapters that have it are quarantined.

    `progress` is told bytes done and in all, after each blob; what it raises ends the scrub.
    """
    blobs = [(digest, facts.st_size) for digest, facts in registry.blobs.all()]
    total, done, now = sum(size for _, size in blobs), 0, registry.clock()
    bad = dict[str, str]()
    for digest, size in blobs:
        if not _is_whole(registry, digest):
            bad[digest.hex()] = DAMAGED
        done += size
        progress(done, total)
    for (blob,) in registry.index.read(f"SELECT DISTINCT blob FROM ({LIVE})"):
        if blob not in bad and not registry.blobs.has(bytes.fromhex(blob)):
            bad[blob] = MISSING
    before = {row.blob: row for row in registry.local.all(Rot)}
    mended = [blob for blob in before if blob not in bad and registry.blobs.has(bytes.fromhex(blob))]
    fresh = [Rot(blob=blob, what=what, since=now) for blob, what in bad.items() if blob not in before]
    if fresh or mended:
        registry.local.act("registry.scrub", *map(put, fresh), *(delete(Rot, blob) for blob in mended))
        registry.restand()
    for blob, what in bad.items():
        if what == DAMAGED:
            registry.blobs.set_aside(bytes.fromhex(blob))
    known = {**bad, **{blob: row.what for blob, row in before.items() if blob not in mended}}
    return Scrubbed(
        blobs=len(blobs),
        bytes=total,
        damaged=_adapters_with(registry, [blob for blob, what in known.items() if what == DAMAGED]),
        missing=_adapters_with(registry, [blob for blob, what in known.items() if what == MISSING]),
        mended=len(mended),
    )


def _is_whole(registry: Registry, digest: bytes) -> bool:
    try:
        return registry.blobs.is_whole(digest)
    except BlobUnknown:  # collected meanwhile
        return True
    except OSError:
        return False


def _adapters_with(registry: Registry, blobs: Sequence[str]) -> tuple[str, ...]:
    rows = registry.index.read(
        "SELECT digest FROM adapter WHERE list_has_any(blobs, ?::VARCHAR[]) ORDER BY digest", (list(blobs),)
    )
    return tuple(row[0] for row in rows)


# ---- the quota ---------------------------------------------------------------------------------------------------


def make_room(registry: Registry, quota: int) -> Evicted:
    """Throw out fetched adapters, the longest unused first, until all blobs take at most `quota` bytes.

    Pinned, deployed and own ones stay.
    """
    before = left = sum(facts.st_size for _, facts in registry.blobs.all())
    victims, wanted = list[str](), list[str]()
    rows = registry.index.read(
        "SELECT digest, size, blobs FROM adapter WHERE origin = 'fetched' AND NOT pinned AND state <> 'removed'"
        " AND digest NOT IN (SELECT adapter FROM deployment WHERE adapter IS NOT NULL) ORDER BY used, digest"
    )
    for id, size, blobs in rows:
        if left <= quota:
            break
        left -= size
        victims.append(id)
        wanted.extend(blobs)
    if victims:
        registry.local.act("adapter.evict", *(put(Trash(adapter=id, since=0)) for id in victims))
        registry.restand(victims)
        purge(registry, 1)
        _remove_unused(registry, set(wanted))
    return Evicted(
        adapters=tuple(victims), before=before, after=sum(facts.st_size for _, facts in registry.blobs.all())
    )


def _remove_unused(registry: Registry, blobs: Collection[str]) -> None:
    with registry.keeping:
        rows = registry.index.read(f"SELECT blob FROM ({LIVE}) WHERE blob IN (SELECT unnest(?))", (list(blobs),))
        for blob in blobs - {row[0] for row in rows}:  # type: ignore[operator]
            registry.blobs.remove(bytes.fromhex(blob))


# ---- backups -----------------------------------------------------------------------------------------------------


def backup(registry: Registry) -> Path:
    """A copy of the index, named after the day; the newest few are kept. Raises `IndexDamaged` or `DiskFull`."""
    day = time.strftime("%Y%m%d", time.gmtime(registry.clock() / 1000))
    target = registry.index.backups / f"{restore.BACKUP_NAME}{day}"
    registry.index.backup(target)
    for old in restore.newest_backups(registry.index.path)[restore.BACKUPS_KEPT :]:
        old.unlink(missing_ok=True)
    return target


def newest_backup(registry: Registry) -> Path | None:
    return next(iter(restore.newest_backups(registry.index.path)), None)


def stats(registry: Registry) -> Stats:
    states = dict(registry.index.read("SELECT state, count(*) FROM adapter GROUP BY 1"))
    [(pinned, rotten)] = registry.index.read("SELECT (SELECT count(*) FROM pin), (SELECT count(*) FROM rot)")
    sizes = [facts.st_size for _, facts in registry.blobs.all()]
    newest = newest_backup(registry)
    return Stats(
        admitted=states.get("admitted", 0),
        quarantined=states.get("quarantined", 0),
        removed=states.get("removed", 0),
        pinned=pinned,
        blobs=len(sizes),
        blob_bytes=sum(sizes),
        rotten=rotten,
        index_bytes=registry.index.path.stat().st_size,
        journal_bytes=registry.local.journal_bytes,
        backup="" if newest is None else newest.name,
        free_bytes=shutil.disk_usage(registry.data).free,
        notices=tuple(registry.notices),
    )
