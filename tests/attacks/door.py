"""How an attack ends: refused with a number, and nothing of it is left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from orchd.errors import Refused
from orchd.records import Manifest, sign
from tests.helpers import ALICE, Lab


def assert_refused(lab: Lab, error: type[Refused], envelope: bytes, files: Mapping[str, Path] | Path) -> str:
    """Knock at the door with `envelope` and `files` (or a folder that has an honest adapter's); what is said there."""
    if isinstance(files, Path):
        files = {path.name: path for path in files.iterdir()}
    before = _files(lab.root), [row.id for row in lab.registry.adapters()]
    with pytest.raises(error) as caught:
        lab.registry.admit(envelope, files, origin="fetched")
    assert type(caught.value) is error
    assert (_files(lab.root), [row.id for row in lab.registry.adapters()]) == before
    return caught.value.message


def _files(root: Path) -> list[Path]:
    """Every file but the index's log. The blob store keeps its folders, named by two letters, when they are empty."""
    return sorted(path for path in root.rglob("*") if not path.is_dir() and path.suffix != ".wal")


def signed_by_alice(claim: Manifest) -> bytes:
    """Hostile or not: the author herself signs it."""
    return sign(claim, ALICE).envelope
