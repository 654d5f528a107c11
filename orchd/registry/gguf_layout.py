"""What lies where in a GGUF file that a stranger made, without trusting it: keys, tensors, and their places.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. Every count,
length and offset is checked against the file before it is used.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchd.errors import TensorsRefused

MAGIC = b"GGUF"
MAX_TENSORS, MAX_KEYS = 100_000, 10_000
MAX_DIMENSIONS = 8
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
#: By a tensor's type: how many numbers are in a block, and its bytes (ggml's GGML_TYPE_*).
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """`shape` is written as Hugging Face does, the fastest dimension last; `start` is from the file's beginning."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int

    @property
    def size(self) -> int:
        """Bytes."""
        numbers, length = BLOCKS[self.type]
        return math.prod(self.shape) // numbers * length


@dataclass(frozen=True)
class Layout:
    """`tensors` in the order of the file; the bytes of its keys and values are `keys_start` to `keys_end`, those of the
    tensors begin at `begin`; each begins at a multiple of `alignment` after it."""

    version: int
    keys: dict[str, Any]
    keys_start: int
    keys_end: int
    tensors: tuple[Tensor, ...]
    alignment: int
    begin: int


def read(path: Path) -> Layout:
    """Raises `TensorsRefused` for what is no whole GGUF file."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise TensorsRefused(f"{path.name} is no GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return read_mapped(path, data)


def read_mapped(path: Path, data: mmap.mmap) -> Layout:
    """As `read`, of a file that is mapped already."""
    try:
        return _read(_Reader(data))
    except (struct.error, UnicodeDecodeError, RecursionError) as error:
        raise TensorsRefused(f"{path} is no whole GGUF file: {error}") from None


class _Reader:
    """Reads one value after another; every length is checked against what is left of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = len(MAGIC)

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        length = self.number("<Q")
        self.check(length)
        value = self.data[self.at : self.at + length].decode("utf-8", "surrogateescape")
        self.at += length
        return value

    def check(self, wanted: int) -> None:
        if wanted > len(self.data) - self.at:
            raise TensorsRefused(f"the file says that {wanted} bytes follow, where {len(self.data) - self.at} do")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY and depth < 4:
            inner, count = self.number("<I"), self.number("<Q")
            self.check(count * max(1, struct.calcsize(_NUMBERS.get(inner, "<Q"))))
            return (
                self._numbers(inner, count)
                if inner in _NUMBERS
                else [self.value(inner, depth + 1) for _ in range(count)]
            )
        if kind not in _NUMBERS:
            raise TensorsRefused(f"a value of kind {kind} is not known")
        return self.number(_NUMBERS[kind])

    def _numbers(self, inner: int, count: int) -> list[Any]:
        form = _NUMBERS[inner]
        found = list(struct.unpack_from(f"<{count}{form[1]}", self.data, self.at))
        self.at += count * struct.calcsize(form)
        return found


def _read(reader: _Reader) -> Layout:
    if (version := reader.number("<I")) not in (2, 3):
        raise TensorsRefused(f"GGUF version {version} is not known")
    size = len(reader.data)
    count, keys = reader.number("<Q"), reader.number("<Q")
    if not 1 <= count <= MAX_TENSORS or keys > MAX_KEYS:
        raise TensorsRefused(f"{count} tensors and {keys} keys")
    keys_start = reader.at
    values = _distinct([(reader.text(), reader.value(reader.number("<I"))) for _ in range(keys)])
    keys_end = reader.at
    heads = _distinct([_head(reader) for _ in range(count)])
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise TensorsRefused(f"general.alignment = {str(alignment)[:40]}")
    begin = -(-reader.at // alignment) * alignment
    tensors = [Tensor(name, shape, kind, begin + offset) for name, (shape, kind, offset) in heads.items()]
    for tensor in tensors:
        if tensor.type not in BLOCKS:
            raise TensorsRefused(f"tensor {tensor.name[:80]!r} is of type {tensor.type}, which is not known")
        if tensor.start + tensor.size > size:
            raise TensorsRefused(f"tensor {tensor.name[:80]!r} ends behind the end of the file")
    return Layout(version, values, keys_start, keys_end, tuple(tensors), alignment, begin)


def _head(reader: _Reader) -> tuple[str, tuple[tuple[int, ...], int, int]]:
    name, dimensions = reader.text(), reader.number("<I")
    if dimensions > MAX_DIMENSIONS:
        raise TensorsRefused(f"tensor {name[:80]!r} has {dimensions} dimensions")
    shape = tuple(reader.number("<Q") for _ in range(dimensions))
    return name, (shape[::-1], reader.number("<I"), reader.number("<Q"))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise TensorsRefused("a name occurs twice")
    return found
