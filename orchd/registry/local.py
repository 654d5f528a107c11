"""The tables of what this node alone knows: journal first, then the row.

The index remembers up to which act it has the journal, in the transaction that makes the rows; at start it is given
the rest. So a lost or restored index gets everything back, and a restart costs what came since. Where a part of the
journal itself is lost, it is written again from the index.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import duckdb
import msgspec

from orchd.errors import DiskFull, NothingToUndo, UndoStale
from orchd.registry.blobs import check_room
from orchd.registry.index import Cursor, Index
from orchd.registry.journal import ANEW, Entry, Journal, Line
from orchd.registry.local_rows import TABLES, LocalRow
from orchd.registry.remembered import Remembered
from orchd.registry.standing import StandingChange

LOG = logging.getLogger(__name__)
Clock = Callable[[], int]
Row = TypeVar("Row", bound=LocalRow)
BATCH = 5_000  # acts that become one transaction when the journal is read
COMPACT_SIZE = 4 << 20  # bytes below which a journal is left as long as it is
RESERVE = 1 << 20  # bytes that must be free for an act: its consequences want to be written down too
FEW = 64  # rows of one answer that is remembered
UNDO_KEPT = 100  # acts that can still be undone after the journal was written anew


class Change(NamedTuple):
    """A row to put, or None: the row with that key is deleted."""

    kind: type[LocalRow]
    key: str
    row: LocalRow | None


class Undone(msgspec.Struct, frozen=True, kw_only=True):
    """The act that was taken back, when it was done, and the keys that it had changed.

    `passed_over` are newer acts that can't be taken back any more: what they changed was changed again since.
    `changes` are adapters whose state is another through it, where that was looked at.
    """

    act: str
    done_ms: int
    keys: tuple[str, ...]
    passed_over: tuple[str, ...] = ()
    changes: tuple[StandingChange, ...] = ()


def put(row: LocalRow) -> Change:
    return Change(type(row), getattr(row, _TABLES[type(row)].columns[0]), row)


def delete(kind: type[LocalRow], key: str) -> Change:
    return Change(kind, key, None)


@dataclass(frozen=True)
class _Table:
    name: str
    kind: type[LocalRow]
    columns: tuple[str, ...]

    @property
    def select(self) -> str:
        return f"SELECT {', '.join(map(_quoted, self.columns))} FROM {_quoted(self.name)}"

    @property
    def key(self) -> str:
        return _quoted(self.columns[0])

    def row(self, values: Sequence[Any]) -> LocalRow:
        return self.kind(**{name: _from_index(value) for name, value in zip(self.columns, values, strict=True)})


def _quoted(name: str) -> str:
    return f'"{name}"'


def _from_index(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _to_index(row: LocalRow) -> tuple[Any, ...]:
    return tuple(list(value) if isinstance(value, tuple) else value for value in msgspec.structs.astuple(row))


_TABLES = {
    kind: _Table(name, kind, tuple(part.name for part in msgspec.structs.fields(kind))) for kind, name in TABLES.items()
}
_BY_NAME = {table.name: table for table in _TABLES.values()}


@dataclass
class _Act:
    """One waiting act. `then` runs in the transaction that makes its rows."""

    name: str
    changes: tuple[Change, ...]
    undoable: bool
    undoes: int | None
    then: Callable[[Cursor], object] | None
    done: bool = False
    error: BaseException | None = None


class Local:
    """Safe to use from several threads. `lost` lines of the journal could not be read and were not in the index."""

    def __init__(self, journal: Journal, index: Index, clock: Clock) -> None:
        self._journal = journal
        self.index = index
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: deque[_Act] = deque()
        self._remembered = Remembered()
        #: Whether the index may lack acts that the journal has.
        self._behind = False
        self.lost = 0
        self._open()

    def close(self) -> None:
        with self._lock:
            self._journal.close()

    @property
    def journal_bytes(self) -> int:
        return self._journal.size

    @property
    def last(self) -> int:
        """The number of the newest act, also of one that is being done."""
        return self._journal.last

    # ---- reading ------------------------------------------------------------------------------------------------

    def get(self, kind: type[Row], key: str) -> Row | None:
        table = _TABLES[kind]
        if self._is_empty(kind):
            return None
        rows = self.index.read(f"{table.select} WHERE {table.key} = ?", (key,))
        return table.row(rows[0]) if rows else None  # type: ignore[return-value]

    def all(self, kind: type[Row]) -> list[Row]:
        """In the order of their keys."""
        return self.few(kind, "TRUE")

    def where(self, kind: type[Row], condition: str, params: Sequence[Any] = ()) -> list[Row]:
        """The rows that fit a condition in SQL, in the order of their keys."""
        table = _TABLES[kind]
        if self._is_empty(kind):
            return []
        rows = self.index.read(f"{table.select} WHERE {condition} ORDER BY {table.key}", params)
        return [table.row(values) for values in rows]  # type: ignore[misc]

    def few(self, kind: type[Row], condition: str, params: Sequence[Any] = ()) -> list[Row]:
        """As `where`, for a condition that asks of no other table: what was found is remembered, if it is little."""
        question = ("few", condition, tuple(params))
        found = self._remembered.answer(
            kind, question, lambda: self.where(kind, condition, params), lambda rows: len(rows) <= FEW
        )
        return list(found)

    def has(self, kind: type[LocalRow], condition: str, params: Sequence[Any] = ()) -> bool:
        """Whether any row fits a condition that asks of no other table. Remembered."""
        sql = f"SELECT 1 FROM {_quoted(_TABLES[kind].name)} WHERE {condition} LIMIT 1"
        question = ("has", condition, tuple(params))
        return self._remembered.answer(kind, question, lambda: bool(self.index.read(sql, params)), lambda _: True)

    def _is_empty(self, kind: type[LocalRow]) -> bool:
        return not self.has(kind, "TRUE")

    # ---- acts ---------------------------------------------------------------------------------------------------

    def act(
        self,
        name: str,
        *changes: Change,
        undoable: bool = False,
        then: Callable[[Cursor], object] | None = None,
        undoes: int | None = None,
        urgent: bool = False,
    ) -> None:
        """Do all `changes` or none: a line in the journal, synced, then the rows, and `then` with them.

        `then` runs in the same transaction, and again when the transaction has to be repeated. Acts that wait for one
        another share a sync and a transaction. Raises `DiskFull`, or what `then` raises; nothing was changed then.
        `urgent`: it may use the last room, since it makes some, or ends what was begun.
        """
        if not urgent:
            check_room(self._journal.path.parent, RESERVE)
        act = _Act(name, changes, undoable, undoes, then)
        self._waiting.append(act)
        with self._lock:
            if not act.done:
                self._run([self._waiting.popleft() for _ in range(len(self._waiting))])
        if act.error is not None:
            raise act.error

    def _run(self, group: list[_Act]) -> None:
        if len(group) > 1 and not any(act.undoable for act in group):
            try:
                self._commit(group)
            except Exception:  # each alone, so that one that fails does not take the others along
                pass
            else:
                for act in group:
                    act.done = True
                return
        for act in group:
            try:
                if not (act.undoable and self._stands(act)):
                    self._commit([act])
            except BaseException as error:
                act.error = error
            act.done = True

    def _commit(self, acts: Sequence[_Act]) -> None:
        """One sync, one transaction. Raises, with journal and index as they were, when either fails."""
        if self._behind:
            self._catch_up()
        lines = [self._line(number, act) for number, act in enumerate(acts, self._journal.last + 1)]
        self._journal.append(lines)

        def change(cursor: Cursor) -> None:
            for act in acts:
                for item in act.changes:
                    _apply(cursor, item)
                if act.then is not None:
                    act.then(cursor)
            _mark(cursor, lines[-1].seq)

        try:
            with self._remembered.change({item.kind for act in acts for item in act.changes}):
                self.index.write(change)
        except BaseException:
            if not self._is_applied(lines[-1].seq):
                self._journal.take_back(lines)
                raise

    def _is_applied(self, seq: int) -> bool:
        """Whether a transaction that ended in an error was kept all the same (a full disk after the commit)."""
        try:
            return self._applied() >= seq
        except duckdb.Error:
            return False

    def _stands(self, act: _Act) -> bool:
        """Whether everything is already as the act would make it: then there is nothing to take back either."""
        return all(self.get(kind, key) == row for kind, key, row in act.changes)

    def _line(self, number: int, act: _Act) -> Line:
        undo = None
        if act.undoable:
            undo = tuple(_entry(Change(kind, key, self.get(kind, key))) for kind, key, _ in act.changes)
        return Line(
            seq=number,
            at=self._clock(),
            act=act.name,
            changes=tuple(_entry(change) for change in act.changes),
            undo=undo,
            undoes=act.undoes,
        )

    # ---- undo ---------------------------------------------------------------------------------------------------

    def undo(
        self,
        touches: Callable[[str], bool] = lambda key: True,
        *,
        preview: bool = False,
        gone: Callable[[str], bool] = lambda key: False,
    ) -> Undone:
        """Take back the newest act that can be, among those with a key that `touches`; `preview`: only say which.

        Raises `NothingToUndo`, or `UndoStale` where all that is left was changed again since; `gone` knows the keys of
        what was in the trash and was thrown away with it.
        """
        left = [
            line for line in _still_undoable(self._journal.lines()) if any(touches(key) for _, key, _ in line.changes)
        ]
        passed, lost = list[str](), ""
        for line in reversed(left):
            keys = tuple(dict.fromkeys(key for _, key, _ in line.changes))
            if all(self.get(now.kind, now.key) == now.row for now in map(_change, line.changes)):
                if not preview:
                    self.act(f"undo {line.act}", *map(_change, line.undo or ()), undoes=line.seq)
                return Undone(act=line.act, done_ms=line.at, keys=keys, passed_over=tuple(passed))
            passed.append(f"{line.act} {', '.join(keys)}")
            lost = lost or next((key for key in keys if gone(key)), "")
        if lost:
            hint = "`orchctl adapter fetch` gets an adapter again from whoever has it; a data set is imported again."
            raise UndoStale(f"{lost} was removed, and the trash was emptied since: it is gone for good", hint=hint)
        if passed:
            raise UndoStale(f"what it changed was changed again after {passed[0]}")
        raise NothingToUndo("nothing that was done here is left to be undone")

    # ---- at start -----------------------------------------------------------------------------------------------

    def _open(self) -> None:
        applied = self._applied()
        self.lost = self._journal.damaged if applied < self._journal.last else 0
        if applied < self._journal.anew:
            self._refold()
        else:
            self._catch_up()
        new = self._journal.count == 0 and self._row_count() > 0
        if new or self._journal.damaged or applied > self._journal.last:
            self._journal.rewrite(self._snapshot(max(applied, self._journal.last)))
        elif self._journal.size > COMPACT_SIZE and self._journal.count > 2 * self._row_count():
            try:
                self._journal.rewrite(self._snapshot(self._journal.last))
            except DiskFull as error:
                LOG.warning("the journal stays as long as it is: %s", error)
                return
        else:
            return
        self.index.write(lambda cursor: _mark(cursor, self._journal.last))

    def _catch_up(self) -> None:
        """Give the index the acts that it has not got."""
        self._behind = True
        applied = self._applied()
        waiting = self._journal.lines(applied) if applied < self._journal.last else iter(())
        while lines := list(islice(waiting, BATCH)):
            newest = {(name, key): value for line in lines for name, key, value in line.changes}
            with self._remembered.change(_TABLES.keys()):
                self.index.write(lambda cursor, n=newest, s=lines[-1].seq: _apply_all(cursor, n, s))  # type: ignore[misc]
        self._behind = False

    def refold(self) -> None:
        """Make every row again from the journal alone, in one transaction."""
        with self._lock:
            self._refold()

    def _refold(self) -> None:

        def change(cursor: Cursor) -> None:
            for table in _TABLES.values():
                cursor.execute(f"DELETE FROM {_quoted(table.name)}")
            waiting = self._journal.lines()
            while lines := list(islice(waiting, BATCH)):
                newest = {(name, key): value for line in lines for name, key, value in line.changes}
                _apply_all(cursor, newest, lines[-1].seq)

        with self._remembered.change(_TABLES.keys()):
            self.index.write(change)

    def _applied(self) -> int:
        rows = self.index.read("SELECT seq FROM applied")
        return int(rows[0][0]) if rows else 0

    def _row_count(self) -> int:
        counts = " UNION ALL ".join(f"SELECT count(*) AS n FROM {_quoted(table.name)}" for table in _TABLES.values())
        return int(self.index.read(f"SELECT sum(n) FROM ({counts})")[0][0])

    def _snapshot(self, last: int) -> Iterator[Line]:
        """Every row as a line, and the acts that can still be undone; the newest line has a number above `last`."""
        kept, now = _still_undoable(self._journal.lines()), self._clock()
        last += 1
        yield Line(seq=last, at=now, act=ANEW, changes=())
        yield from kept
        if gone := {(table, key) for line in kept for table, key, _ in line.changes}:  # what is there follows
            last += 1
            yield Line(seq=last, at=now, act="kept", changes=tuple((table, key, None) for table, key in sorted(gone)))
        for table in _TABLES.values():
            for values in self.index.stream(table.select):
                last += 1
                row = table.row(values)
                yield Line(seq=last, at=now, act="kept", changes=(_entry(put(row)),))


def _still_undoable(lines: Iterable[Line]) -> list[Line]:
    """The acts that can be undone and were not, oldest first."""
    found: dict[int, Line] = {}
    for line in lines:
        if line.undoes is not None:
            found.pop(line.undoes, None)
        if line.undo is not None:
            found[line.seq] = line
    return list(found.values())[-UNDO_KEPT:]


def _entry(change: Change) -> Entry:
    return _TABLES[change.kind].name, change.key, change.row


def _change(entry: Entry) -> Change:
    name, key, value = entry
    kind = _BY_NAME[name].kind
    return Change(kind, key, None if value is None else msgspec.convert(value, kind))


def _mark(cursor: Cursor, seq: int) -> None:
    [(found,)] = cursor.execute("UPDATE applied SET seq = ?", [seq]).fetchall()
    if not found:
        cursor.execute("INSERT INTO applied VALUES (1, ?)", [seq])


def _apply(cursor: Cursor, change: Change) -> None:
    table = _TABLES[change.kind]
    if change.row is None:
        cursor.execute(f"DELETE FROM {_quoted(table.name)} WHERE {table.key} = ?", [change.key])
    else:
        Index.put(cursor, _quoted(table.name), table.key, _to_index(change.row))


def _apply_all(cursor: Cursor, newest: dict[tuple[str, str], Any], seq: int) -> None:
    """The last value of each key at once. A table that this orchd does not know is passed over."""
    for table in _TABLES.values():
        mine = [(key, value) for (name, key), value in newest.items() if name == table.name]
        gone = [key for key, value in mine if value is None]
        if gone:
            cursor.execute(f"DELETE FROM {_quoted(table.name)} WHERE {table.key} IN (SELECT unnest(?))", [gone])
        rows = [_to_index(msgspec.convert(value, table.kind)) for _, value in mine if value is not None]
        if rows:
            Index.append(cursor, table.name, rows)
    _mark(cursor, seq)
