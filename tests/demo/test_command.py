"""What is said and returned before anything is started."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchd.demo import main


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """The command takes the signals; the test runner wants them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("argv", [["--rounds", "0"], ["--rounds", "9"], ["--rounds", "x"], ["--nonsense"]])
def test_usage(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2


def test_help_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "130 interrupted" in " ".join(capsys.readouterr().out.split())


def test_missing_examples_are_one_line_and_a_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--examples", str(tmp_path), "--json"]) == 5
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines()[0].startswith("error 8002 ExamplesMissing: ")
    assert len(told.err.splitlines()) == 2


def test_out_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "conversations.json").touch()
    (tmp_path / "half-b.jsonl").touch()
    (tmp_path / "exam-mixed.jsonl").touch()
    taken = tmp_path / "half-b.jsonl"
    assert main(["--examples", str(tmp_path), "--out", str(taken)]) == 1
    assert "8001 DemoFailed" in capsys.readouterr().out


def test_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from orchd.demo import cast

    monkeypatch.setattr(cast, "SPACE_NEEDED", 1 << 62)
    for name in ("conversations.json", "half-b.jsonl", "exam-mixed.jsonl"):
        (tmp_path / name).touch()
    assert main(["--examples", str(tmp_path)]) == 1
    assert "1004 DiskFull" in capsys.readouterr().out


def test_a_model_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--real", "--model", str(tmp_path / "no.gguf"), "--json"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error 8001 DemoFailed: ")
    assert "no.gguf" in told.err
