"""The words that `orchd` is started with. What it does then is in tests/e2e."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from orchd.daemon import hold_home, main
from orchd.errors import HomeBusy
from orchd.paths import Paths


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--set"], "argument --set: expected one argument"),
        (["--set", "foo"], "--set 'foo' is not KEY=VALUE"),
    ],
)
def test_wrong_words_are_a_numbered_error(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORCHD_HOME", str(tmp_path / "home"))
    assert main(words) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"orchd: {said} [E1109]"
    assert second.strip()
    assert not (tmp_path / "home").exists()


def test_a_home_is_held_on_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    paths = Paths.from_env({"ORCHD_HOME": str(tmp_path)})
    monkeypatch.setattr(os, "write", full)
    with hold_home(paths), pytest.raises(HomeBusy, match="process unknown"), hold_home(paths):
        pass
