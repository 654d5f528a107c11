"""Is what this node alone knows the same after a crash, a lost index, a lost journal?"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from orchd.errors import DiskFull, NothingToUndo, UndoStale
from orchd.registry import local as module
from orchd.registry.index import Cursor, Index
from orchd.registry.journal import Journal
from orchd.registry.local import Local, delete, put
from orchd.registry.local_rows import TABLES, JobRow, LocalRow, OwnAnnouncement, Pin, Setting, Verdict


class House:
    """Journal and index in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1_000
        self.open()

    def open(self) -> Local:
        self.index = Index(self.folder / "registry.db")
        self.local = Local(Journal(self.journal, self.now), self.index, lambda: self.now)
        return self.local

    @property
    def journal(self) -> Path:
        return self.folder / "journal.log"

    def close(self) -> None:
        self.local.close()
        self.index.close()

    def reopen(self) -> Local:
        self.close()
        return self.open()

    def lose_index(self) -> Local:
        self.close()
        (self.folder / "registry.db").unlink()
        return self.open()


@pytest.fixture
def house(tmp_path: Path) -> Any:
    made = House(tmp_path)
    yield made
    made.close()


def _setting(key: str, value: str = "v") -> Setting:
    return Setting(key=key, value=value)


def _example(kind: type[LocalRow]) -> LocalRow:
    values: dict[str, Any] = {}
    for part in msgspec.inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        match part.type:
            case msgspec.inspect.IntType():
                values[part.name] = 2**40
            case msgspec.inspect.FloatType():
                values[part.name] = 0.1
            case msgspec.inspect.BoolType():
                values[part.name] = True
            case msgspec.inspect.BytesType():
                values[part.name] = bytes(range(256))
            case msgspec.inspect.VarTupleType():
                values[part.name] = ("ä'", "\n")
            case msgspec.inspect.UnionType():
                values[part.name] = None
            case _:
                values[part.name] = f'"{part.name}" größe'
    return kind(**values)


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
def test_each_kind_of_row_comes_back_from_index_and_journal(house: House, kind: type[LocalRow]) -> None:
    row = _example(kind)
    columns = house.index.read(
        "SELECT column_name FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index", (TABLES[kind],)
    )
    assert [name for (name,) in columns] == [part.name for part in msgspec.structs.fields(kind)]
    house.local.act("test", put(row))
    assert house.local.all(kind) == [row]
    assert house.lose_index().all(kind) == [row]
    key = put(row).key
    house.local.act("test", delete(kind, key))
    assert house.local.get(kind, key) is None
    assert house.lose_index().all(kind) == []


def test_the_last_one_wins(house: House) -> None:
    for value in "abc":
        house.local.act("test", put(_setting("x", value)), put(_setting("y" + value)))
    house.local.act("test", delete(Setting, "ya"))
    wanted = [_setting("x", "c"), _setting("yb"), _setting("yc")]
    assert house.local.all(Setting) == wanted
    assert house.reopen().all(Setting) == wanted
    assert house.lose_index().all(Setting) == wanted
    house.local.refold()
    assert house.local.all(Setting) == wanted


def test_the_index_is_given_what_it_missed(house: House) -> None:
    """As after a restored backup, or a log of the database that lost its tail."""
    house.local.act("test", put(_setting("a")))
    house.close()
    old = (house.folder / "registry.db").read_bytes()
    house.open()
    house.local.act("test", put(_setting("b")))
    house.local.act("test", delete(Setting, "a"))
    house.close()
    (house.folder / "registry.db").write_bytes(old)
    assert house.open().all(Setting) == [_setting("b")]


def test_a_lost_journal_is_written_again_from_the_index(house: House) -> None:
    house.local.act("test", put(_setting("a")), put(Pin(adapter="p")))
    house.local.act("test", put(_setting("b")))
    house.close()
    house.journal.unlink()
    house.open()
    house.local.act("test", put(_setting("c")))
    local = house.lose_index()
    assert [row.key for row in local.all(Setting)] == ["a", "b", "c"]
    assert local.all(Pin) == [Pin(adapter="p")]


