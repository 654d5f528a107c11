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
from orchd.registry.own import TRASH_MS
from orchd.registry.restand import DAMAGED, MISSING

if TYPE_CHECKING:
    from orchd.registry.registry import Registry

DAY_MS = 86_400_000
#: A blob that nothing has is left alone this long: somebody may be about to want it.
GRACE_MS = DAY_MS
AT_ONCE = 200  # blobs looked at while nothing else may come in
LIVE = (
    "SELECT unnest(blobs) AS blob FROM adapter UNION SELECT blob FROM deployment"
    " UNION SELECT unnest(also) FROM deployment"
)
Progress = Callable[[int, int], None]


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What was thrown away, or would be: adapters and data sets of the trash, blobs that nothing has, bytes of all."""

    adapters: tuple[str, ...]
    blobs: int
    bytes: int
    dry_run: bool
    datasets: tuple[str, ...] = ()


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
    """Sizes in bytes; `backup` is the newest one's name, empty when there is none. `quota_bytes` 0: no quota."""

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
    quota_bytes: int = 0


# ---- the trash and garbage ---------------------------------------------------------------------------------------


def purge(registry: Registry, removed_before_ms: int) -> tuple[str, ...]:
    """Delete for good what has been in the trash since before a time."""
    rows = registry.local.where(Trash, "since < ?", (removed_before_ms,))
    with registry.tidying:
        gone = [row.adapter for row in rows if _purge(registry, row.adapter)]
    return tuple(gone)


def _purge(registry: Registry, id: str) -> bool:
    with registry.keeping:
        if registry.local.get(Trash, id) is None:  # it came again meanwhile, and is wanted
            return False
        registry.drop_folder(id)
        registry.manifests.remove(parse_id(id, ADAPTER))
        rebuild.forget(registry, id)
    return True


def collect(registry: Registry, *, dry_run: bool = False, empty_trash: bool = False) -> Collected:
    """Throw away the old part of the trash (all of it with `empty_trash`) and blobs that nothing has for a day.

    Raises `RegistryIncomplete` when a manifest on the disk is not in the index: its blobs would look like garbage.
    """
    now = registry.clock()
    before = now + 1 if empty_trash else now - TRASH_MS
    if dry_run:
        adapters = tuple(row.adapter for row in registry.local.where(Trash, "since < ?", (before,)))
    else:
        adapters = purge(registry, before)
    with registry.tidying:
        _check_complete(registry)
        live = {row[0] for row in registry.index.stream(LIVE)}
        old = {
            digest.hex(): facts.st_size
            for digest, facts in registry.blobs.all()
            if digest.hex() not in live and facts.st_mtime_ns < (now - GRACE_MS) * 1_000_000
        }
        gone = list(old) if dry_run else _remove_unused(registry, list(old), now - GRACE_MS)
        sizes = [*(old[blob] for blob in gone), *_remove_rotten(registry, dry_run=dry_run)]
    return Collected(adapters=adapters, blobs=len(sizes), bytes=sum(sizes), dry_run=dry_run)


def _remove_rotten(registry: Registry, *, dry_run: bool) -> list[int]:
    """Damaged copies of what is whole again, or what nothing has any more, are of no use; their sizes in bytes."""
    wanted = {row.blob for row in registry.local.all(Rot)}
    useless = [path for path in registry.blobs.rotten() if path.name not in wanted]
    sizes = [path.stat().st_size for path in useless]
    for path in () if dry_run else useless:
        path.unlink()
    return sizes


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
    with registry.tidying, registry.keeping:  # nothing comes and nothing goes meanwhile
        bad = {blob: DAMAGED for blob in bad if not _is_whole(registry, bytes.fromhex(blob))}
        live = {row[0] for row in registry.index.stream(LIVE)}
        bad |= {blob: MISSING for blob in live if blob not in bad and not registry.blobs.has(bytes.fromhex(blob))}
        before = {row.blob: row for row in registry.local.all(Rot)}
        mended = [blob for blob in before if blob not in bad and registry.blobs.has(bytes.fromhex(blob))]
        unused = [blob for blob in before if blob not in bad and blob not in live]
        fresh = [Rot(blob=blob, what=what, since=now) for blob, what in bad.items() if blob not in before]
        if fresh or mended or unused:
            forgotten = (delete(Rot, blob) for blob in {*mended, *unused})
            registry.local.act("registry.scrub", *map(put, fresh), *forgotten)
        for blob, what in bad.items():
            if what == DAMAGED:
                registry.blobs.set_aside(bytes.fromhex(blob))
    if fresh or mended or unused:
        registry.restand()
    known = {**bad, **{blob: row.what for blob, row in before.items() if blob not in {*mended, *unused}}}
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
        throw_out(registry, victims, "adapter.evict", wanted)
    return Evicted(
        adapters=tuple(victims), before=before, after=sum(facts.st_size for _, facts in registry.blobs.all())
    )


def throw_out(registry: Registry, ids: Sequence[str], act: str, blobs: Sequence[str] = ()) -> None:
    """Delete adapters for good, whose `blobs` go too if nothing else has them. `act` is what the journal calls it."""
    registry.local.act(act, *(put(Trash(adapter=id, since=0)) for id in ids), urgent=True)
    registry.restand(ids)
    purge(registry, 1)
    _remove_unused(registry, list(dict.fromkeys(blobs)), registry.clock() + DAY_MS)


def _remove_unused(registry: Registry, blobs: Sequence[str], unwanted_since_ms: int) -> list[str]:
    """Remove those that nothing has, and that nobody wanted after a time; which ones."""
    gone = []
    for start in range(0, len(blobs), AT_ONCE):
        some = blobs[start : start + AT_ONCE]
        with registry.keeping:  # an adapter that comes in now and has one of them is either whole or yet to come
            used = _live_of(registry, some)
            gone += [
                blob
                for blob in some
                if blob not in used and registry.blobs.remove_older(bytes.fromhex(blob), unwanted_since_ms)
            ]
    return gone


def _live_of(registry: Registry, blobs: Collection[str]) -> set[str]:
    rows = registry.index.read(f"SELECT blob FROM ({LIVE}) WHERE blob IN (SELECT unnest(?))", (list(blobs),))
    return {row[0] for row in rows}


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
