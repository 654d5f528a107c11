"""One pass over an adapter's bytes: one thread hashes the chunks while another looks at the numbers.

Both need the same cached pages, and neither holds Python's lock while it works, so that on two cores the pass takes as
long as its hashes. A product's norm comes from its factors' Gram matrices, ‖B A‖² = Σ (A Aᵀ) ∘ (Bᵀ B), so B A is never
formed; a NaN or infinity in a factor is one on the diagonal of its Gram matrix, so that it is seen without another
look at the numbers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchd.errors import TensorsRefused
from orchd.records import FileEntry
from orchd.registry import grams, parts, peft_config, weights
from orchd.registry.weights import Tensor


@dataclass(frozen=True)
class Figures:
    """What the pass found.

    `damage` says which bytes are not those that were signed, `unreadable` why the weights are no tensors, and
    `not_finite` names the first tensor with a NaN or an infinity; each is empty when all is well. `tensors` are the
    header's. `products` is ‖B A‖ (Frobenius, without the scale) by module, of the modules whose A and B make a product.
    """

    damage: str
    unreadable: str
    tensors: dict[str, Tensor]
    not_finite: str
    products: dict[str, float]


def look(entries: Mapping[Path, FileEntry], weights_file: Path) -> Figures:
    """Never refuses: of a file that can't be read as tensors only the bytes are looked at."""
    with ThreadPoolExecutor(1, "hash") as pool:
        hashing = pool.submit(_damages, entries)
        try:
            tensors, unreadable = weights.read_header(weights_file), ""
        except TensorsRefused as error:
            tensors, unreadable = {}, error.message
        not_finite, products = _numbers(weights_file, tensors) if tensors else ("", {})
        return Figures(hashing.result(), unreadable, tensors, not_finite, products)


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
    """The first tensor that is not finite, and the products' norms."""
    products: dict[str, float] = {}
    with weights.mapped(path) as view, np.errstate(over="ignore", invalid="ignore"):
        factors, room = set[str](), grams.scratch()
        for module, pair in parts.pairs(tensors.values()).items():
            if not _make_a_product(pair):
                continue
            factors.update(tensor.name for tensor in pair.values())
            a, b = grams.gram(view, pair["A"], room), grams.gram(view, pair["B"], room)
            if not np.isfinite(np.trace(a) + np.trace(b)):
                if bad := next((t.name for t in pair.values() if weights.find_not_finite(view, t)), ""):
                    return bad, {}
                a, b = (grams.gram(view, pair[half], room, np.float64) for half in "AB")
            products[module] = grams.norm(a, b)
        for tensor in tensors.values():
            if tensor.name not in factors and weights.find_not_finite(view, tensor):
                return tensor.name, {}
    return "", products


def _make_a_product(pair: Mapping[str, Tensor]) -> bool:
    shapes = [pair[half].shape for half in "AB" if half in pair]
    return (
        [len(shape) for shape in shapes] == [2, 2]
        and 0 < shapes[0][0] == shapes[1][1] <= peft_config.MAX_RANK
        and 0 not in (shapes[0][1], shapes[1][0])
    )
