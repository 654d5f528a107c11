"""Opening the index, whatever became of it: as it is, from the newest backup, or empty to be made again."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from orchd.errors import IndexDamaged
from orchd.paths import sync
from orchd.registry.blobs import UNFINISHED, full_disk_told
from orchd.registry.index import BACKUPS, DAMAGE_MARK, UNFINISHED_BACKUP, Index

LOG = logging.getLogger(__name__)
BACKUP_NAME = "registry.db.backup-"  # a date follows
BACKUPS_KEPT = 3
LOG_SUFFIX = ".wal"


def open_index(path: Path, now_ms: int) -> tuple[Index, str]:
    """The index, and why it had to be restored (empty when it had not). A damaged file is set aside, never deleted."""
    _clear(path.parent)
    try:
        if why := _why_missing(path):
            LOG.warning("%s", why)
        else:
            return Index(path), ""
    except IndexDamaged as error:
        LOG.warning("%s", error.message)
        if (without_log := _without_log(path, now_ms)) is not None:
            return without_log, f"{error.message}; its log was set aside, and what was in it was put back"
        why = f"{error.message}; it was set aside"
        _set_aside(path, now_ms)
    for backup in newest_backups(path):
        try:
            _copy(backup, path)
            return Index(path), f"{why}, and the backup {backup.name} took its place"
        except IndexDamaged as error:
            LOG.warning("the backup %s is damaged too: %s", backup, error.message)
            _remove(path)
    return Index(path), f"{why}, and made again"


def _without_log(path: Path, now_ms: int) -> Index | None:
    """The index as it was when its log began, where only that is damaged: the journal and the disk have the rest."""
    log = path.with_name(path.name + LOG_SUFFIX)
    if not log.exists() or path.with_name(path.name + DAMAGE_MARK).exists():
        return None
    log.rename(_aside(log, now_ms))
    sync(path.parent)
    try:
        return Index(path)
    except IndexDamaged:
        return None


def _why_missing(path: Path) -> str:
    """Where a start that had set a damaged one aside got no further, or somebody has deleted it."""
    aside = sorted(path.parent.glob(f"{path.name}.damaged-*"))
    if path.exists() or not (aside or newest_backups(path)):
        return ""
    return f"the index {path} is not there" + (f"; {aside[-1].name} was set aside" if aside else "")


def newest_backups(path: Path) -> list[Path]:
    """The backups of the index at `path`, newest first."""
    return sorted((path.parent / BACKUPS).glob(BACKUP_NAME + "*[0-9]"), reverse=True)


def _files(path: Path) -> list[Path]:
    return [file for file in (path, path.with_name(path.name + LOG_SUFFIX)) if file.exists()]


def _aside(file: Path, now_ms: int) -> Path:
    """A name that nothing has yet."""
    name = f"{file.name}.damaged-{now_ms}"
    while file.with_name(name).exists():
        now_ms += 1
        name = f"{file.name}.damaged-{now_ms}"
    return file.with_name(name)


def _clear(folder: Path) -> None:
    """What a crash left half written beside the index, and among its copies."""
    for left in (*folder.glob(f"{UNFINISHED}*"), *(folder / BACKUPS).glob(f"*{UNFINISHED_BACKUP}*")):
        left.unlink()


def _copy(backup: Path, path: Path) -> None:
    """The whole copy or none, durable when this returns. Raises `DiskFull`."""
    unfinished = path.with_name(f"{UNFINISHED}{path.name}")
    with full_disk_told(path.parent):
        try:
            shutil.copyfile(backup, unfinished)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        sync(path.parent)


def _set_aside(path: Path, now_ms: int) -> None:
    for file in reversed(_files(path)):  # the log first: DuckDB would throw it away beside a new database
        file.rename(_aside(file, now_ms))
    sync(path.parent)
    path.with_name(path.name + DAMAGE_MARK).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    for file in _files(path):
        file.unlink()
