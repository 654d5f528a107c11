"""The DuckDB index: one writer, readers with a cursor each, migrations.

What was measured about DuckDB 2.0 and is respected here: a connection used by two threads at once answers `[]` or an
error; COMMIT after a caught error is a silent ROLLBACK; a FatalException kills every cursor of the database, and
closing and opening it again loses nothing; extensions are fetched from the network unless that is turned off; a
damaged block shows only when it is read.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from orchd.errors import DiskFull, HomeBusy, IndexDamaged, IndexTooNew, IndexUnavailable, OrchdError
from orchd.paths import sync

T = TypeVar("T")
Cursor = duckdb.DuckDBPyConnection
#: How DuckDB says that the disk is full; the transaction is rolled back, and the next one works once there is room.
NO_SPACE = "No space left on device"
SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    # Blocks that were read stay in memory up to this much.
    "memory_limit": "80MB",
    "threads": 1,
    # When the log is folded into the file, which takes as long as the file is large; until then what is in it takes
    # memory. To replay so much at start takes a second at most.
    "wal_autocheckpoint": "32MB",
    "wal_autocheckpoint_entries": 5_000,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    # Files stay readable by DuckDB 1.5, so that there is a way back.
    "storage_compatibility_version": "v1.5.0",
}
BACKUPS = "backups"  # the folder beside the database that holds its copies
UNFINISHED_BACKUP = ".unfinished"  # ends the name of one that is being made
DAMAGE_MARK = ".is-damaged"  # ends the name of an empty file
#: How DuckDB says that a block's checksum is wrong.
CORRUPT = "Corrupt database file"
#: Rows up to which a table's primary key is looked through at start (up to 0.3 ms each); damage in a larger one shows
#: when it is used, and is mended at the next start.
KEYS_CHECKED = 1_000
INTERRUPT_SECONDS = 0.005  # between two interrupts of a read that goes on
FETCHED = 2_000  # rows at a time
COPIED = 20_000  # rows of one transaction when a copy is made
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
    ("failed to allocate", IndexUnavailable),
)


class ReadCancelled(Exception):
    """What `read` raises when its `Cancel` was used."""


class Cancel:
    """Ends a read, and those that come after it, from another thread. May be used before, during or after."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cursor: Cursor | None = None
        self._ended = threading.Event()
        self.cancelled = False

    def cancel(self) -> None:
        """Returns when no read with this value goes on any more."""
        with self._lock:
            self.cancelled = True
            cursor = self._cursor
        if cursor is None:
            return
        with suppress(duckdb.ConnectionException):  # it has ended by itself, and its cursor was closed
            cursor.interrupt()
            while not self._ended.wait(INTERRUPT_SECONDS):  # an interrupt before the query has begun does nothing
                cursor.interrupt()

    def _begin(self, cursor: Cursor) -> None:
        with self._lock:
            if self.cancelled:
                raise ReadCancelled
            self._cursor = cursor
            self._ended.clear()

    def _end(self) -> None:
        with self._lock:
            self._cursor = None
        self._ended.set()


@dataclass
class _Write:
    """One waiting change, and what came of it."""

    change: Callable[[Cursor], Any]
    done: bool = False
    result: Any = None
    error: BaseException | None = None


