"""Are the figures of the one pass those of the dense product, for every dtype, shape and place in the file?"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from orchd.records import FileEntry
from orchd.registry import figures, grams, weights
from tests.helpers import Safetensors, Values

DTYPES = ("F32", "F16", "BF16")
PRECISION = 2e-5  # relative: products of up to 65,536 numbers are summed as float32
MODULE = "model.layers.0.q_proj"
A, B = (f"base_model.model.{MODULE}.lora_{half}.weight" for half in "AB")


def _factors(rank: int, rows: int, columns: int, size: float = 1.0) -> dict[str, Values]:
    """Numbers that every dtype holds exactly."""
    rng = np.random.default_rng(0)
    return {
        A: (rng.integers(-128, 128, (rank, columns)) / 64 * size).astype(np.float32),
        B: (rng.integers(-128, 128, (rows, rank)) / 64 * size).astype(np.float32),
    }


def _look(tmp_path: Path, data: bytes, entry: FileEntry | None = None) -> figures.Figures:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(data)
    return figures.look({path: entry or _entry(data)}, path)


def _entry(data: bytes, chunk_size: int = 4096) -> FileEntry:
    chunks = (data[start : start + chunk_size] for start in range(0, len(data), chunk_size))
    return FileEntry(
        path="adapter_model.safetensors",
        size=len(data),
        sha256=hashlib.sha256(data).digest(),
        chunk_size=chunk_size,
        chunks=tuple(hashlib.sha256(chunk).digest() for chunk in chunks),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rank", "rows", "columns"),
    [(1, 1, 1), (1, 5, 3), (2, 8, 8), (3, 70, 50), (16, 300, 5000), (16, 5000, 300), (40, 7, 9), (64, 2100, 1030)],
)
def test_the_norm_is_the_dense_products(tmp_path: Path, dtype: str, rank: int, rows: int, columns: int) -> None:
    tensors = _factors(rank, rows, columns)
    found = _look(tmp_path, Safetensors.of(tensors, dtype).file())
    assert (found.damage, found.unreadable, found.not_finite) == ("", "", "")
    np.testing.assert_allclose(_norm(tmp_path, tensors, dtype), _dense(tensors), rtol=PRECISION)
    assert _dense(tensors) <= found.lengths[A] * found.lengths[B]


def _norm(tmp_path: Path, tensors: dict[str, Values], dtype: str = "F32") -> float:
    path = tmp_path / "x.safetensors"
    path.write_bytes(Safetensors.of(tensors, dtype).file())
    header = weights.read_header(path)
    return grams.norms(path, {MODULE: (header[A], header[B])})[MODULE]


def _dense(tensors: dict[str, Values]) -> float:
    return float(np.linalg.norm(tensors[B].astype(np.float64) @ tensors[A].astype(np.float64)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 8191, 8192, 8193, 65535, 65536, 65537, 200_001])
@pytest.mark.parametrize("size", [1.0, 2.0**-14])
def test_a_length_is_never_too_small_and_hardly_too_large(tmp_path: Path, dtype: str, count: int, size: float) -> None:
    values = (np.random.default_rng(count).integers(-128, 128, count) / 64 * size).astype(np.float32)
    values[0] = size
    exact = np.linalg.norm(values.astype(np.float64))
    found = _look(tmp_path, Safetensors.of({"x": values}, dtype).file()).lengths["x"]
    assert exact <= found <= 1.01 * exact


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_length_whose_squares_float32_rounds_to_nothing_is_not_too_small(tmp_path: Path, dtype: str) -> None:
    values = np.full(1000, 2.0**-100, np.float32)
    found = _look(tmp_path, Safetensors.of({"x": values}, dtype).file()).lengths["x"]
    assert np.linalg.norm(values.astype(np.float64)) <= found < 1e-15


@pytest.mark.parametrize("dtype", DTYPES)
def test_singular_values_are_the_dense_products(tmp_path: Path, dtype: str) -> None:
    tensors = _factors(6, 90, 70)
    path = tmp_path / "x"
    path.write_bytes(Safetensors.of(tensors, dtype).file())
    header = weights.read_header(path)
    with weights.mapped(path) as view:
        found = grams.singular_values(*(grams.gram(view, header[name], weights.scratch()) for name in (A, B)))
    dense = tensors[B].astype(np.float64) @ tensors[A].astype(np.float64)
    np.testing.assert_allclose(found, np.linalg.svd(dense, compute_uv=False)[:6], rtol=1e-4)


def test_numbers_that_start_at_an_odd_byte_are_read_too(tmp_path: Path) -> None:
    """safetensors pads its header, but the format does not ask for it."""
    file = Safetensors.of(_factors(3, 20, 30), "BF16")
    plain, shifted = _look(tmp_path, file.file()), _look(tmp_path, file.with_header(_padded(file)))
    assert plain.tensors[A].start % 2 != shifted.tensors[A].start % 2
    assert plain.lengths == shifted.lengths


def _padded(file: Safetensors) -> bytes:
    import json

    header = json.dumps(file.entries).encode()
    return header + b" " * (1 + len(header) % 2)


def test_numbers_whose_squares_are_beyond_float32_are_finite(tmp_path: Path) -> None:
    tensors = _factors(2, 8, 8, size=2.0**100)
    found = _look(tmp_path, Safetensors.of(tensors).file())
    assert (found.not_finite, found.lengths) == ("", {A: np.inf, B: np.inf})
    np.testing.assert_allclose(_norm(tmp_path, tensors), _dense(tensors), rtol=1e-6)


@pytest.mark.parametrize(("small", "large"), [(-90, 60), (-120, 120), (60, -90), (100, 20)])
def test_numbers_whose_squares_float32_has_not_are_multiplied_all_the_same(
    tmp_path: Path, small: int, large: int
) -> None:
    """One direction of two; the other one is as in an honest adapter, so that it hides the first in every sum."""
    tensors = _factors(2, 8, 8)
    tensors[A][1] *= np.float32(2.0**small)
    tensors[B][:, 1] *= np.float32(2.0**large)
    np.testing.assert_allclose(_norm(tmp_path, tensors), _dense(tensors), rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [A, B])
@pytest.mark.parametrize("place", [0, 17, -1])
def test_a_number_that_is_none_is_named(tmp_path: Path, dtype: str, bad: float, name: str, place: int) -> None:
    tensors = _factors(4, 300, 300)
    tensors[name].flat[place] = bad
    assert _look(tmp_path, Safetensors.of(tensors, dtype).file()).not_finite == name


@pytest.mark.parametrize("shapes", [((2, 0), (0, 2)), ((2, 3), (3, 4)), ((6,), (3, 2)), ((2, 3, 1), (3, 2))])
def test_what_makes_no_product_is_searched_too(tmp_path: Path, shapes: tuple[tuple[int, ...], ...]) -> None:
    tensors = {name: np.ones(shape, np.float32) for name, shape in zip((A, B), shapes, strict=True)}
    found = _look(tmp_path, Safetensors.of(tensors).file())
    assert (found.damage, found.not_finite) == ("", "")
    assert found.tensors.keys() == found.lengths.keys() == {A, B}
    assert not grams.makes_product(found.tensors[A], found.tensors[B])
    if tensors[B].size:
        tensors[B].flat[-1] = np.nan
        assert _look(tmp_path, Safetensors.of(tensors).file()).not_finite == B


@pytest.mark.parametrize("place", [0, 4095, 4096, -1])
def test_one_changed_bit_is_damage(tmp_path: Path, place: int) -> None:
    data = bytearray(Safetensors.of(_factors(4, 900, 900)).file())
    entry = _entry(bytes(data))
    data[place] ^= 1
    number = (place % len(data)) // 4096
    assert f"chunk {number} " in _look(tmp_path, bytes(data), entry).damage


@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda data: data[:-1], "chunk"), (lambda data: data + b"x", "long"), (lambda data: b"", "chunk 0")],
)
def test_other_lengths_are_damage(tmp_path: Path, change: object, said: str) -> None:
    data = Safetensors.of(_factors(4, 90, 90)).file()
    assert callable(change)
    assert said in _look(tmp_path, change(data), _entry(data)).damage


def test_a_missing_last_byte_of_zero_is_damage(tmp_path: Path) -> None:
    """What is read beyond the end is zeros; the length tells."""
    data = bytes(5000)
    found = _look(tmp_path, data[:4096], _entry(data))
    assert found.damage
