"""Unfinished adapters on the disk: what a kill, a torn journal or a bad disk leaves of them."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from orchd.errors import DiskFull
from orchd.net.partial import JOURNAL, KEEP_BYTES, KEEP_S, LOOK_EVERY, NOTE, Partial, tidy
from orchd.net.policy.plan import Span
from orchd.records import FileEntry

CHUNK = 4096
DATA = os.urandom(10 * CHUNK + 5)


def entry(data: bytes = DATA, chunk_size: int = CHUNK, path: str = "weights") -> FileEntry:
    chunks = [data[at : at + chunk_size] for at in range(0, len(data), chunk_size)]
    return FileEntry(
        path=path,
        size=len(data),
        sha256=hashlib.sha256(data).digest(),
        chunk_size=chunk_size,
        chunks=tuple(hashlib.sha256(chunk).digest() for chunk in chunks),
    )


def opened(folder: Path, *entries: FileEntry) -> Partial:
    return Partial(folder, entries or (entry(),), lambda needed: None)


def test_what_was_put_is_found_again(tmp_path: Path) -> None:
    with opened(tmp_path / "adp_x") as partial:
        assert partial.is_empty()
        assert partial.put(0, 2, memoryview(DATA[2 * CHUNK : 5 * CHUNK])) == 3
        assert partial.put(0, 10, memoryview(DATA[10 * CHUNK :])) == 1
    with opened(tmp_path / "adp_x") as partial:
        assert partial.found() == [Span(0, chunk, 1) for chunk in (2, 3, 4, 10)]
        partial.put(0, 0, memoryview(DATA))
        assert partial.path(0).read_bytes() == DATA
        partial.discard()
    assert not (tmp_path / "adp_x").exists()


def test_a_bad_chunk_is_neither_kept_nor_what_follows_it(tmp_path: Path) -> None:
    bad = bytearray(DATA)
    bad[2 * CHUNK] ^= 1
    with opened(tmp_path / "adp_x") as partial:
        assert partial.put(0, 0, memoryview(bad)) == 2
        assert partial.found() == [Span(0, 0, 1), Span(0, 1, 1)]
        assert partial.path(0).stat().st_size == 2 * CHUNK
        assert partial.put(0, 10, memoryview(DATA[10 * CHUNK :] + b"x")) == 0
        assert partial.put(0, 11, memoryview(b"x")) == 0, "a chunk that the file has not"


def test_what_the_disk_lost_is_not_found(tmp_path: Path) -> None:
    with opened(tmp_path / "adp_x") as partial:
        partial.put(0, 0, memoryview(DATA))
        with partial.path(0).open("r+b") as file:
            file.seek(3 * CHUNK)
            file.write(b"rotten")
            file.truncate(8 * CHUNK)
    with opened(tmp_path / "adp_x") as partial:
        assert [span.first for span in partial.found()] == [0, 1, 2, 4, 5, 6, 7]


def test_a_torn_journal_and_one_of_nonsense(tmp_path: Path) -> None:
    with opened(tmp_path / "adp_x") as partial:
        partial.put(0, 0, memoryview(DATA[:CHUNK]))
    with (tmp_path / "adp_x" / JOURNAL).open("ab") as file:
        file.write(NOTE.pack(0, 99) + NOTE.pack(7, 0) + NOTE.pack(0, 0) + NOTE.pack(0, 1)[:5])
    with opened(tmp_path / "adp_x") as partial:
        assert partial.found() == [Span(0, 0, 1)]
        partial.put(0, 1, memoryview(DATA[CHUNK : 2 * CHUNK]))
    with opened(tmp_path / "adp_x") as partial:
        assert partial.found() == [Span(0, 0, 1), Span(0, 1, 1)], "what follows a torn note is read"


def test_the_room_on_the_disk_is_looked_at_on_the_way(tmp_path: Path) -> None:
    asked: list[int] = []

    def full(needed: int) -> None:
        asked.append(needed)
        raise DiskFull("planted")

    data = bytes(4 << 20)
    with Partial(tmp_path / "adp_x", [entry(data, len(data))], full) as partial:
        for _ in range(LOOK_EVERY // len(data) - 1):
            partial.put(0, 0, memoryview(data))
        with pytest.raises(DiskFull):
            partial.put(0, 0, memoryview(data))
        assert asked == [len(data)]


CHILD = """
import hashlib, sys
from pathlib import Path
from orchd.net.partial import Partial
from orchd.records import FileEntry
data = Path(sys.argv[1]).read_bytes()
chunks = [data[at : at + 4096] for at in range(0, len(data), 4096)]
digests = tuple(hashlib.sha256(chunk).digest() for chunk in chunks)
entry = FileEntry(path="w", size=len(data), sha256=hashlib.sha256(data).digest(), chunk_size=4096, chunks=digests)
with Partial(Path(sys.argv[2]), [entry], lambda needed: None) as partial:
    for number, chunk in enumerate(chunks):
        partial.put(0, number, memoryview(chunk))
        print(number, flush=True)
