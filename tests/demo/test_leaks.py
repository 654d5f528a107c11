"""The search that says "0 sentences found" finds one that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchd.demo.leaks import Capture, departure, is_local

SENTENCES = ["sun cat key", "zavo zulat mufor"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "000001-orchd_bytes_1.bin").write_bytes(b"\x00\x12" * 4000)
    (tmp_path / "000002-ipfs_kad_1.0.0.bin").write_bytes(b"demo")
    record = b"\x83application/vnd.orchd.manifest.v1+msgpack...application/vnd.orchd.announcement.v1+msgpack"
    (tmp_path / "000003-orchd_news_1.bin").write_bytes(record)
    (tmp_path / "connects.txt").write_text("connect ('127.0.0.1', 4001)\nconnect '/tmp/x.sock'\n")
    return tmp_path


def test_clean_capture(folder: Path) -> None:
    left = departure(Capture.read(folder), SENTENCES)
    assert left.sentences_found == 0
    assert left.sentences_searched == 2
    assert left.bytes == sum(path.stat().st_size for path in folder.glob("*.bin"))
    assert left.streams == 3
    assert left.records == 2
    assert left.by_protocol[0] == ("orchd_bytes_1", 8000)
    assert left.beyond_loopback == ()


@pytest.mark.parametrize("planted", [b"sun cat key", b"...Sun Cat KEY...", b"xx zavo zulat mufor"])
def test_planted_sentence_is_found(folder: Path, planted: bytes) -> None:
    with (folder / "000001-orchd_bytes_1.bin").open("ab") as file:
        file.write(planted)
    assert departure(Capture.read(folder), SENTENCES).sentences_found == 1


def test_no_capture_is_an_error_and_no_proof(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Capture.read(tmp_path / "capture")


@pytest.mark.parametrize(
    ("line", "local"),
    [
        ("connect ('127.0.0.1', 4001)", True),
        ("connect ('::1', 4001, 0, 0)", True),
        ("connect '/tmp/orchd/rpc.sock'", True),
        ("connect b'\\x00abstract'", True),
        ("send None", True),
        ("resolve 'localhost'", True),
        ("resolve None", True),
        ("resolve 'huggingface.co'", False),
        ("connect ('93.184.216.34', 443)", False),
        ("connect ('2606:4700::1', 443, 0, 0)", False),
        ("send ('224.0.0.251', 5353)", False),
    ],
)
def test_what_counts_as_local(line: str, local: bool) -> None:
    assert is_local(line) is local
