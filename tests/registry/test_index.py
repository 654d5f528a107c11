"""Does the index lose nothing, mix nothing up between threads, and tell damage from a busy file?"""

from __future__ import annotations

import subprocess
import sys
import threading
from importlib import resources
from pathlib import Path

import duckdb
import pytest

from orchd.errors import DiskFull, HomeBusy, IndexDamaged, IndexTooNew, IndexUnavailable, OrchdError
from orchd.registry import index as module
from orchd.registry.index import Cancel, Cursor, Index, ReadCancelled


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


def _add(index: Index, name: str) -> None:
    index.execute("INSERT INTO topic VALUES (?, 1)", (name,))


def _names(index: Index) -> list[str]:
    return [row[0] for row in index.read("SELECT name FROM topic ORDER BY name")]


def _in_another_process(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=False)


# ---- cancelled reads ---------------------------------------------------------------------------------------------


ENDLESS = "SELECT count(*) FROM range(1000000000) a, range(1000000000) b WHERE a.range * b.range % 7 = ?"


def test_a_read_is_ended_from_another_thread(path: Path) -> None:
    index, cancel = Index(path), Cancel()
    ended = list[BaseException]()

    def read() -> None:
        try:
            index.read(ENDLESS, (3,), cancel)
        except ReadCancelled as error:
            ended.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    cancel.cancel()
    assert cancel.cancelled
    reader.join(60)
    assert len(ended) == 1
    with pytest.raises(ReadCancelled):
        index.read("SELECT 1", (), cancel)
    assert index.read("SELECT 1") == [(1,)]
    index.close()


def test_a_cancel_outlives_several_reads_and_ends_the_next(path: Path) -> None:
    index, cancel = Index(path), Cancel()
    assert index.read("SELECT 1", (), cancel) == index.read("SELECT 1", (), cancel) == [(1,)]
    timer = threading.Timer(0.05, cancel.cancel)
    timer.start()
    with pytest.raises(ReadCancelled):
        index.read(ENDLESS, (3,), cancel)
    timer.join()
    index.close()


# ---- transactions --------------------------------------------------------------------------------------------


def test_what_is_written_stays(path: Path) -> None:
    index = Index(path)
    _add(index, "a")
    index.close()
    again = Index(path)
    assert _names(again) == ["a"]
    again.close()


def test_an_error_takes_the_whole_change_back(path: Path) -> None:
    index = Index(path)

    def change(cursor: Cursor) -> None:
        cursor.execute("INSERT INTO topic VALUES ('a', 1)")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        index.write(change)
    assert _names(index) == []
    _add(index, "b")
    assert _names(index) == ["b"]
    index.close()


def test_a_caught_error_is_no_silent_loss(path: Path) -> None:
    """DuckDB's COMMIT of an aborted transaction succeeds and keeps nothing; `write` must not say that it did."""
    index = Index(path)

    def change(cursor: Cursor) -> str:
        cursor.execute("INSERT INTO topic VALUES ('a', 1)")
        try:
            cursor.execute("SELECT no_such_column FROM topic")
        except duckdb.Error:
            return "fine"
        return "?"

    with pytest.raises(duckdb.TransactionException):
        index.write(change)
    _add(index, "b")
    assert _names(index) == ["b"]
    index.close()


def test_a_full_disk_is_told_as_such_and_the_change_was_not_made(path: Path) -> None:
    index = Index(path)

    def change(cursor: Cursor) -> None:
        cursor.execute("INSERT INTO topic VALUES ('a', 1)")
        raise duckdb.IOException('IO Error: Could not write file "registry.db.wal": No space left on device')

    with pytest.raises(DiskFull, match=str(path)):
        index.write(change)
    assert _names(index) == []
    _add(index, "b")  # works again once there is space
    assert _names(index) == ["b"]
    index.close()


def test_a_failed_query_spoils_no_later_one(path: Path) -> None:
    index = Index(path)
    for _ in range(3):
        with pytest.raises(duckdb.Error):
            index.read("SELECT nonsense")
        assert index.read("SELECT 1") == [(1,)]
    index.close()


