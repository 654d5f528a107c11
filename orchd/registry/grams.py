"""Gram matrices of LoRA factors as they lie in a file, and what follows from them without ever forming B A.

A Aᵀ of a wide factor A (r, n) and Bᵀ B of a tall one B (m, r) are (r, r), and they give the norm and the singular
values of B A. Numbers are multiplied as float32, in blocks that are summed in float64: the norm is right to about
1e-5, which is little beside the factors that it is judged by.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from orchd.registry import weights
from orchd.registry.weights import Single, Tensor

BLOCK = 1 << 16
"""Numbers that are widened to float32 and multiplied at a time: they stay in a core's cache."""

#: For which numbers of rows products of `ROWS_TOGETHER` with all are quicker (measured: 1.1 to 2.3 times).
FEWEST_ROWS, MOST_ROWS, ROWS_TOGETHER = 4, 32, 8

Matrix = NDArray[np.float64]
Floats = NDArray[np.floating]
Scratch = NDArray[np.uint32]


def scratch() -> Scratch:
    """Room for one block. Shared by calls one after another, it saves asking the system for fresh pages each time."""
    return np.empty(BLOCK, np.uint32)


def gram(view: memoryview, tensor: Tensor, room: Scratch, kind: type[np.floating] = np.float32) -> Matrix:
    """(r, r) float64 of a factor with two dimensions, r at most `MAX_RANK`; its name says whether it is A or B.

    `kind` is multiplied in, `room` is overwritten.
    """
    wide = tensor.name.endswith(".lora_A.weight")
    rank = tensor.shape[0] if wide else tensor.shape[1]
    total = np.zeros((rank, rank))
    for block in _blocks(view, tensor, wide, room):
        values = block if kind is np.float32 else block.astype(kind)
        total += _product(values if wide else values.T)
    return total


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
