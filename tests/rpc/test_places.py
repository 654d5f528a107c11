"""Is every odd path refused with a number, and none waited for?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchd.errors import ParamsInvalid
from orchd.rpc import places


@pytest.mark.parametrize("text", ["", "a", "./a", "~/a", "/a\0b", "/" + "a" * 256, "/a" * 2_100, "x" * 1_000_000])
def test_what_can_be_no_path_is_refused_in_few_words(text: str) -> None:
    with pytest.raises(ParamsInvalid) as told:
        places.absolute(text, "path")
    assert told.value.field == "path"
    assert len(told.value.message) < 400


def test_folders_files_and_what_is_neither(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "round").symlink_to("round")
    assert places.folder(places.absolute(str(tmp_path), "path"), "path")
    assert not places.folder(tmp_path / "file", "path")
    for name in ("pipe", "nothing", "file/x", "nowhere", "round"):
        with pytest.raises(ParamsInvalid, match=name):
            places.folder(tmp_path / name, "path")
    for path in (Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(ParamsInvalid, match="neither"):
            places.folder(path, "path")
    assert [places.is_folder(tmp_path / name, "path") for name in ("file", "nothing", "file/x")] == [False] * 3


@pytest.mark.skipif(os.getuid() == 0, reason="root may look everywhere")
def test_a_folder_without_rights_is_told(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o000)
    with pytest.raises(ParamsInvalid, match="Permission denied"):
        places.folder(tmp_path / "closed" / "a", "path")
