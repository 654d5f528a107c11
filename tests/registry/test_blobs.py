"""Is a blob whole or absent, whatever goes wrong while it is written?"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from orchd.errors import BlobUnknown, DigestMismatch, DiskFull
from orchd.registry import blobs
from orchd.registry.blobs import BlobStore, write_durably

DATA = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(DATA).digest()
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def _files(store: BlobStore) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file()]


def _put(store: BlobStore, *pieces: bytes, max_bytes: int = len(DATA), expected: bytes | None = None) -> bytes:
    with store.writer(max_bytes, expected) as writer:
        for piece in pieces:
            writer.write(piece)
        return writer.commit()


def test_what_is_written_is_there_under_its_digest(store: BlobStore) -> None:
    with store.writer(len(DATA), DIGEST) as writer:
        for start in range(0, len(DATA), 999):
            writer.write(DATA[start : start + 999])
        assert not store.has(DIGEST)  # not before the commit
        assert writer.commit() == DIGEST
    assert store.has(DIGEST)
    assert store.size(DIGEST) == len(DATA)
    assert store.path(DIGEST).read_bytes() == DATA
    assert _files(store) == [store.path(DIGEST)]


def test_a_blob_is_not_to_be_written_to(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    assert store.path(store.put_file(tmp_path / "file")).stat().st_mode & 0o222 == 0


def test_the_same_bytes_twice_are_one_blob(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    assert store.put_file(tmp_path / "file") == store.put_file(tmp_path / "file") == DIGEST
    assert len(_files(store)) == 1


def test_an_empty_blob_is_a_blob(store: BlobStore) -> None:
    with store.writer(0) as writer:
        assert store.size(writer.commit()) == 0


def test_leaving_without_commit_leaves_nothing(store: BlobStore) -> None:
    with store.writer(len(DATA)) as writer:
        writer.write(DATA)
    assert _files(store) == []


def test_an_error_while_writing_leaves_nothing(store: BlobStore) -> None:
    def fetch() -> None:
        with store.writer(len(DATA)) as writer:
            writer.write(DATA[:10])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fetch()
    assert _files(store) == []


def test_more_bytes_than_promised_are_not_written(store: BlobStore) -> None:
    with pytest.raises(DigestMismatch, match="more bytes"):
        _put(store, DATA[:1000], b"x", max_bytes=1000)
    assert _files(store) == []


def test_the_cap_counts_bytes_not_items(store: BlobStore) -> None:
    wide = memoryview(bytes(8)).cast("Q")
    with pytest.raises(DigestMismatch), store.writer(7) as writer:
        writer.write(wide)


@pytest.mark.parametrize("data", [DATA[:-1], DATA[:-1] + b"x", b""])
def test_other_bytes_than_were_signed_are_thrown_away(store: BlobStore, data: bytes) -> None:
    with pytest.raises(DigestMismatch, match=DIGEST.hex()):
        _put(store, data, expected=DIGEST)
    assert _files(store) == []


def test_a_file_that_grows_while_it_is_copied_is_refused(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "file"
    source.write_bytes(DATA)
    monkeypatch.setattr(blobs, "COPY_SIZE", 1000)
    check_room = store.check_room

    def grow(needed: int) -> None:
        source.write_bytes(DATA + b"more")
        check_room(needed)

    monkeypatch.setattr(store, "check_room", grow)
    with pytest.raises(DigestMismatch):
        store.put_file(source)
    assert _files(store) == []


def test_an_unknown_blob_is_named(store: BlobStore) -> None:
    assert not store.has(DIGEST)
    with pytest.raises(BlobUnknown, match=DIGEST.hex()):
        store.size(DIGEST)
    store.remove(DIGEST)  # nothing to do


def test_what_a_crash_left_is_gone_at_the_next_start(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from orchd.registry.blobs import BlobStore\n"
        "writer = BlobStore(Path(sys.argv[1])).writer(100); writer.write(b'half'); os._exit(9)"
    )
    root = tmp_path / "blobs"
    assert subprocess.run([sys.executable, "-c", script, str(root)], check=False).returncode == 9
    assert any(path.is_file() for path in root.rglob("*"))
    assert _files(BlobStore(root)) == []


def test_the_disk_keeps_its_reserve(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    free = blobs.DISK_RESERVE + 100
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free))
    with store.writer(100):
        pass
    with pytest.raises(
        DiskFull, match=r"this needs 101 bytes on the disk of .* 268 MB are free; orchd leaves 268 MB"
    ) as told:
        store.writer(101)
    assert told.value.hint.startswith("Free 1 bytes there")
    assert _files(store) == []


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_as_such_at_every_step(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(DiskFull), store.writer(len(DATA)) as writer:  # noqa: PT012
        if call == "write":
            monkeypatch.setattr(writer, "_hash_and_write", full)
        else:
            monkeypatch.setattr(os, call, full)
        writer.write(DATA)
        writer.commit()
    monkeypatch.undo()
    assert _files(store) == []
    assert _put(store, DATA, expected=DIGEST) == DIGEST  # works again once there is space


def test_bytes_are_on_the_disk_before_their_name_is(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put(store, DATA)
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    _put(store, DATA)
    write_durably(tmp_path / "file", b"x")
    assert calls == ["sync file", "rename", "sync folder"] * 2


def test_a_short_write_is_continued(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.writer(len(DATA), DIGEST) as writer:
        monkeypatch.setattr(writer, "_file", _Stuttering(writer._file))
        writer.write(DATA)
        assert writer.commit() == DIGEST
    assert store.path(DIGEST).read_bytes() == DATA


class _Stuttering:
    """A file that takes 1000 bytes at most at a time, as a nearly full disk or a signal may make it."""

    def __init__(self, file: object) -> None:
        self._inner = file

    def write(self, data: memoryview) -> int:
        return int(self._inner.write(data[:1000]))  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def test_many_threads_may_put_the_same_blob(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    start, found = threading.Barrier(8), []

    def put() -> None:
        start.wait()
        found.append(store.put_file(tmp_path / "file", DIGEST))

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [DIGEST] * 8
    assert _files(store) == [store.path(DIGEST)]


def test_a_small_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")
    for call in ("fsync", "replace"):

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr(os, call, full)
        with pytest.raises(DiskFull):
            write_durably(path, b"new")
        monkeypatch.undo()
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"
