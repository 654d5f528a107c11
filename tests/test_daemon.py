"""The words that `orchd` is started with. What it does then is in tests/e2e."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchd.daemon import main


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
