"""Gram matrices of LoRA factors as they lie in a file, and what follows from them without ever forming B A.

A Aᵀ of a wide factor A (r, n) and Bᵀ B of a tall one B (m, r) are (r, r), and they give the norm and the singular
values of B A. Numbers are multiplied as float32 where their size allows it, in blocks that are summed in float64: the
norm is right to about 1e-5, which is little beside the factors that it is judged by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchd.registry import peft_config, weights
from orchd.registry.weights import Scratch, Single, Tensor

BLOCK = 1 << 16
"""Numbers that are widened to float32 and multiplied at a time: they stay in a core's cache."""

#: For which numbers of rows products of `ROWS_TOGETHER` with all are quicker (measured: 1.1 to 2.3 times).
FEWEST_ROWS, MOST_ROWS, ROWS_TOGETHER = 4, 32, 8

#: A direction whose squares' sum lies between is multiplied in float32; else some of them may be infinite or 0 there.
LEAST, MOST = 1e-20, 1e37

Matrix = NDArray[np.float64]
Floats = NDArray[np.floating]


def makes_product(a: Tensor, b: Tensor) -> bool:
    """Whether B A is a matrix, of a rank that an adapter may have."""
    if len(a.shape) != 2 or len(b.shape) != 2:
        return False
    return 0 < a.shape[0] == b.shape[1] <= peft_config.MAX_RANK and 0 not in (a.shape[1], b.shape[0])


def gram(view: memoryview, tensor: Tensor, room: Scratch) -> Matrix:
    """(r, r) float64 of one of two factors that make a product; its name says whether it is A or B.

    `room` is overwritten.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        found = _gram(view, tensor, room, np.float32)
    if not np.all((np.diag(found) > LEAST) & (np.diag(found) < MOST)):  # also where a number was NaN
        return _gram(view, tensor, room, np.float64)
    return found


def _gram(view: memoryview, tensor: Tensor, room: Scratch, kind: type[np.floating]) -> Matrix:
    wide = tensor.name.endswith(".lora_A.weight")
    rank = tensor.shape[0] if wide else tensor.shape[1]
    total = np.zeros((rank, rank))
    for block in _blocks(view, tensor, wide, room):
        values = block if kind is np.float32 else block.astype(kind)
        total += _product(values if wide else values.T)
    return total


def norms(file: Path, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """‖B A‖ (Frobenius) by module, of the modules' A and B in `file`."""
    room = weights.scratch()
    with weights.mapped(file) as view:
        return {module: norm(gram(view, a, room), gram(view, b, room)) for module, (a, b) in pairs.items()}


def norm(a: Matrix, b: Matrix) -> float:
    """‖B A‖ (Frobenius) from the two Gram matrices."""
    return float(np.sqrt(max(0.0, np.sum(a * b))))


def singular_values(a: Matrix, b: Matrix) -> Matrix:
    """Those of B A, the largest first, from the two Gram matrices: the roots of the eigenvalues of √b a √b."""
    values, vectors = np.linalg.eigh(b)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return np.asarray(np.sqrt(np.maximum(np.linalg.eigvalsh(root.T @ a @ root)[::-1], 0.0)))


def _product(rows: Floats) -> Matrix:
    """R Rᵀ. For few rows OpenBLAS's own routine takes twice as long as products of some rows with all of them."""
    rank = len(rows)
    if not FEWEST_ROWS <= rank <= MOST_ROWS:
        return (rows @ rows.T).astype(np.float64)
    step = min(ROWS_TOGETHER, (rank + 1) // 2)
    return np.concatenate([rows[start : start + step] @ rows.T for start in range(0, rank, step)], dtype=np.float64)


def _blocks(view: memoryview, tensor: Tensor, wide: bool, room: Scratch) -> Iterator[Single]:
    """The tensor as float32 in pieces of about `BLOCK` numbers, whole columns (wide) or rows.

    The next piece may overwrite one.
    """
    kind = weights.RAW[tensor.dtype]
    raw = np.frombuffer(view[tensor.start : tensor.end], kind).reshape(tensor.shape)
    length = tensor.shape[1] if wide else tensor.shape[0]
    rank = tensor.parameters // length
    step = max(1, BLOCK // rank)
    for start in range(0, length, step):
        piece = raw[:, start : start + step] if wide else raw[start : start + step]
        yield weights.widen(piece, tensor.dtype, room[: piece.size].reshape(piece.shape))
