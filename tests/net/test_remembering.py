"""The book in its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from orchd.net import remembering
from orchd.net.policy.book import Banned, Book

ADDRESS = "/ip4/192.0.2.7/tcp/4001"


def test_it_comes_back_and_is_for_the_user_alone(tmp_path: Path) -> None:
    book = Book()
    book.reached("p", ADDRESS, 7)
    book.ban(Banned(subject="q"))
    remembering.save(tmp_path, book)
    again = remembering.load(tmp_path)
    assert (again.peers(), again.bans(0)) == (book.peers(), book.bans(0))
    assert (tmp_path / remembering.NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [remembering.NAME]


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"peers":[{"peer":1}]}', b"\xff", b'{"peers":"x"}'])
def test_a_damaged_file_is_an_empty_book(tmp_path: Path, raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / remembering.NAME).write_bytes(raw)
    assert remembering.load(tmp_path).peers() == []
    assert "can't be read" in caplog.text


def test_one_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembering, "SIZE_LIMIT", 10)
    (tmp_path / remembering.NAME).write_bytes(b'{"peers":[]     }')
    assert remembering.load(tmp_path).peers() == []


def test_no_room_is_no_fall(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    remembering.save(tmp_path / "nowhere", Book())
    assert "can't be written" in caplog.text


async def test_the_first_peer_is_written_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after the time between two: who is killed before that would know nobody."""
    written, real = trio.Event(), remembering.save

    def save(data: Path, book: Book) -> None:
        real(data, book)
        trio.from_thread.run_sync(written.set)

    monkeypatch.setattr(remembering, "save", save)
    monkeypatch.setattr(remembering, "EVERY_S", 1000.0)
    monkeypatch.setattr(remembering, "SOON_S", 0.01)
    book = Book()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(remembering.keep, tmp_path, book)
        await trio.testing.wait_all_tasks_blocked()
        book.reached("12D3KooWa", ADDRESS, 1)
        with trio.fail_after(20):
            await written.wait()
        nursery.cancel_scope.cancel()
    assert [one.peer for one in remembering.load(tmp_path).peers()] == ["12D3KooWa"]