def test_a_reader_sees_whole_changes_only(path: Path) -> None:
    index = Index(path)
    seen: list[list[str]] = []

    def change(cursor: Cursor) -> None:
        cursor.execute("INSERT INTO topic VALUES ('a', 1)")
        seen.append(_names(index))
        cursor.execute("INSERT INTO topic VALUES ('b', 1)")

    index.write(change)
    assert seen == [[]]
    assert _names(index) == ["a", "b"]
    index.close()


def test_eight_threads_get_their_own_answers(path: Path) -> None:
    index = Index(path)
    start, wrong = threading.Barrier(8), []

    def work(number: int) -> None:
        start.wait()
        for step in range(40):
            if step % 10 == 0:
                _add(index, f"{number}-{step}")
            if index.read("SELECT ?, ?", (number, step)) != [(number, step)]:
                wrong.append((number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(_names(index)) == 8 * 4
    index.close()


def test_after_a_fatal_error_the_index_opens_itself_again(path: Path) -> None:
    index = Index(path)
    _add(index, "a")
    index.read("SELECT 1")  # leaves a reader waiting, dead from now on

    def fatal(_: Cursor) -> None:
        raise duckdb.FatalException("INTERNAL")

    with pytest.raises(duckdb.FatalException):
        index.write(fatal)
    assert _names(index) == ["a"]
    _add(index, "b")
    assert _names(index) == ["a", "b"]
    index.close()


def test_a_dead_index_that_can_not_be_opened_now_is_opened_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(path)
    _add(index, "a")

    def fatal(_: Cursor) -> None:
        raise duckdb.FatalException("INTERNAL")

    def full(*_: object, **__: object) -> Cursor:
        raise duckdb.IOException("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.duckdb, "connect", full)
        with pytest.raises(duckdb.FatalException):
            index.write(fatal)
        for use in (lambda: _names(index), lambda: _add(index, "b")):
            with pytest.raises(DiskFull):
                use()
    assert _names(index) == ["a"]
    _add(index, "b")
    assert _names(index) == ["a", "b"]
    index.close()


def test_a_new_index_that_found_no_room_leaves_nothing_that_looks_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Index) -> None:
        path.write_bytes(b"half")
        raise DiskFull("full")

    with monkeypatch.context() as patch:
        patch.setattr(Index, "_migrate", full)
        with pytest.raises(DiskFull):
            Index(path)
    assert not path.exists()
    Index(path).close()
    with monkeypatch.context() as patch:
        patch.setattr(Index, "_migrate", full)
        with pytest.raises(DiskFull):
            Index(path)
    assert path.exists()


def test_a_closed_index_holds_its_file_no_longer(path: Path) -> None:
    index = Index(path)
    index.read("SELECT 1")  # leaves a reader waiting
    index.close()
    script = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('SELECT 1')"
    assert _in_another_process(script, str(path)).returncode == 0


def test_a_killed_writer_loses_nothing_that_was_said(path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from orchd.registry.index import Index\n"
        "index = Index(Path(sys.argv[1]))\n"
        "for n in range(30): index.execute('INSERT INTO topic VALUES (?, 1)', (f'{n:02}',)); print(n, flush=True)\n"
        "index._root.execute('BEGIN'); index._root.execute(\"INSERT INTO topic VALUES ('half', 1)\"); os._exit(9)"
    )
    told = _in_another_process(script, str(path)).stdout.split()
    index = Index(path)
    assert _names(index) == [f"{int(n):02}" for n in told]
    assert len(told) == 30
    index.close()


# ---- what the database may touch -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{folder}/identity.pem')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "COPY (SELECT 1) TO '{folder}/out.csv'",
        "ATTACH '{folder}/other.db'",
        "EXPORT DATABASE '{folder}/dump'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "SET autoinstall_known_extensions = true",
        "SELECT * FROM 'https://example.com/x.csv'",
    ],
)
def test_nothing_outside_its_file_is_open_to_it(path: Path, sql: str) -> None:
    (path.parent / "identity.pem").write_text("secret")
    index = Index(path)
    before = sorted(file.name for file in path.parent.iterdir())
    with pytest.raises(duckdb.Error, match=r"(?i)disabled|locked|configuration|extension"):
        index.read(sql.format(folder=path.parent))
    assert sorted(file.name for file in path.parent.iterdir()) == before
    index.close()


