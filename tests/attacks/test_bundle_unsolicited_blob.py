"""A bundle that brings, beside an honest adapter, bytes that nobody asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from orchd.errors import BundleRefused
from orchd.records import sign
from orchd.registry import bundle
from orchd.registry.exchange import take_in
from tests.helpers import ALICE, BOB, Lab, manifest


def test_it_is_refused_and_nothing_kept(lab: Lab, tmp_path: Path) -> None:
    folder = lab.folder()
    signed = sign(lab.claim(folder), ALICE)
    stray = tmp_path / "stray"
    stray.write_bytes(b"ballast" * 1000)
    files = {entry.sha256: folder / entry.path for entry in signed.record.files}
    bundle.write(tmp_path / "attack", [signed], files | {hashlib.sha256(stray.read_bytes()).digest(): stray})
    before = lab.traces()
    with pytest.raises(BundleRefused, match="nobody asked"):
        take_in(lab.registry, tmp_path / "attack")
    assert lab.traces() == before


def test_nor_are_manifests_that_have_to_do_with_nothing(lab: Lab, tmp_path: Path) -> None:
    folder = lab.folder()
    signed = sign(lab.claim(folder), ALICE)
    other = sign(manifest(author=BOB.public_key), BOB)
    files = {entry.sha256: folder / entry.path for entry in signed.record.files}
    bundle.write(tmp_path / "attack", [signed, other], files)
    before = lab.traces()
    with pytest.raises(BundleRefused, match="no ancestor"):
        take_in(lab.registry, tmp_path / "attack")
    assert lab.traces() == before
