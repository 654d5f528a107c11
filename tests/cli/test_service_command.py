"""`orchctl service` around the service room, without a service manager."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from orchd.cli.main import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd's words")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    return tmp_path


def test_a_dry_run_shows_the_file_and_writes_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "install", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"would write {home}/.config/systemd/user/orchd.service" in shown
    assert "ExecStart=" in shown
    assert main(["service", "install", "--dry-run", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [bool(step["command"]) for step in steps] == [False, True, True]
    assert list(home.iterdir()) == []


def test_uninstalling_nothing_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "uninstall"]) == 0
    assert capsys.readouterr().out == "not installed\n"


def test_a_missing_manager_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "status"]) == 1
    told = capsys.readouterr().err
    assert "systemctl" in told
    assert "[E8011]" in told