"""


def test_killed_at_any_moment_it_loses_no_chunk_that_was_kept(tmp_path: Path) -> None:
    data = os.urandom(4096 * 3000)
    (tmp_path / "data").write_bytes(data)
    for wanted in (1, 50, 400):
        folder = tmp_path / f"adp_{wanted}"
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, tmp_path / "data", folder], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        told = [int(child.stdout.readline()) for _ in range(wanted)]
        child.send_signal(signal.SIGKILL)
        told += [int(line) for line in child.stdout if line.endswith("\n")]
        child.wait()
        child.stdout.close()
        assert len(told) < 3000, "it was killed on the way"
        with opened(folder, entry(data)) as partial:
            found = [span.first for span in partial.found()]
        assert found[: len(told)] == told
        assert len(found) - len(told) <= 1


def test_old_and_many_unfinished_ones_are_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10 * KEEP_S
    for number, age in enumerate((KEEP_S + 10.0, 30.0, 20.0, 10.0)):
        with opened(tmp_path / f"adp_{number}") as partial:
            partial.put(0, 0, memoryview(DATA))
        os.utime(tmp_path / f"adp_{number}" / JOURNAL, (now - age, now - age))
    (tmp_path / "tmpx").mkdir()
    (tmp_path / "adp_empty").mkdir()
    tidy(tmp_path, now)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["adp_1", "adp_2", "adp_3"]
    monkeypatch.setattr("orchd.net.partial.KEEP_BYTES", 2.5 * len(DATA) + 40_000)
    tidy(tmp_path, now)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["adp_2", "adp_3"]
    assert KEEP_BYTES > 1 << 30
    tidy(tmp_path / "none", now)
    assert (tmp_path / "none").is_dir()


@pytest.mark.parametrize("order", [range(11), [10, *range(10)], [0, 1, 5, 2, 3, 4, 1, *range(6, 11)]])
def test_the_digest_of_a_whole_file(tmp_path: Path, order: Iterable[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What came in order is not read again."""
    with opened(tmp_path / "adp_x") as partial:
        for chunk in order:
            assert partial.put(0, chunk, memoryview(DATA[chunk * CHUNK : (chunk + 1) * CHUNK])) == 1
        if order == range(11):
            monkeypatch.setattr("orchd.net.partial.os.pread", None)
        assert partial.digest(0) == entry().sha256


def test_the_digest_of_what_was_found_and_of_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "adp_x") as partial:
        partial.put(0, 0, memoryview(DATA[: 6 * CHUNK]))
    with opened(tmp_path / "adp_x", entry(), entry(b"")) as partial:
        assert len(partial.found()) == 6
        partial.put(0, 6, memoryview(DATA[6 * CHUNK :]))
        assert partial.digest(0) == entry().sha256
        assert partial.digest(1) == hashlib.sha256().digest()
