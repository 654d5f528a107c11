"""Is a weights file read exactly as safetensors says, and is every other file refused?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from orchd.errors import TensorsRefused
from orchd.registry import weights
from tests.helpers import Safetensors, lora_tensors

HONEST = Safetensors.of({"a": np.zeros((2, 3), np.float32), "b": np.ones((4,), np.float32)})


def _write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    return path


def _refusal(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(TensorsRefused) as caught:
        weights.read_header(_write(tmp_path, data))
    return caught.value.message


def _with(**entries: Any) -> bytes:
    """The honest file with these header entries instead."""
    return HONEST.with_header(json.dumps(HONEST.entries | entries).encode())


# ---- honest files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_numbers_are_those_that_were_written(tmp_path: Path, dtype: str) -> None:
    tensors = lora_tensors()
    path = _write(tmp_path, Safetensors.of(tensors, dtype).file())
    header = weights.read_header(path)
    assert header.keys() == tensors.keys()
    with weights.mapped(path) as view:
        for name, wanted in tensors.items():
            found = weights.values(view, header[name])
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=1e-3)
            assert not weights.find_not_finite(view, header[name])


def test_the_official_writer_and_this_reader_agree(tmp_path: Path) -> None:
    tensors = lora_tensors(1)
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    header = weights.read_header(path)
    with weights.mapped(path) as view:
        for name, wanted in load_file(path).items():
            np.testing.assert_array_equal(weights.values(view, header[name]), wanted)
    assert sum(tensor.parameters for tensor in header.values()) == sum(t.size for t in tensors.values())


def test_spaces_after_the_header_are_padding(tmp_path: Path) -> None:
    data = HONEST.with_header(json.dumps(HONEST.entries).encode() + b"   ")
    assert weights.read_header(_write(tmp_path, data)).keys() == {"a", "b"}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_one_number_that_is_none_is_found(tmp_path: Path, dtype: str, bad: float, place: int) -> None:
    values = np.ones(2 * weights.BLOCK // 1024 + 3, np.float32)
    values[place] = bad
    path = _write(tmp_path, Safetensors.of({"a": values}, dtype).file())
    with weights.mapped(path) as view:
        assert weights.find_not_finite(view, weights.read_header(path)["a"])


def test_the_search_goes_over_every_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BLOCK", 4)
    for place in range(11):
        values = np.full(11, np.finfo(np.float32).max, np.float32)  # large, but a number
        path = _write(tmp_path, Safetensors.of({"a": values}).file())
        with weights.mapped(path) as view:
            assert not weights.find_not_finite(view, weights.read_header(path)["a"])
        values[place] = np.nan
        path = _write(tmp_path, Safetensors.of({"a": values}).file())
        with weights.mapped(path) as view:
            assert weights.find_not_finite(view, weights.read_header(path)["a"])


def test_an_empty_tensor_is_no_accident(tmp_path: Path) -> None:
    data = Safetensors.of({"a": np.zeros((0, 3), np.float32), "b": np.ones(2, np.float32)}).file()
    path = _write(tmp_path, data)
    with weights.mapped(path) as view:
        assert not weights.find_not_finite(view, weights.read_header(path)["a"])


def test_eight_dimensions_are_taken(tmp_path: Path) -> None:
    assert _taken(_write(tmp_path, Safetensors.of({"a": np.zeros((1,) * 8, np.float32)}).file()))


# ---- attacks on the header -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_a_file_shorter_than_a_header_is_refused(tmp_path: Path, size: int) -> None:
    _refusal(tmp_path, bytes(size))


@pytest.mark.parametrize("length", [1 << 30, 2**63, 2**64 - 1, (1 << 20) + 1, 0, 1])
def test_a_header_of_a_gigabyte_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("the header was read"))
    assert str(length) in _refusal(tmp_path, length.to_bytes(8, "little") + bytes(1000))


def test_a_header_longer_than_the_limit_is_refused_even_if_it_is_there(tmp_path: Path) -> None:
    header = json.dumps(HONEST.entries).encode().ljust(weights.HEADER_LIMIT + 1)
    assert str(len(header)) in _refusal(tmp_path, HONEST.with_header(header))
    assert weights.read_header(_write(tmp_path, HONEST.with_header(header[:-1])))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_with(b={"dtype": "F32", "shape": [4], "data_offsets": [20, 36]}), "overlaps"),
        (_with(b={"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}), "overlaps"),
        (_with(b={"dtype": "F32", "shape": [3], "data_offsets": [28, 40]}), "hole"),
        (_with(a={"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]}), "hole"),
        (HONEST.file() + b"\0", "follow the last"),
        (HONEST.file() + b"PK\x03\x04" + bytes(5000), "follow the last"),
        (HONEST.file()[:-1], "follow the last"),
        (_with(b={"dtype": "F32", "shape": [4], "data_offsets": [24, 41]}), "do not fit"),
        (_with(b={"dtype": "F32", "shape": [5], "data_offsets": [24, 40]}), "do not fit"),
        (_with(b={"dtype": "F32", "shape": [2**20, 2**20, 2**20], "data_offsets": [24, 40]}), "do not fit"),
        (_with(b={"dtype": "F32", "shape": [4], "data_offsets": [40, 24]}), "do not fit"),
        (_with(b={"dtype": "F32", "shape": [-4], "data_offsets": [24, 40]}), "shape"),
        (_with(b={"dtype": "F32", "shape": [-2, -2], "data_offsets": [24, 40]}), "shape"),
        (_with(b={"dtype": "F32", "shape": [4.0], "data_offsets": [24, 40]}), "shape"),
        (_with(b={"dtype": "F32", "shape": [True, 4], "data_offsets": [24, 40]}), "shape"),
        (_with(b={"dtype": "F32", "shape": [4] + [1] * 8, "data_offsets": [24, 40]}), "shape"),
        (_with(b={"dtype": "F32", "shape": [2**40], "data_offsets": [24, 40]}), "shape"),
        (_with(b={"dtype": "F32", "shape": [4], "data_offsets": [-1, 15]}), "offsets"),
        (_with(b={"dtype": "F32", "shape": [4], "data_offsets": [24.0, 40.0]}), "offsets"),
        (_with(b={"dtype": "F32", "shape": [4], "data_offsets": [24]}), "offsets"),
        (_with(b={"dtype": "F32", "shape": [0], "data_offsets": [False, False]}), "offsets"),
        (_with(b={"dtype": "F32", "shape": [4], "data_offsets": [-(10**4200), 10**4200]}), "offsets"),
        (_with(b={"dtype": "F32", "shape": [4], "data_offsets": [24, 40], "code": "x"}), "is not dtype"),
        (_with(b={"dtype": "F32", "shape": [4]}), "is not dtype"),
        (_with(b=None), "is not dtype"),
        (_with(b=[]), "is not dtype"),
        (_with(b={"dtype": 5, "shape": [4], "data_offsets": [24, 40]}), "is not dtype"),
        (_with(b={"dtype": "F64", "shape": [2], "data_offsets": [24, 40]}), "F64"),
        (_with(b={"dtype": "I8", "shape": [16], "data_offsets": [24, 40]}), "I8"),
        (_with(b={"dtype": "F8_E4M3", "shape": [16], "data_offsets": [24, 40]}), "F8_E4M3"),
        (_with(b={"dtype": "f32", "shape": [4], "data_offsets": [24, 40]}), "f32"),
        (_with(__metadata__=5), "__metadata__"),
        (_with(__metadata__={"a": 5}), "__metadata__"),
        (_with(__metadata__=[]), "__metadata__"),
        (HONEST.with_header(b"{}"), "no tensor"),
        (HONEST.with_header(b'{"__metadata__": {"format": "pt"}}'), "no tensor"),
        (HONEST.with_header(b"[]"), "no JSON object"),
        (HONEST.with_header(b"null"), "no JSON object"),
        (HONEST.with_header(b" " + json.dumps(HONEST.entries).encode()), "no JSON object"),
        (HONEST.with_header(b"{ "), "no JSON"),
        (HONEST.with_header(b"\xff\xfe{}"), "no JSON object"),
        (HONEST.with_header(json.dumps(HONEST.entries).encode("utf-16")), "no JSON"),
        (HONEST.with_header(b"[" * 100_000), "no JSON"),
        (HONEST.with_header(b'{"a":' * 100_000), "no JSON"),
        (HONEST.with_header(b'{"a": ' + b"9" * 5000 + b"}"), "no JSON"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_file_that_is_no_plain_safetensors_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    assert words in _refusal(tmp_path, data)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    """Readers differ in which of the two they take."""
    a, b = (json.dumps(HONEST.entries[name]) for name in "ab")
    twice = f'{{"a": {a}, "b": {b}, "b": {b}}}'
    assert "twice" in _refusal(tmp_path, HONEST.with_header(twice.encode()))
    inner = b.replace('"dtype"', '"dtype": "F16", "dtype"')
    assert "twice" in _refusal(tmp_path, HONEST.with_header(f'{{"a": {a}, "b": {inner}}}'.encode()))


def test_a_pickle_with_another_name_is_never_opened(tmp_path: Path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return pytest.fail, ("the pickle was opened",)

    _refusal(tmp_path, pickle.dumps(Bomb()))


# ---- random and mutated bytes --------------------------------------------------------------------------------

fuzz = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def _taken(path: Path) -> bool:
    try:
        header = weights.read_header(path)
    except TensorsRefused:
        return False
    with weights.mapped(path) as view:
        for tensor in header.values():
            assert 8 <= tensor.start <= tensor.end <= len(view)
            weights.find_not_finite(view, tensor)
            weights.values(view, tensor)
    return True


@fuzz
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(data)
    assert not _taken(path)
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    assert not _taken(path)


def _official(path: Path) -> bool:
    try:
        with safe_open(path, "np") as file:
            return bool(list(file.keys()))
    except (SafetensorError, OSError):
        return False


@fuzz
@example(0, b"")
@given(st.integers(0, len(HONEST.file())), st.binary(max_size=6))
def test_what_is_taken_of_mutated_files_the_official_reader_takes_too(
    tmp_path_factory: pytest.TempPathFactory, position: int, piece: bytes
) -> None:
    data = HONEST.file()
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(data[:position] + piece + data[position + len(piece) :])
    assert not _taken(path) or _official(path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 50) | st.floats() | st.sampled_from(["F32", "BF16", "", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@fuzz
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c", "__metadata__"]),
        _JSON
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F16", "F64"]) | _JSON,
                "shape": st.lists(st.integers(0, 5), max_size=3) | _JSON,
                "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | _JSON,
            }
        ),
        max_size=3,
    ),
    st.binary(max_size=40),
)
def test_what_is_taken_of_made_up_headers_the_official_reader_takes_too(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, Any], data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(Safetensors(entries, data).file())
    assert not _taken(path) or _official(path)
