from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from orchd.demo.tamper import BYTES_CHANGED, tamper
from orchd.errors import DemoFailed


def blob(home: Path, data: bytes) -> Path:
    name = hashlib.sha256(data).hexdigest()
    path = home / "data" / "blobs" / name[:2] / name
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    path.chmod(0o400)
    return path


def test_some_bytes_of_the_weights_change_and_nothing_else(tmp_path: Path) -> None:
    config, weights = blob(tmp_path, b"{}"), blob(tmp_path, bytes(range(256)) * 40)
    before = weights.read_bytes()
    assert tamper(tmp_path, len(before)) == BYTES_CHANGED
    after = weights.read_bytes()
    assert len(after) == len(before)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == BYTES_CHANGED
    assert after[:1000] == before[:1000]
    assert config.read_bytes() == b"{}"


def test_a_home_without_the_adapter_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DemoFailed):
        tamper(tmp_path, 100)
