"""Reading a safetensors file that a stranger made, without trusting it.

The format is a little-endian u64 with the header's length, a JSON header, and the tensors' bytes
(https://github.com/huggingface/safetensors). Taken here: F32, F16 and BF16, tensors that cover the data without holes
or overlaps, unique names, at most a megabyte of header. No pickle is ever opened.
"""

from __future__ import annotations

import functools
import json
import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from orchd.errors import TensorsRefused

HEADER_LIMIT = 1 << 20  # bytes
ENTRY = {"dtype", "shape", "data_offsets"}  # what the header says of a tensor
ITEM_SIZE = {"F32": 4, "F16": 2, "BF16": 2}
#: How the numbers are read: as they are, or the bits of those that need widening.
RAW = {"F32": "<f4", "F16": "<u2", "BF16": "<u2"}
Single = npt.NDArray[np.float32]
BLOCK = 1 << 20  # numbers looked at together when searching for NaN
#: Bytes whose squares are summed together (they stay in a core's cache), and numbers in one product: longer ones BLAS
#: splits among threads, and waits for them on a busy machine.
SQUARED_TOGETHER, ROW = 1 << 17, 1 << 13
#: What is added to a sum of squares in float32, as a share and for each number, so that it is never too small.
ROUNDING, SMALLEST = 1e-3, float(np.finfo(np.float32).tiny)
Scratch = npt.NDArray[np.uint32]
#: Exponent bits, all set in NaN and infinity, by dtype.
_EXPONENT = {"F32": ("<u4", 0x7F80_0000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


class Tensor(NamedTuple):
    """One tensor of a file: `start` and `end` are offsets in bytes from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path, header_limit: int = HEADER_LIMIT) -> dict[str, Tensor]:
    """Name → tensor, in file order. Raises `TensorsRefused` saying what is wrong."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(header_limit, size - 8):
            raise TensorsRefused(f"the header says it is {length} bytes long, in a file of {size}")
        text = file.read(length)
    if not text.startswith(b"{"):
        raise TensorsRefused("the header is no JSON object")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise TensorsRefused(f"the header is no JSON: {str(error)[:200]}") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise TensorsRefused("__metadata__ is no map of texts")
    tensors = sorted((_tensor(name, entry, 8 + length) for name, entry in header.items()), key=lambda t: t.start)
    _check_cover(tensors, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _tensor(name: str, entry: Any, offset: int) -> Tensor:
    """Plain steps: a header may hold thousands of these, and this is most of what reading it takes."""
    if type(entry) is not dict or entry.keys() != ENTRY:
        raise _odd(name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
        raise _odd(name)
    if dtype not in ITEM_SIZE:
        raise TensorsRefused(f"tensor {name[:80]!r} is {dtype[:20]}; F32, F16 and BF16 are taken")
    if len(shape) > 8 or not _whole(shape, 2**40):
        raise TensorsRefused(f"tensor {name[:80]!r} has the shape {str(shape)[:80]}")
    if not _whole(offsets, 2**53):
        raise TensorsRefused(f"tensor {name[:80]!r} has offsets that are none")
    start, end = offsets
    if end - start != math.prod(shape) * ITEM_SIZE[dtype]:
        raise TensorsRefused(f"tensor {name[:80]!r}: {end - start} bytes do not fit {dtype} {shape}")
    return Tensor(name, dtype, tuple(shape), offset + start, offset + end)


def _odd(name: str) -> TensorsRefused:
    return TensorsRefused(f"the entry of tensor {name[:80]!r} is not dtype, shape and offsets")


def _whole(numbers: list[Any], limit: int) -> bool:
    """Whether all are whole numbers (JSON's true is none) from 0 to below `limit`."""
    for number in numbers:  # noqa: SIM110
        if type(number) is not int or not 0 <= number < limit:
            return False
    return True


def _check_cover(tensors: list[Tensor], begin: int, end: int) -> None:
    if not tensors:
        raise TensorsRefused("the file holds no tensor")
    position = begin
    for tensor in tensors:
        if tensor.start != position:
            kind = "overlaps the one before" if tensor.start < position else "leaves a hole before it"
            raise TensorsRefused(f"tensor {tensor.name[:80]!r} {kind}")
        position = tensor.end
    if position != end:
        raise TensorsRefused(f"{end - position} bytes follow the last tensor")


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """The file's bytes, mapped read-only."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        try:
            yield view
        finally:
            view.release()


def values(view: memoryview, tensor: Tensor) -> Single:
    """A tensor's numbers as float32 (a copy), in its shape."""
    raw = np.frombuffer(view[tensor.start : tensor.end], RAW[tensor.dtype]).reshape(tensor.shape)
    return widen(raw, tensor.dtype, np.empty(tensor.shape, np.uint32)).astype(np.float32)


def widen(raw: npt.NDArray[Any], dtype: str, scratch: Scratch) -> Single:
    """`raw` (numbers as `RAW[dtype]`) as float32; `scratch` has its shape, and may become the answer."""
    if dtype == "F32":
        return raw.view(np.float32)
    if dtype == "BF16":
        np.copyto(scratch, raw)
        np.left_shift(scratch, 16, out=scratch)
        return scratch.view(np.float32)
    return np.take(_half_values(), raw, out=scratch.view(np.float32), mode="clip")


@functools.cache
def _half_values() -> Single:
    """Every F16 number by its bits: a table is twice as quick as numpy's conversion."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def scratch() -> Scratch:
    """Room for one block. Shared by calls one after another, it saves asking the system for fresh pages each time."""
    return np.empty(SQUARED_TOGETHER // 2, np.uint32)


def squares_at_most(view: memoryview, tensor: Tensor, room: Scratch) -> float:
    """The sum of the squares of a tensor's numbers, up to 2 % more and never less; quicker than the exact one.

    Infinity or NaN when one of the numbers is, or when float32 is too small for a square.
    """
    total = sum(map(_square_sum, _magnitudes(view, tensor, room)))
    return total * (1 + ROUNDING) + tensor.parameters * SMALLEST


def _square_sum(numbers: Single) -> float:
    if over := numbers.size % ROW:
        rest = numbers[-over:]
        return float(np.dot(rest, rest)) + _square_sum(numbers[:-over])
    rows = numbers.reshape(-1, ROW)
    return float(np.vecdot(rows, rows).sum())


def _magnitudes(view: memoryview, tensor: Tensor, room: Scratch) -> Iterator[Single]:
    """Blocks of float32, not in order and without the right signs, none smaller than the number that it stands for.

    A BF16 number is the upper half of a float32. So the second one of each two lies there already, with the first one
    as further digits (at most 2⁻⁷ of it); only the first one has to be moved.
    """
    raw = np.frombuffer(view[tensor.start : tensor.end], RAW[tensor.dtype])
    step = SQUARED_TOGETHER // raw.itemsize
    for start in range(0, raw.size, step):
        block = raw[start : start + step]
        if tensor.dtype == "BF16" and block.size % 2 == 0:
            both = block.view("<u4")
            yield np.left_shift(both, 16, out=room[: both.size]).view(np.float32)
            yield both.view(np.float32)
        else:
            yield widen(block, tensor.dtype, room[: block.size])


def find_not_finite(view: memoryview, tensor: Tensor) -> bool:
    """Whether a NaN or infinity is in the tensor, seen in the exponent bits alone."""
    kind, exponent = _EXPONENT[tensor.dtype]
    numbers = np.frombuffer(view[tensor.start : tensor.end], kind)
    return any(
        bool(((numbers[start : start + BLOCK] & exponent) == exponent).any()) for start in range(0, numbers.size, BLOCK)
    )
