"""Gram matrices of stacked LoRA factors, and what follows from them without ever forming ΔW.

For one module with k adapters, B = [B₁ … B_k] is (m, R), A = [A₁; …; A_k] is (R, n), and ΔWᵢ = sᵢ Bᵢ Aᵢ. All inner
products ⟨ΔWᵢ, ΔWⱼ⟩ are block sums of (A Aᵀ) ∘ (Bᵀ B). Sums run in float64: float32 loses its digits exactly where it
hurts, on near-copies. Source: `average.md` §1 of the project's measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Single = NDArray[np.float32]

CHUNK_ROWS = 8_192
"""Rows of the tall factors that are widened to float64 at a time, so that the copy stays small."""


@dataclass(frozen=True)
class Factors:
    """One adapter's part in one module: `a` (r, n), `b` (m, r), both float32; ΔW = `scale` · b @ a."""

    a: Single
    b: Single
    scale: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


@dataclass(frozen=True)
class Grams:
    """`a` = A Aᵀ and `b` = Bᵀ B of the stacked factors, (R, R) float64; `ranks` are the block sizes, `scales` sᵢ."""

    a: Matrix
    b: Matrix
    ranks: tuple[int, ...]
    scales: tuple[float, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.a.nbytes + self.b.nbytes

    def first(self, count: int) -> Grams:
        """The Gram matrices of the first `count` adapters alone."""
        size = sum(self.ranks[:count])
        return Grams(self.a[:size, :size], self.b[:size, :size], self.ranks[:count], self.scales[:count])


def tall_gram(parts: Sequence[Single]) -> Matrix:
    """Tᵀ T of T = [parts₁ … parts_k], each (n, rᵢ) float32. Returns (R, R) float64."""
    total = sum(part.shape[1] for part in parts)
    gram = np.zeros((total, total))
    for start in range(0, parts[0].shape[0], CHUNK_ROWS):
        block = _widened(parts, start)
        gram += block.T @ block
    return gram


def tall_product(parts: Sequence[Single], coefficients: Matrix) -> Matrix:
    """T C of T = [parts₁ … parts_k], each (n, rᵢ) float32, and C (R, r). Returns (n, r) float64."""
    rows = parts[0].shape[0]
    out = np.empty((rows, coefficients.shape[1]))
    for start in range(0, rows, CHUNK_ROWS):
        out[start : start + CHUNK_ROWS] = _widened(parts, start) @ coefficients
    return out


def grams_of(factors: Sequence[Factors]) -> Grams:
    """The Gram matrices of one module. Needs at least one adapter; all share (m, n)."""
    return Grams(
        a=tall_gram([f.a.T for f in factors]),
        b=tall_gram([f.b for f in factors]),
        ranks=tuple(f.rank for f in factors),
        scales=tuple(f.scale for f in factors),
    )


def inner_products(grams: Grams) -> Matrix:
    """⟨ΔWᵢ, ΔWⱼ⟩ (Frobenius) of one module, (k, k) float64. Sum it over modules for whole adapters."""
    edges = np.concatenate([[0], np.cumsum(grams.ranks)])[:-1]
    if not len(edges):
        return np.zeros((0, 0))
    product = grams.a * grams.b
    blocks = np.add.reduceat(np.add.reduceat(product, edges, axis=0), edges, axis=1)
    scales = np.asarray(grams.scales)
    return np.asarray(blocks * np.outer(scales, scales))


def norms(inner: Matrix) -> Matrix:
    """Frobenius norms of the adapters, (k,) float64, from their inner products."""
    return np.sqrt(np.maximum(np.diag(inner), 0.0))


def cosines(inner: Matrix) -> Matrix:
    """Cosines between adapters, (k, k) float64 in [-1, 1]; 0 where one of the two is zero."""
    length = norms(inner)
    product = np.outer(length, length)
    cosine = np.divide(inner, product, out=np.zeros_like(inner), where=product > 0)
    return np.clip(cosine, -1.0, 1.0)


def squared_norm(inner: Matrix, coefficients: Sequence[float]) -> float:
    """‖Σ cᵢ ΔWᵢ‖² ≥ 0. With cᵢ = 1 for a claimed average and −wⱼ for its leaves: their squared distance."""
    vector = np.asarray(coefficients)
    return max(0.0, float(vector @ inner @ vector))


def squared_length(grams: Grams, middle: Matrix) -> float:
    """‖B M A‖² ≥ 0 for any middle matrix M (R, R). Its noise is about 1e-16 of what went in, before it cancels."""
    return max(0.0, float(np.sum((grams.b @ middle @ grams.a) * middle)))


def _widened(parts: Sequence[Single], start: int) -> Matrix:
    return np.concatenate([part[start : start + CHUNK_ROWS] for part in parts], axis=1, dtype=np.float64)
