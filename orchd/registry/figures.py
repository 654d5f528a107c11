"""One pass over an adapter's bytes: one thread hashes the chunks while another looks at the numbers.

Both need the same cached pages, and neither holds Python's lock while it works, so that on two cores the pass takes as
long as its hashes. A NaN or infinity in a tensor is one in the sum of its squares, and ‖B A‖ is at most ‖B‖ ‖A‖: this
one sum answers what is asked of an honest adapter, and Gram matrices are made only of what might be too strong.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchd.errors import TensorsRefused
from orchd.records import FileEntry
from orchd.registry import weights
from orchd.registry.weights import Tensor


@dataclass(frozen=True)
class Figures:
    """What the pass found.

    `damage` says which bytes are not those that were signed, `unreadable` why the weights are no tensors, and
    `not_finite` names the first tensor with a NaN or an infinity; each is empty when all is well. `tensors` are the
    header's, `lengths` their Frobenius norms by name when all are finite: up to 1 % too large, never too small.
    """

    damage: str
    unreadable: str
    tensors: dict[str, Tensor]
    not_finite: str
    lengths: dict[str, float]


def look(entries: Mapping[Path, FileEntry], weights_file: Path) -> Figures:
    """Never refuses: of a file that can't be read as tensors only the bytes are looked at."""
    with ThreadPoolExecutor(1, "hash") as pool:
        hashing = pool.submit(_damages, entries)
        try:
            tensors, unreadable = weights.read_header(weights_file), ""
        except TensorsRefused as error:
            tensors, unreadable = {}, error.message
        not_finite, lengths = _numbers(weights_file, tensors) if tensors else ("", {})
        return Figures(hashing.result(), unreadable, tensors, not_finite, lengths)


def _damages(entries: Mapping[Path, FileEntry]) -> str:
    return next(filter(None, (_damage(path, entry) for path, entry in entries.items())), "")


def _damage(path: Path, entry: FileEntry) -> str:
    left, buffer = entry.size, bytearray(entry.chunk_size)
    with path.open("rb", buffering=0) as file:
        for number, wanted in enumerate(entry.chunks):
            chunk = memoryview(buffer)[: min(entry.chunk_size, left)]
            left -= _read_into(file.fileno(), chunk)
            if hashlib.sha256(chunk).digest() != wanted:
                return f"{entry.path}: chunk {number} is not the one that was signed"
        if left or file.read(1):
            return f"{entry.path} is not {entry.size} bytes long"
    return ""


def _read_into(descriptor: int, target: memoryview) -> int:
    """Bytes read: fewer than the target's only where the file ends, and then the rest is zeros."""
    done = 0
    while done < len(target) and (count := os.readv(descriptor, [target[done:]])):
        done += count
    target[done:] = bytes(len(target) - done)
    return done


# ---- the numbers -------------------------------------------------------------------------------------------------


def _numbers(path: Path, tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, float]]:
    """The first tensor that is not finite, and all lengths."""
    lengths, room = dict[str, float](), weights.scratch()
    with weights.mapped(path) as view, np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for name, tensor in tensors.items():
            squares = weights.squares_at_most(view, tensor, room)
            if not math.isfinite(squares):
                if weights.find_not_finite(view, tensor):
                    return name, {}
                squares = math.inf  # the numbers are, their squares are beyond float32
            lengths[name] = math.sqrt(squares)
    return "", lengths
