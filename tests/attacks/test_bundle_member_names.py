"""A bundle whose members would be written over the node's key, or anywhere else."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from orchd.errors import BundleRefused
from orchd.exporting import FILE_NAME
from orchd.registry.exchange import export, take_in
from tests.helpers import Lab

NAMES = [
    "../identity.pem",
    "/etc/passwd",
    "blobs/../../identity.pem",
    "manifests/" + "0" * 64 + "/../../../identity.pem",
    "blobs\\..\\identity.pem",
    "C:identity.pem",
    "blobs/" + "0" * 63 + "\uff10",
    "",
]


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".wal")


@pytest.mark.parametrize("name", NAMES)
def test_no_name_becomes_a_path(lab: Lab, tmp_path: Path, name: str) -> None:
    made = lab.admit(lab.folder())
    path = tmp_path / "honest.orchpack"
    export(lab.registry, made.id, path)
    before = _files(tmp_path)
    out = io.BytesIO()
    with zipfile.ZipFile(path) as honest, zipfile.ZipFile(out, "w") as forged:
        for member in honest.infolist():
            forged.writestr(member, honest.read(member))
        extra = zipfile.ZipInfo("x", (1980, 1, 1, 0, 0, 0))
        extra.filename = name
        forged.writestr(extra, b"mine")
    attack = tmp_path / "attack.orchpack"
    attack.write_bytes(out.getvalue())
    with pytest.raises(BundleRefused):
        take_in(lab.registry, attack)
    attack.unlink()
    assert _files(tmp_path) == before


def test_the_same_without_the_hostile_member_is_taken(lab: Lab, tmp_path: Path) -> None:
    """So it was the name that was refused above."""
    made = lab.admit(lab.folder())
    path = tmp_path / "honest.orchpack"
    export(lab.registry, made.id, path)
    assert [admission.id for admission in take_in(lab.registry, path).admissions] == [made.id]


def test_a_strangers_name_makes_no_path_on_the_way_out() -> None:
    for name in ("../x", "/x", ".bashrc", "a/b", "a\nb", "a b", "", "-rf", "x" * 101):
        assert not FILE_NAME.match(name)