def test_a_folder_with_a_quote_in_its_name_is_no_statement(tmp_path: Path) -> None:
    folder = tmp_path / "it's {0} %s"
    folder.mkdir()
    index = Index(folder / "registry.db")
    _add(index, "a")
    index.close()


# ---- migrations ----------------------------------------------------------------------------------------------


def test_each_migration_runs_once(path: Path) -> None:
    Index(path).close()
    index = Index(path)
    files = [
        entry.name for entry in (resources.files("orchd.registry") / "migrations").iterdir() if entry.name[:1].isdigit()
    ]
    assert index.read("SELECT name FROM migration ORDER BY number") == [(name,) for name in sorted(files)]
    index.close()


def test_a_new_migration_runs_on_old_data(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(path)
    _add(index, "a")
    index.close()
    later = [*module._migrations(), (99, ("0099_x.sql", "ALTER TABLE topic ADD COLUMN note VARCHAR DEFAULT 'x'"))]
    monkeypatch.setattr(module, "_migrations", lambda: later)
    index = Index(path)
    assert index.read("SELECT name, note FROM topic") == [("a", "x")]
    index.close()


def test_half_a_migration_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(path)
    _add(index, "a")
    index.close()
    broken = [*module._migrations(), (99, ("0099_x.sql", "CREATE TABLE half(x INTEGER); SELECT nonsense"))]
    with monkeypatch.context() as patch:
        patch.setattr(module, "_migrations", lambda: broken)
        with pytest.raises(OrchdError):
            Index(path)
    index = Index(path)
    assert index.read("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'half'") == [(0,)]
    assert _names(index) == ["a"]
    index.close()


def test_the_index_of_a_newer_orchd_is_left_alone(path: Path) -> None:
    index = Index(path)
    index.execute("INSERT INTO migration VALUES (9999, '9999_future.sql')")
    index.close()
    before = path.read_bytes()
    with pytest.raises(IndexTooNew, match="9999"):
        Index(path)
    assert path.read_bytes() == before


def test_no_table_uses_what_duckdb_loses(path: Path) -> None:
    """../shared/facts/registry.md: no secondary index, no foreign key, no TIMESTAMPTZ."""
    index = Index(path)
    assert index.read("SELECT count(*) FROM duckdb_indexes()") == [(0,)]
    kinds = {row[0] for row in index.read("SELECT constraint_type FROM duckdb_constraints()")}
    assert kinds <= {"PRIMARY KEY", "NOT NULL"}
    types = {row[0] for row in index.read("SELECT data_type FROM duckdb_columns() WHERE NOT internal")}
    assert not {kind for kind in types if "TIMESTAMP" in kind}
    index.close()


# ---- damage, and what is none --------------------------------------------------------------------------------


def test_a_file_in_use_is_busy_not_damaged(path: Path) -> None:
    Index(path).close()
    script = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    with pytest.raises(HomeBusy, match=str(other.pid)):
        Index(path)
    other.communicate()
    Index(path).close()


def test_a_folder_in_its_place_is_not_damage(path: Path) -> None:
    path.mkdir()
    with pytest.raises(IndexUnavailable):
        Index(path)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("IO Error: Cannot open file: Permission denied", IndexUnavailable),
        ("IO Error: Could not write: No space left on device", DiskFull),
        ("IO Error: Cannot open file: Too many open files", IndexUnavailable),
        ("IO Error: Trying to read version number 70, but we can only read versions 64 to 69", IndexTooNew),
        (
            "Corrupt database file: computed checksum 1 does not match stored checksum 2 in block at location 3",
            IndexDamaged,
        ),
        ("something never heard of", IndexDamaged),
    ],
)
def test_what_duckdb_says_is_told_as_what_it_is(
    path: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[OrchdError]
) -> None:
    def connect(*_: object, **__: object) -> Cursor:
        raise duckdb.IOException(said)

    monkeypatch.setattr(duckdb, "connect", connect)
    with pytest.raises(kind) as caught:
        Index(path)
    assert type(caught.value) is kind


