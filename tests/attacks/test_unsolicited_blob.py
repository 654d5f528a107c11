"""A sender adds bytes that nobody asked for, to have them lie on this disk or be passed on from here."""

from __future__ import annotations

import hashlib

import msgspec

from orchd.errors import FileListRefused
from orchd.records import FileEntry
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import Lab

PAYLOAD = b"#!/bin/sh\n" * 100


def test_a_file_that_was_not_promised_is_not_stored(lab: Lab) -> None:
    folder = lab.folder()
    envelope = signed_by_alice(lab.claim(folder))
    (folder / "payload.sh").write_bytes(PAYLOAD)
    assert "payload.sh" in assert_refused(lab, FileListRefused, envelope, folder)
    assert not lab.registry.blobs.has(hashlib.sha256(PAYLOAD).digest())


def test_a_file_that_was_promised_under_another_name_is_not_either(lab: Lab) -> None:
    folder = lab.folder()
    (folder / "payload.sh").write_bytes(PAYLOAD)
    digest = hashlib.sha256(PAYLOAD).digest()
    entry = FileEntry(path="payload.sh", size=len(PAYLOAD), sha256=digest, chunk_size=4096, chunks=(digest,))
    claim = lab.claim(folder)
    envelope = signed_by_alice(msgspec.structs.replace(claim, files=(*claim.files, entry)))
    assert_refused(lab, FileListRefused, envelope, folder)
    assert not lab.registry.blobs.has(digest)
