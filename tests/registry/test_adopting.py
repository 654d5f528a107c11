"""Files that are moved into the registry instead of copied, their chunks compared before: what a fetch brings."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from orchd.errors import DigestMismatch
from orchd.records import FileEntry, Verified, sign
from orchd.records.manifest import Manifest
from orchd.registry import Admission, figures
from orchd.registry.admission import WEIGHTS
from orchd.registry.blobs import BlobStore
from orchd.registry.standing import ADMITTED
from tests.helpers import ALICE, Lab

DATA = os.urandom(100_000)
DIGEST = hashlib.sha256(DATA).digest()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(DATA)
    return tmp_path / "file"


def test_a_file_is_moved_in(store: BlobStore, file: Path) -> None:
    number = file.stat().st_ino
    store.adopt(file, DIGEST, DIGEST)
    assert not file.exists()
    assert store.path(DIGEST).read_bytes() == DATA
    assert store.path(DIGEST).stat().st_ino == number
    assert store.path(DIGEST).stat().st_mode & 0o222 == 0


def test_another_file_stays_outside(store: BlobStore, file: Path) -> None:
    with pytest.raises(DigestMismatch, match=DIGEST.hex()):
        store.adopt(file, bytes(32), DIGEST)
    assert file.exists()
    assert not store.has(DIGEST)


def test_from_another_file_system_it_is_copied(store: BlobStore, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if source == file:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        replace(source, target)

    monkeypatch.setattr("orchd.registry.blobs.os.replace", refuse)
    store.adopt(file, DIGEST, DIGEST)
    assert store.path(DIGEST).read_bytes() == DATA


# ---- at the door -------------------------------------------------------------------------------------------------


def bring(lab: Lab, signed: Verified[Manifest], folder: Path) -> Admission:
    files = {entry.path: folder / entry.path for entry in signed.record.files}
    verified = {name: hashlib.sha256(path.read_bytes()).digest() for name, path in files.items()}
    return lab.registry.admit(signed.envelope, files, origin="fetched", verified=verified)


def other_chunks(lab: Lab, folder: Path) -> Verified[Manifest]:
    """A manifest that is right about the whole weights, and wrong about one chunk."""

    def change(entry: FileEntry) -> FileEntry:
        chunks = (bytes(32), *entry.chunks[1:])
        return msgspec.structs.replace(entry, chunks=chunks) if entry.path == WEIGHTS else entry

    claim = lab.claim(folder)
    return sign(msgspec.structs.replace(claim, files=tuple(map(change, claim.files))), ALICE)


def test_verified_files_are_moved_and_their_chunks_not_read_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = lab.folder(), list[FileEntry]()
    signed = sign(lab.claim(folder), ALICE)

    def seen(path: Path, entry: FileEntry) -> str:
        read.append(entry)
        return ""

    monkeypatch.setattr(figures, "_damage", seen)
    assert bring(lab, signed, folder).verdict == ADMITTED
    assert read == []
    assert list(folder.iterdir()) == []
    monkeypatch.undo()
    assert all(lab.registry.blobs.is_whole(entry.sha256) for entry in signed.record.files)


def test_a_whole_that_is_another_is_refused_and_leaves_nothing(lab: Lab) -> None:
    folder = lab.folder()
    signed = sign(lab.claim(folder), ALICE)
    with (folder / WEIGHTS).open("r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        weights.write(b"\x01")
    with pytest.raises(DigestMismatch, match=WEIGHTS):
        bring(lab, signed, folder)
    assert lab.traces() == []


def test_a_blob_that_is_here_already_is_compared_with_this_manifest(lab: Lab) -> None:
    """Its chunks were compared with another manifest, or came here otherwise."""
    folder, again = lab.folder(), lab.folder()
    lab.admit_signed(sign(lab.claim(folder), ALICE), folder)
    with pytest.raises(DigestMismatch, match="chunk 0"):
        bring(lab, other_chunks(lab, again), again)