def test_the_name_of_the_folder_has_no_say_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "Could not set lock No space left"
    folder.mkdir()
    (folder / "registry.db").write_bytes(b"x" * 20_000)
    with pytest.raises(IndexDamaged):
        Index(folder / "registry.db")


@pytest.mark.parametrize(
    "content", [b"", b"x" * 20, b"x" * 20_000, bytes(20_000)], ids=["empty", "20", "text", "zeros"]
)
def test_a_file_that_is_no_database_is_damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(IndexDamaged):
        Index(path)


def test_a_flipped_bit_shows_at_start_or_changes_nothing(path: Path) -> None:
    index = Index(path)
    rows = [(f"{number:04}", "z" * 3000) for number in range(100)]
    index.write(
        lambda cursor: cursor.executemany("INSERT INTO job VALUES (?, '', '', ?, '', NULL, NULL, 1, NULL, NULL)", rows)
    )
    index.close()
    healthy, seen = path.read_bytes(), 0
    for position in range(100, len(healthy), len(healthy) // 20):
        data = bytearray(healthy)
        data[position] ^= 0x10
        path.write_bytes(data)
        try:
            index = Index(path)
        except IndexDamaged:
            seen += 1
            continue
        assert index.read("SELECT id, title FROM job ORDER BY id") == rows
        index.close()
    assert seen > 3


def test_a_flipped_bit_in_the_log_shows_at_start_or_cuts_it_off(path: Path) -> None:
    """A changed length looks like the torn end of a log, which DuckDB leaves out; anything else fails its checksum."""
    script = (
        "import os, sys; from pathlib import Path; from orchd.registry.index import Index\n"
        "index = Index(Path(sys.argv[1]))\n"
        "for n in range(5): index.execute('INSERT INTO topic VALUES (?, 1)', (str(n),))\n"
        "os._exit(9)"
    )
    _in_another_process(script, str(path))
    log = path.with_name("registry.db.wal")
    table, healthy, seen = path.read_bytes(), log.read_bytes(), 0
    for position in range(20, len(healthy), len(healthy) // 12):
        data = bytearray(healthy)
        data[position] ^= 0x10
        path.write_bytes(table)
        log.write_bytes(data)
        try:
            index = Index(path)
        except IndexDamaged:
            seen += 1
            continue
        names = _names(index)
        assert names == ["0", "1", "2", "3", "4"][: len(names)]
        index.close()
    assert seen > 6


# ---- copies ------------------------------------------------------------------------------------------------------


def test_a_copy_has_every_row_of_every_table_and_the_keys(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COPIED", 2)
    index = Index(path)
    for name in "abcde":
        _add(index, name)
    index.execute("DELETE FROM topic WHERE name = 'b'")  # rows are not numbered without gaps
    index.execute("INSERT INTO edge VALUES ('c', 'p', 'leaf', 0.5)")
    index.backup(index.backups / "copy")
    _add(index, "later")
    index.close()
    copy = Index(path.parent / module.BACKUPS / "copy")
    try:
        assert _names(copy) == ["a", "c", "d", "e"]
        assert copy.read("SELECT * FROM edge") == [("c", "p", "leaf", 0.5)]
        assert copy.read("SELECT count(*) FROM migration") == [(len(module._migrations()),)]
        with pytest.raises(duckdb.ConstraintException):
            _add(copy, "a")
    finally:
        copy.close()
