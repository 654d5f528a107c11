"""Is every act that was acknowledged in the journal, and nothing that was not?"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from orchd.errors import DiskFull
from orchd.registry.journal import Journal, Line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.log"


def _line(seq: int, key: str = "k", value: Any = 1) -> Line:
    return Line(seq=seq, at=7, act="test", changes=(("pin", key, value),))


def _filled(path: Path, count: int = 5) -> Journal:
    journal = Journal(path, 0)
    for seq in range(1, count + 1):
        journal.append([_line(seq)])
    return journal


def test_what_was_appended_is_there_again(path: Path) -> None:
    _filled(path).close()
    journal = Journal(path, 0)
    assert [line.seq for line in journal.lines()] == [1, 2, 3, 4, 5]
    assert [line.seq for line in journal.lines(after=3)] == [4, 5]
    assert (journal.last, journal.count, journal.damaged) == (5, 5, 0)
    journal.append([_line(6), _line(7)])
    assert [line.seq for line in journal.lines(after=5)] == [6, 7]


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_half_a_line_at_the_end_is_cut_off_and_kept_beside(path: Path, cut: int) -> None:
    _filled(path).close()
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    journal = Journal(path, 99)
    assert [line.seq for line in journal.lines()] == [1, 2, 3, 4]
    assert journal.damaged == 0
    (torn,) = path.parent.glob("journal.log.torn-99")
    assert data[:-cut].endswith(torn.read_bytes())
    journal.append([_line(5)])
    journal.close()
    assert [line.seq for line in Journal(path, 0).lines()] == [1, 2, 3, 4, 5]


def test_a_flipped_bit_takes_its_line_alone(path: Path) -> None:
    _filled(path).close()
    healthy = path.read_bytes()
    ends = [index for index, byte in enumerate(healthy) if byte == 10]
    for position in range(0, len(healthy), 7):
        flipped = bytearray(healthy)
        flipped[position] ^= 0x04
        path.write_bytes(flipped)
        journal = Journal(path, position)
        left = [line.seq for line in journal.lines()]
        hit = sum(end < position for end in ends) + 1
        # The line feed itself: two lines become one, or the last one looks torn.
        lost = {hit, hit + 1} if position in ends else {hit}
        assert left == [seq for seq in range(1, 6) if seq not in lost]
        assert journal.damaged == (0 if position == ends[-1] else 1)
        journal.close()


def test_lines_that_were_taken_back_are_gone(path: Path) -> None:
    journal = _filled(path)
    journal.append([_line(6), _line(7)])
    journal.take_back([_line(6), _line(7)])
    journal.append([_line(6, "other")])
    journal.close()
    journal = Journal(path, 0)
    assert [(line.seq, line.changes[0][1]) for line in journal.lines(after=4)] == [(5, "k"), (6, "other")]


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_full_disk_leaves_the_journal_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    journal = _filled(path)
    before, write = path.read_bytes(), os.pwrite

    def full(descriptor: int, *rest: Any) -> int:
        if rest:
            write(descriptor, rest[0][:9], rest[1])  # a part went through
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(DiskFull):
            journal.append([_line(6)])
    assert path.read_bytes() == before
    journal.append([_line(6)])
    assert [line.seq for line in journal.lines(after=4)] == [5, 6]


def test_written_anew_it_holds_what_it_was_given(path: Path) -> None:
    journal = _filled(path)
    journal.rewrite([_line(9), _line(10)])
    journal.append([_line(11)])
    journal.close()
    assert [line.seq for line in Journal(path, 0).lines()] == [9, 10, 11]