class Index:
    """A database file. `read` and `write` may be called from any thread.

    Raises `IndexDamaged` when a part of it can't be read, `HomeBusy` when another process has it, `IndexTooNew`,
    `IndexUnavailable` or `DiskFull`; the file is closed then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer_lock = threading.Lock()
        self._backing_up = threading.Lock()
        self._opening = threading.Lock()
        #: Whether a database that had died could not be opened again; the next one who wants it tries.
        self._shut = self._closed = False
        self._waiting: deque[_Write] = deque()
        new = not path.exists()
        try:
            self._open()
            self._prepare()
        except BaseException:
            if new:  # half a database, with nothing in it yet, would be taken for a damaged one
                path.unlink(missing_ok=True)
                path.with_name(path.name + ".wal").unlink(missing_ok=True)
            raise

    def _prepare(self) -> None:
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
            for statement in self._lock_down():
                self._root.execute(statement)
        except duckdb.Error as error:
            raise self._refusal(error) from None

    def _open_again(self, dead: Cursor) -> None:
        """Where `dead` is still the database: close it, and open it anew. Raises what opening raises."""
        with self._opening:
            if dead is not self._root or self._closed:
                return
            with suppress(duckdb.Error):
                self._root.close()
            self._shut = True
            self._open()
            self._shut = False

    def _refusal(self, error: duckdb.Error) -> OrchdError:
        said = str(error).replace(str(self.path), self.path.name)
        kind = next((kind for words, kind in _SURROUNDINGS if words in said), IndexDamaged)
        return kind(f"the index {self.path} can't be opened: {said[:300]}")

    def close(self) -> None:
        with self._writer_lock:
            self._closed = True
            self._root.close()

    def _lock_down(self) -> tuple[str, ...]:
        """Every file but its own and its copies is closed to the database, for good."""
        copies = _literal(f"{self.backups}/")
        return (
            f"SET allowed_directories=[{copies}]",
            "SET enable_external_access=false",
            "SET lock_configuration=true",
        )

    @property
    def backups(self) -> Path:
        return self.path.parent / BACKUPS

    def read(self, sql: str, params: Sequence[Any] = (), cancel: Cancel | None = None) -> list[tuple[Any, ...]]:
        """All rows of one query, on a cursor that no other thread uses meanwhile.

        Raises `ReadCancelled` when `cancel` was used; the cursor is not used again then.
        """
        if self._shut:
            self._open_again(self._root)
        # Opening again makes another queue, and a dead cursor does not belong there.
        root, readers = self._root, self._readers
        try:
            cursor = readers.get_nowait()
        except queue.Empty:
            cursor = root.cursor()
        try:
            rows = _fetch(cursor, sql, params, cancel)
        except duckdb.InterruptException:
            self._drop(cursor)
            raise ReadCancelled from None
        except duckdb.Error as error:
            self._after(error, root, cursor)
            raise
        except BaseException:
            self._drop(cursor)
            raise
        readers.put(cursor)
        return rows

    def stream(self, sql: str, params: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of one query, a few thousand in memory at a time, from one moment of the database."""
        cursor = self._root.cursor()
        try:
            cursor.execute(sql, list(params))
            while rows := cursor.fetchmany(FETCHED):
                yield from rows
        finally:
            self._drop(cursor)

    def write(self, change: Callable[[Cursor], T]) -> T:
        """Run `change` in a transaction of the one writer. Any error rolls it back and is raised.

        That is so for an error of the database that `change` has caught, too: nothing of it would be kept. Changes
        that wait for one another become one transaction; if that fails, `change` runs again in one of its own.
        """
        mine = _Write(change)
        self._waiting.append(mine)
        with self._writer_lock:
            if not mine.done:
                self._run([self._waiting.popleft() for _ in range(len(self._waiting))])
        if mine.error is not None:
            raise mine.error
        result: T = mine.result
        return result

    def _run(self, group: Sequence[_Write]) -> None:
        with suppress(Exception):
            if len(group) > 1:
                self._commit(group)
                return
        for write in group:
            try:
                self._commit([write])
            except BaseException as error:
                write.error = error
                write.done = True

    def _commit(self, writes: Sequence[_Write]) -> None:
        if self._shut:
            self._open_again(self._root)
        root = self._root
        try:
            root.execute("BEGIN TRANSACTION")
            results = [write.change(root) for write in writes]
            root.execute("SELECT 1")  # raises in an aborted transaction, where COMMIT would say nothing
            root.execute("COMMIT")
        except BaseException as error:
            with suppress(duckdb.Error):
                root.execute("ROLLBACK")
            self._after(error, root)
            if isinstance(error, duckdb.Error) and NO_SPACE in str(error):
                raise DiskFull(f"no room for the index {self.path}: the change was not made") from None
            raise
        for write, result in zip(writes, results, strict=True):
            write.result, write.done = result, True

    @staticmethod
    def append(cursor: Cursor, table: str, rows: Sequence[Sequence[Any]]) -> None:
        """Put many rows at once, inside a `write`; a row with a key that is there replaces it."""
        appender = cursor.appender(table, action="upsert")
        appender.append_rows(rows)
        appender.flush()

    @staticmethod
    def put(cursor: Cursor, table: str, key: str, values: Sequence[Any]) -> None:
        """One row, inside a `write`; it replaces one with the same `key`, which is the first value.

        That there is none is looked up: DuckDB takes a third of the time for a row that need not replace another.
        """
        there = cursor.execute(f"SELECT 1 FROM {table} WHERE {key} = ?", [values[0]]).fetchall()
        word = "INSERT OR REPLACE" if there else "INSERT"
        cursor.execute(f"{word} INTO {table} VALUES ({', '.join('?' * len(values))})", list(values))

    def backup(self, target: Path) -> None:
        """A copy of the whole database below `backups`, durable when this returns; reading it all also checks it.

        Raises `IndexDamaged` when a part can't be read, `DiskFull`; there is no copy then.
        """
        with self._backing_up:
            self._backup(target, target.with_name(target.name + UNFINISHED_BACKUP))

    def _backup(self, target: Path, unfinished: Path) -> None:
        root = self._root
        try:
            with self._writer_lock:
                self._copy(unfinished)
            sync(unfinished)
            os.replace(unfinished, target)
            sync(target.parent)
        except duckdb.Error as error:
            self._after(error, root)
            raise self._refusal(error) from None
        finally:
            for left in (unfinished, unfinished.with_name(unfinished.name + ".wal")):
                left.unlink(missing_ok=True)

    def _copy(self, target: Path) -> None:
        self.backups.mkdir(exist_ok=True)
        target.unlink(missing_ok=True)
        [(name,)] = self._root.execute("SELECT current_database()").fetchall()
        self._root.execute(f"ATTACH {_literal(str(target))} AS copy_of_it (STORAGE_VERSION 'v1.5.0')")
        try:
            self._root.execute(f'COPY FROM DATABASE "{name}" TO copy_of_it (SCHEMA)')
            for (table,) in self.read("SELECT table_name FROM duckdb_tables() WHERE database_name = ?", (name,)):
                self._copy_rows(f'"{table}"')
        finally:
            self._root.execute("DETACH copy_of_it")

    def _copy_rows(self, table: str) -> None:
        """Some at a time: all in one transaction do not fit in the memory that the database may take."""
        [(last,)] = self.read(f"SELECT coalesce(max(rowid), -1) FROM {table}")
        for start in range(0, last + 1, COPIED):
            some = f"rowid >= {start} AND rowid < {start + COPIED}"
            self._root.execute(f"INSERT INTO copy_of_it.{table} SELECT * FROM {table} WHERE {some}")

    def execute(self, sql: str, params: Sequence[Any] = ()) -> None:
        """One statement in a transaction of its own."""
        self.write(lambda cursor: cursor.execute(sql, list(params)))

    @staticmethod
    def _drop(cursor: Cursor) -> None:
        with suppress(duckdb.Error):
            cursor.close()

    def _after(self, error: BaseException, root: Cursor, cursor: Cursor | None = None) -> None:
        if cursor is not None:
            self._drop(cursor)
        if isinstance(error, duckdb.Error) and CORRUPT in str(error):
            with suppress(OSError):
                self._damage_mark.touch()
        if isinstance(error, duckdb.FatalException):  # every cursor is dead; opening again loses nothing
            with suppress(OrchdError):  # then it is tried again when it is wanted
                self._open_again(root)

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
        if self._damage_mark.exists():
            raise IndexDamaged(f"a part of {self.path} could not be read when the daemon ran last")
        for table, key in self.read(
            "SELECT table_name, constraint_column_names[1] FROM duckdb_constraints()"
            " WHERE constraint_type = 'PRIMARY KEY'"
        ):
            [(rows, _)] = self.read(f'SELECT count(*), bit_xor(hash(t)) FROM "{table}" t')
            if 0 < rows <= KEYS_CHECKED:
                self._check_keys(table, key)

    def _check_keys(self, table: str, key: str) -> None:
        """Look at the tree of the primary key, which neither a scan nor ON CONFLICT does."""
        self._root.execute("BEGIN TRANSACTION")
        try:
            self._root.execute(f'UPDATE "{table}" SET "{key}" = "{key}"')
        finally:
            with suppress(duckdb.Error):
                self._root.execute("ROLLBACK")

    @property
    def _damage_mark(self) -> Path:
        """This file says that the database has to be set aside at the next start."""
        return self.path.with_name(self.path.name + DAMAGE_MARK)


def _fetch(cursor: Cursor, sql: str, params: Sequence[Any], cancel: Cancel | None) -> list[tuple[Any, ...]]:
    if cancel is None:
        return cursor.execute(sql, list(params)).fetchall()
    cancel._begin(cursor)
    try:
        rows = cursor.execute(sql, list(params)).fetchall()
    finally:
        cancel._end()
    if cancel.cancelled:
        raise ReadCancelled
    return rows


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


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
