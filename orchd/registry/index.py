"""The DuckDB index: one writer, readers with a cursor each, migrations.

What was measured about DuckDB 2.0 and is respected here: a connection used by two threads at once answers `[]` or an
error; COMMIT after a caught error is a silent ROLLBACK; a FatalException kills every cursor of the database, and
closing and opening it again loses nothing; extensions are fetched from the network unless that is turned off; a
damaged block shows only when it is read.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from orchd.errors import DiskFull, HomeBusy, IndexDamaged, IndexTooNew, IndexUnavailable, OrchdError

T = TypeVar("T")
Cursor = duckdb.DuckDBPyConnection
#: How DuckDB says that the disk is full; the transaction is rolled back, and the next one works once there is room.
NO_SPACE = "No space left on device"
SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "256MB",
    "threads": 1,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    # Files stay readable by DuckDB 1.5, so that there is a way back.
    "storage_compatibility_version": "v1.5.0",
}
#: Every file but its own is closed to the database, for good.
LOCK_DOWN = ("SET enable_external_access=false", "SET lock_configuration=true")
#: What DuckDB says when not the file is at fault but its surroundings; anything else means damage.
_SURROUNDINGS: tuple[tuple[str, type[OrchdError]], ...] = (
    ("Could not set lock", HomeBusy),
    ("we can only read", IndexTooNew),
    ("No space left", DiskFull),
    ("Disk quota exceeded", DiskFull),
    ("Permission denied", IndexUnavailable),
    ("Read-only file system", IndexUnavailable),
    ("Too many open files", IndexUnavailable),
    ("Is a directory", IndexUnavailable),
    ("Out of Memory", IndexUnavailable),
)


class Index:
    """A database file. `read` and `write` may be called from any thread.

    Raises `IndexDamaged` when a part of it can't be read, `HomeBusy` when another process has it, `IndexTooNew`,
    `IndexUnavailable` or `DiskFull`; the file is closed then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer_lock = threading.Lock()
        self._open()
        try:
            self._migrate()
            self._read_through()
        except duckdb.Error as error:
            self.close()
            raise self._refusal(error) from None
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._readers: queue.SimpleQueue[Cursor] = queue.SimpleQueue()
        try:
            self._root = duckdb.connect(str(self.path), config=SETTINGS)
            for statement in LOCK_DOWN:
                self._root.execute(statement)
        except duckdb.Error as error:
            raise self._refusal(error) from None

    def _refusal(self, error: duckdb.Error) -> OrchdError:
        said = str(error).replace(str(self.path), self.path.name)
        kind = next((kind for words, kind in _SURROUNDINGS if words in said), IndexDamaged)
        return kind(f"the index {self.path} can't be opened: {said[:300]}")

    def close(self) -> None:
        with self._writer_lock:
            self._root.close()

    def read(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one query, on a cursor that no other thread uses meanwhile."""
        readers = self._readers  # opening again makes another queue, and a dead cursor does not belong there
        try:
            cursor = readers.get_nowait()
        except queue.Empty:
            cursor = self._root.cursor()
        try:
            rows: list[tuple[Any, ...]] = cursor.execute(sql, list(params)).fetchall()
        except duckdb.Error as error:
            self._after(error, cursor)
            raise
        readers.put(cursor)
        return rows

    def write(self, change: Callable[[Cursor], T]) -> T:
        """Run `change` in one transaction of the one writer. Any error rolls it back and is raised.

        That is so for an error of the database that `change` has caught, too: nothing of it would be kept.
        """
        with self._writer_lock:
            try:
                self._root.execute("BEGIN TRANSACTION")
                result = change(self._root)
                self._root.execute("SELECT 1")  # raises in an aborted transaction, where COMMIT would say nothing
                self._root.execute("COMMIT")
            except BaseException as error:
                with suppress(duckdb.Error):
                    self._root.execute("ROLLBACK")
                self._after(error, None)
                if isinstance(error, duckdb.Error) and NO_SPACE in str(error):
                    raise DiskFull(f"no room for the index {self.path}: the change was not made") from None
                raise
            return result

    def execute(self, sql: str, params: Sequence[Any] = ()) -> None:
        """One statement in a transaction of its own."""
        self.write(lambda cursor: cursor.execute(sql, list(params)))

    def _after(self, error: BaseException, cursor: Cursor | None) -> None:
        if cursor is not None:
            with suppress(duckdb.Error):
                cursor.close()
        if isinstance(error, duckdb.FatalException):  # every cursor is dead; opening again loses nothing
            with suppress(duckdb.Error):
                self._root.close()
            self._open()

    def _migrate(self) -> None:
        """Run the numbered files that have not run yet, one transaction each."""
        self.execute("CREATE TABLE IF NOT EXISTS migration(number INTEGER PRIMARY KEY, name VARCHAR NOT NULL)")
        done = {row[0] for row in self.read("SELECT number FROM migration")}
        known = dict(_migrations())
        if unknown := sorted(done - known.keys()):
            raise IndexTooNew(f"the index {self.path} was written by a newer orchd (migration {unknown[-1]})")
        for number, (name, sql) in sorted(known.items()):
            if number not in done:
                self.write(lambda cursor, n=number, m=name, s=sql: _run_migration(cursor, n, m, s))  # type: ignore[misc]
                self._root.execute("CHECKPOINT")

    def _read_through(self) -> None:
        """Read every value once, so that damage shows at start, when it can be mended, and not later."""
        for (table,) in self.read("SELECT table_name FROM duckdb_tables()"):
            self.read(f'SELECT bit_xor(hash(t)) FROM "{table}" t')


def _run_migration(cursor: Cursor, number: int, name: str, sql: str) -> None:
    cursor.execute(sql)
    cursor.execute("INSERT INTO migration VALUES (?, ?)", [number, name])


def _migrations() -> list[tuple[int, tuple[str, str]]]:
    folder = resources.files("orchd.registry") / "migrations"
    return [
        (int(entry.name[:4]), (entry.name, entry.read_text(encoding="utf-8")))
        for entry in folder.iterdir()
        if entry.name.endswith(".sql")
    ]
