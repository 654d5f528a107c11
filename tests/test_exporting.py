"""Where an export goes, and what it is made of."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchd.choosing import choose
from orchd.errors import BaseUnknown, OutputExists, ParamsInvalid
from orchd.exporting import move
from orchd.registry.index import Index
from orchd.registry.journal import Journal
from orchd.registry.known_bases import KnownBases
from orchd.registry.local import Local
from orchd.serve.gguf import write_gguf
from orchd.serve.specs import KEEP
from tests.serve import tiny


@pytest.mark.parametrize("folder", [False, True])
def test_what_was_made_is_moved_whole(tmp_path: Path, folder: bool) -> None:
    def made(text: str) -> Path:
        path = tmp_path / "work" / "made"
        path.parent.mkdir(exist_ok=True)
        if folder:
            path.mkdir()
        (path / "file" if folder else path).write_text(text)
        return path

    target = tmp_path / "out"
    move(made("one"), target, False)
    with pytest.raises(OutputExists):
        move(made("two"), target, False)
    assert (target / "file" if folder else target).read_text() == "one"
    move(tmp_path / "work" / "made", target, True)
    assert (target / "file" if folder else target).read_text() == "two"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out", "work"]


def test_over_another_file_system_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "made"
    source.write_text("one")
    plain = os.rename

    def rename(one: Path, other: Path) -> None:
        if one == source:
            raise OSError(errno.EXDEV, "other device")
        plain(one, other)

    monkeypatch.setattr(os, "rename", rename)
    move(source, tmp_path / "out", False)
    assert (tmp_path / "out").read_text() == "one"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["made", "out"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made").write_text("two")
    (tmp_path / "out").write_text("one")

    def broken(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(Exception, match="no room"):
        move(tmp_path / "made", tmp_path / "out", True)
    assert (tmp_path / "out").read_text() == "one"


@pytest.fixture
def known(tmp_path: Path) -> Iterator[KnownBases]:
    home = tmp_path / "home"
    home.mkdir()
    index = Index(home / "registry.db")
    local = Local(Journal(home / "journal.log", 1), index, lambda: 1)
    folder = tiny.make_base(tmp_path / "folder")
    write_gguf(folder, None, tmp_path / "file.gguf", name="x", quantize="Q8_0")
    found = KnownBases(local, lambda: 1)
    found.add("folder", folder)
    found.add("file", tmp_path / "file.gguf")
    yield found
    local.close()
    index.close()


def test_a_folder_is_written_in_f16_and_its_own_file_kept_when_asked(known: KnownBases, tmp_path: Path) -> None:
    assert choose(known, "folder", "")[1:] == ("", "F16")
    assert choose(known, "folder", "q8_0").quantize == "Q8_0"
    with pytest.raises(BaseUnknown, match="GGUF"):
        choose(known, "folder", "keep")
    with pytest.raises(ParamsInvalid, match="KEEP"):
        choose(known, "folder", "INT8")
    known.link("file", "folder")
    assert choose(known, "folder", "").quantize == "F16"
    assert choose(known, "folder", "keep")[1:] == (str(tmp_path / "file.gguf"), KEEP)


def test_a_base_that_came_as_a_file_keeps_it(known: KnownBases, tmp_path: Path) -> None:
    with pytest.raises(BaseUnknown, match="folder"):
        choose(known, "file", "")
    source = known.get("file").fingerprint
    (tmp_path / "folder" / "RECORD.json").write_text(json.dumps({"source": source}))
    known.link("file", "folder")
    for name in ("folder", "file"):
        chosen = choose(known, name, "")
        assert (chosen.base.name, chosen.gguf, chosen.quantize) == ("folder", str(tmp_path / "file.gguf"), KEEP)
    assert choose(known, "file", "F16")[1:] == ("", "F16")
