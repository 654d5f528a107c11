"""What a run of benchmarks leaves behind: its own rows, and all that were measured before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import report
from benchmarks.report import Row, lower_is_better, publish

ABOUT = {"processor": "one", "load_before": 0.5}


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "_commit", lambda: "abc")
    return tmp_path / "results" / "net.json"


def row(work: str, seconds: float) -> Row:
    return lower_is_better(work, "s", seconds, ("other", 1.0), ("≤ 2 s", 2.0), runs=3.0)


def in_file(path: Path) -> dict[str, dict[str, Any]]:
    return {one["work"]: one for one in json.loads(path.read_text())["rows"]}


def test_a_row_that_did_not_run_stays_with_its_date_and_commit(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("net", ABOUT, [row("idle", 1.0), row("reach", 1.5)])
    first = in_file(results)
    monkeypatch.setattr(report, "_commit", lambda: "def")
    publish("net", ABOUT | {"processor": "two"}, [row("reach", 3.0), row("new", 1.0)])
    second = in_file(results)
    assert list(second) == ["idle", "reach", "new"]
    assert second["idle"] == first["idle"]
    assert (first["idle"]["commit"], first["idle"]["machine"]["processor"]) == ("abc", "one")
    assert first["idle"]["date"] <= second["reach"]["date"]
    assert (second["reach"]["orchd"], second["reach"]["commit"], second["reach"]["met"]) == (3.0, "def", False)
    assert second["reach"]["machine"]["processor"] == "two"
    assert second["reach"]["runs"] == 3.0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"not run now: idle 1 s, met, of {first['idle']['date'][:10]}, commit abc"


def test_rows_of_an_older_file_stay(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.parent.mkdir()
    old = {"work": "idle", "unit": "MB", "orchd": 8.2, "met": True}
    results.write_text(json.dumps({"machine": ABOUT, "rows": [old]}))
    publish("net", ABOUT | {"processor": "two"}, [row("reach", 1.0)])
    assert in_file(results)["idle"] == old | {"machine": ABOUT}
    assert "not run now: idle 8.2 MB, met, of an unknown date" in capsys.readouterr().out


def test_a_file_that_can_not_be_read_is_not_written_over(results: Path) -> None:
    results.parent.mkdir()
    results.write_text('{"rows": [')
    with pytest.raises(SystemExit, match="move it away"):
        publish("net", ABOUT, [row("reach", 1.0)])
    assert results.read_text() == '{"rows": ['


def test_what_was_measured_before_a_module_failed_is_kept(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(name: str) -> Sequence[Row]:
        if name == "broken":
            raise OSError("no libtorrent")
        return [row(name, 1.0)]

    monkeypatch.setattr(
        report, "import_module", lambda name: SimpleNamespace(rows=lambda: rows(name.rpartition(".")[2]))
    )
    monkeypatch.setattr(report, "machine", lambda: ABOUT)
    monkeypatch.chdir(results.parent.parent)  # where the test began is come back to
    with pytest.raises(OSError, match="no libtorrent"):
        report.run_modules("net", ["good", "broken", "later"], [])
    assert list(in_file(results)) == ["good"]
    with pytest.raises(SystemExit, match="nosuch"):
        report.run_modules("net", ["good"], ["nosuch"])