def test_a_damaged_line_is_made_good_from_the_index(house: House) -> None:
    for key in "abc":
        house.local.act("test", put(_setting(key)))
    house.close()
    data = bytearray(house.journal.read_bytes())
    data[len(data) // 2] ^= 1
    house.journal.write_bytes(data)
    assert house.open().lost == 0
    assert [row.key for row in house.lose_index().all(Setting)] == ["a", "b", "c"]
    assert list(house.folder.glob("journal.log.damaged-*"))


def test_a_line_that_is_in_neither_is_told_as_lost(house: House) -> None:
    for key in "abc":
        house.local.act("test", put(_setting(key)))
    house.close()
    data = bytearray(house.journal.read_bytes())
    data[len(data) // 2] ^= 1
    house.journal.write_bytes(data)
    (house.folder / "registry.db").unlink()
    local = house.open()
    assert local.lost == 1
    assert [row.key for row in local.all(Setting)] == ["a", "c"]


def test_an_old_homes_rows_come_into_the_journal(house: House) -> None:
    """Of an orchd that had no journal."""
    house.close()
    house.journal.unlink()
    index = Index(house.folder / "registry.db")
    index.execute("INSERT INTO topic VALUES ('words', 5)")
    index.close()
    house.open()
    assert [row.name for row in house.lose_index().all(next(kind for kind in TABLES if TABLES[kind] == "topic"))] == [
        "words"  # type: ignore[comparison-overlap]
    ]


# ---- when it fails -----------------------------------------------------------------------------------------------


def test_an_act_whose_rows_can_not_be_made_was_not_done(house: House) -> None:
    def full(cursor: Cursor) -> None:
        raise duckdb.IOException("Could not write file: No space left on device")

    with pytest.raises(DiskFull):
        house.local.act("test", put(_setting("a")), then=full)
    assert house.local.all(Setting) == []
    house.local.act("test", put(_setting("b")))
    assert house.lose_index().all(Setting) == [_setting("b")]


def test_an_act_that_was_kept_although_an_error_came_counts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint on a full disk fails after the commit."""
    write = house.index.write

    def fatal(change: Any) -> None:
        write(change)
        raise duckdb.FatalException("checkpoint: No space left on device")

    monkeypatch.setattr(house.index, "write", fatal)
    house.local.act("test", put(_setting("a")))
    monkeypatch.undo()
    assert house.local.all(Setting) == [_setting("a")]
    assert house.lose_index().all(Setting) == [_setting("a")]


def test_many_at_once_share_syncs_and_none_is_lost(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    appended, append = list[int](), house.local._journal.append
    first = threading.Event()

    def slow(lines: Any) -> None:
        appended.append(len(lines))
        if len(appended) == 1:
            first.set()
            while len(house.local._waiting) < 15:
                pass
        append(lines)

    monkeypatch.setattr(house.local._journal, "append", slow)

    def fail(cursor: Cursor) -> None:
        raise ZeroDivisionError

    def work(number: int) -> None:
        if number:
            first.wait()
        if number == 7:
            with pytest.raises(ZeroDivisionError):
                house.local.act("test", put(_setting("bad")), then=fail)
        else:
            house.local.act("test", put(_setting(f"{number:02}")))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = [f"{number:02}" for number in range(16) if number != 7]
    assert [row.key for row in house.local.all(Setting)] == wanted
    assert appended[:2] == [1, 15]
    assert [row.key for row in house.lose_index().all(Setting)] == wanted


# ---- undo --------------------------------------------------------------------------------------------------------


def test_acts_are_taken_back_newest_first(house: House) -> None:
    house.local.act("one", put(_setting("a", "1")), undoable=True)
    house.local.act("two", put(_setting("a", "2")), put(Pin(adapter="p")), undoable=True)
    house.local.act("three", put(_setting("b")))
    assert house.local.undo().act == "two"
    assert house.local.all(Setting) == [_setting("a", "1"), _setting("b")]
    assert house.local.all(Pin) == []
    assert house.reopen().undo().keys == ("a",)
    assert house.local.all(Setting) == [_setting("b")]
    with pytest.raises(NothingToUndo):
        house.local.undo()
    assert house.lose_index().all(Setting) == [_setting("b")]


def test_what_was_changed_again_is_not_undone(house: House) -> None:
    house.local.act("one", put(_setting("a", "1")), undoable=True)
    house.local.act("two", put(_setting("a", "2")))
    with pytest.raises(UndoStale, match="one"):
        house.local.undo()
    assert house.local.all(Setting) == [_setting("a", "2")]


def test_what_went_stale_does_not_stand_in_the_way(house: House) -> None:
    house.local.act("older", put(Pin(adapter="p")), undoable=True)
    house.local.act("newer", put(_setting("a", "1")), undoable=True)
    house.local.act("again", put(_setting("a", "2")))
    assert house.local.undo(preview=True).act == "older"
    assert house.local.all(Pin) == [Pin(adapter="p")]
    undone = house.local.undo()
    assert (undone.act, undone.passed_over) == ("older", ("newer a",))
    assert house.local.all(Pin) == []
    assert house.local.all(Setting) == [_setting("a", "2")]


def test_what_changes_nothing_is_not_there_to_be_undone(house: House) -> None:
    house.local.act("pin", put(Pin(adapter="p")), undoable=True)
    house.local.act("pin", put(Pin(adapter="p")), undoable=True)
    house.local.act("unpin", delete(Pin, "q"), undoable=True)
    assert house.local.undo().act == "pin"
    assert house.local.all(Pin) == []
    with pytest.raises(NothingToUndo):
        house.local.undo()


def test_one_thing_can_be_asked_for(house: House) -> None:
    house.local.act("one", put(Pin(adapter="p")), undoable=True)
    house.local.act("two", put(Pin(adapter="q")), undoable=True)
    assert house.local.undo(lambda key: key == "p").act == "one"
    with pytest.raises(NothingToUndo):
        house.local.undo(lambda key: key == "p")
    assert house.local.all(Pin) == [Pin(adapter="q")]


# ---- a journal that grew long ------------------------------------------------------------------------------------


def test_a_long_journal_is_written_anew(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_SIZE", 1_000)
    house.local.act("gone", put(Pin(adapter="gone")), undoable=True)
    house.local.act("pin", put(Pin(adapter="p")), undoable=True)
    house.local.act("gone", delete(Pin, "gone"))
    for number in range(50):
        house.local.act("test", put(_setting("a", str(number))))
    long = house.local.journal_bytes
    local = house.reopen()
    assert local.journal_bytes < long / 4
    assert local.all(Setting) == [_setting("a", "49")]
    house.local.act("test", put(_setting("b")))
    local = house.lose_index()
    assert local.all(Setting) == [_setting("a", "49"), _setting("b")]
    assert local.all(Pin) == [Pin(adapter="p")]
    assert local.undo().act == "pin"
    assert local.all(Pin) == []


def test_verdicts_and_jobs_may_hold_long_texts(house: House) -> None:
    verdict = Verdict(adapter="adp_x", reasons=("x" * 5_000, "y"), origin="fetched", received=1)
    own = OwnAnnouncement(digest="ann_x", seq=3, envelope=b"\x00\xff" * 4_000)
    job = JobRow(
        id="job_1", kind="k", state="done", title="", spec="{}", result="z" * 100_000, error=None, created=1, started=2,
        finished=3,
    )  # fmt: skip
    house.local.act("test", put(verdict), put(own), put(job))
    local = house.lose_index()
    assert (local.get(Verdict, "adp_x"), local.get(OwnAnnouncement, "ann_x"), local.get(JobRow, "job_1")) == (
        verdict,
        own,
        job,
    )
