"""Opening the index, whatever became of it: as it is, from the newest backup, or empty to be made again."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from orchd.errors import IndexDamaged
from orchd.registry.blobs import sync_directory
from orchd.registry.index import BACKUPS, DAMAGE_MARK, Index

LOG = logging.getLogger(__name__)
BACKUP_NAME = "registry.db.backup-"  # a date follows
BACKUPS_KEPT = 3


def open_index(path: Path, now_ms: int) -> tuple[Index, str]:
    """The index, and why it had to be restored (empty when it had not). A damaged file is set aside, never deleted."""
    try:
        return Index(path), ""
    except IndexDamaged as error:
        why = error.message
    _set_aside(path, now_ms)
    for backup in newest_backups(path):
        try:
            shutil.copyfile(backup, path)
            sync_directory(path.parent)
            return Index(path), f"{why}; it was set aside, and the backup {backup.name} took its place"
        except IndexDamaged as error:
            LOG.warning("the backup %s is damaged too: %s", backup, error.message)
            _remove(path)
    return Index(path), f"{why}; it was set aside and made again"


def newest_backups(path: Path) -> list[Path]:
    """The backups of the index at `path`, newest first."""
    return sorted((path.parent / BACKUPS).glob(BACKUP_NAME + "*[0-9]"), reverse=True)


def _files(path: Path) -> list[Path]:
    return [file for file in (path, path.with_name(path.name + ".wal")) if file.exists()]


def _set_aside(path: Path, now_ms: int) -> None:
    for file in _files(path):
        file.rename(file.with_name(f"{file.name}.damaged-{now_ms}"))
    path.with_name(path.name + DAMAGE_MARK).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    for file in _files(path):
        file.unlink()
