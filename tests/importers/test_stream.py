from __future__ import annotations

import io
import json
from typing import Any

import pytest

from orchd.importers import stream
from orchd.importers.stream import BadRecord, Truncated, records


def read(data: bytes, **kwargs: Any) -> list[Any]:
    return [type(one) if isinstance(one, BadRecord) else one for _, one in records(io.BytesIO(data), **kwargs)]


GOOD = [{"a": 1}, {"b": [1, {"c": "]}"}]}, {"d": 'say \\"{["'}]


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(GOOD).encode(),
        json.dumps(GOOD, indent=3).encode(),
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
        "\n\n".join(json.dumps(one) for one in GOOD).encode(),
        "\r\n".join(json.dumps(one) for one in GOOD).encode() + b"\r\n",
        "\n".join(json.dumps(one, indent=1) for one in GOOD).encode(),
    ],
    ids=["array", "pretty array", "BOM", "lines", "CRLF lines", "pretty values in a row"],
)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_every_way_of_writing_records(data: bytes, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", chunk)
    assert read(data) == GOOD


@pytest.mark.parametrize(
    ("data", "want"),
    [
        (b"[]", []),
        (b"", []),
        (b"<html><body>{}</body>", [{}]),
        (b'[{"a": 1}, {"a": oops}, {"a": 2}]', [{"a": 1}, BadRecord, {"a": 2}]),
        (b'[{"a": 1}, {"a": "cut of', [{"a": 1}, Truncated]),
        (b'[{"a": 1}, {"a": [2', [{"a": 1}, Truncated]),
        (b'{"a": 1}\n{"a": \n[1]\n{"a": 2}\n', [{"a": 1}, BadRecord, BadRecord, {"a": 2}]),
        (b'[{"a": NaN}]', [{"a": pytest.approx(float("nan"), nan_ok=True)}]),
        (b'[{"a": "tab\there"}]', [{"a": "tab\there"}]),
        (b'[{"a": "\xff"}]', [{"a": "\ufffd"}]),
        (b'[{"a": "\\ud83d"}]', [{"a": "\ud83d"}]),
    ],
    ids=[
        "empty array", "empty file", "HTML", "a bad one between good ones", "cut in a string", "cut in a list",
        "bad lines", "NaN", "raw control character", "bad UTF-8", "lone surrogate",
    ],
)  # fmt: skip
def test_damaged_input_costs_only_what_is_damaged(data: bytes, want: list[Any]) -> None:
    assert read(data) == want


def test_deep_nesting_is_one_bad_record() -> None:
    deep = b'[{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b'}, {"a": 1}]'
    assert read(deep) == [BadRecord, {"a": 1}]


def test_a_record_over_the_limit_ends_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(stream, "CHUNK_BYTES", 100)
    assert read(b'[{"a": 1}, {"a": "' + b"x" * 5000 + b'"}]') == [{"a": 1}, BadRecord]
    assert read(b'{"a": 1}\n{"a": "' + b"x" * 5000 + b'"}') == [{"a": 1}, BadRecord]


@pytest.mark.parametrize("chunk", [1, 5, 40, 1 << 18])
@pytest.mark.parametrize("lines", [True, False])
def test_each_record_is_told_with_its_line(chunk: int, lines: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", chunk)
    data = (
        b'{"a": 1}\n\n{"a": \n{"a": 3}\n' if lines else b'[\n {"a":\n 1}\n,\n\n {"a": oops},\n {"a": "\\n", "b":\n3}\n]'
    )
    found = [(line, isinstance(one, BadRecord)) for line, one in records(io.BytesIO(data), lines=lines)]
    assert found == ([(1, False), (3, True), (4, False)] if lines else [(2, False), (6, True), (7, False)])
