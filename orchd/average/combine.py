"""The best rank-r adapter for Σ wᵢ sᵢ Bᵢ Aᵢ, from the Gram matrices alone.

With B (m, R) and A (R, n) stacked and any middle matrix M (R, R), the target is ΔW = B M A. Let Bᵀ B = L Lᵀ. Then
B = Q Lᵀ with orthonormal Q, and the singular values of ΔW are those of C A with C = Lᵀ M, (R, n): the eigenvalues of
K = C (A Aᵀ) Cᵀ, (R, R), are their squares. The right singular vectors are A′ = Λ^-½ Uᵀ C A, and B′ = ΔW A′ᵀ. By
Eckart and Young (1936) no adapter of that rank is nearer. Only the kept eigenvalues are inverted, so duplicates and
adapters that cancel are harmless. Cost: O(R² (m + n) + R³) a module, never m × n.

The factors come out unbalanced (B′ = U S, A′ = V with orthonormal rows): training that goes on from them was measured
to be slightly better than with √S on each side (`average.md` §3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchd.average.gram import Factors, Grams, Matrix, tall_product

JITTER = 1e-13
"""Added to the unit diagonal before Cholesky; far below what float32 factors resolve."""
NEGLIGIBLE = 1e-12
"""An eigenvalue (squared singular value) below this share of what went in is rounding noise and is not a direction.

What went in is Σ M² diag(BᵀB) diag(AAᵀ), the energy before anything cancels; what cancels leaves noise of its size.
"""


@dataclass(frozen=True)
class Combination:
    """Coefficients of the best rank-r adapter: B′ = B `left`, A′ = `right` A.

    `left` (R, r), `right` (r, R) and `singular_values` (r,), falling, are float64. `cut` is Σ σ² over what was left
    out and `total` Σ σ² over everything; r is smaller than wanted where ΔW has no more directions.
    """

    left: Matrix
    right: Matrix
    singular_values: Matrix
    cut: float
    total: float


def mean_matrix(ranks: Sequence[int], scales: Sequence[float], weights: Sequence[float]) -> Matrix:
    """The middle matrix of Σ wᵢ sᵢ Bᵢ Aᵢ: diagonal, (R, R)."""
    diagonal = [w * s for r, s, w in zip(ranks, scales, weights, strict=True) for _ in range(r)]
    return np.diag(np.asarray(diagonal, dtype=np.float64))


@dataclass(frozen=True)
class Spectrum:
    """All of B `middle` A: `squares` (R,), its squared singular values, falling; 0 where there is no direction."""

    squares: Matrix
    vectors: Matrix
    core: Matrix
    pull: Matrix

    @property
    def directions(self) -> int:
        return int(np.count_nonzero(self.squares))

    def best(self, rank: int) -> Combination:
        """The best adapter of at most `rank` ≥ 0, which may exceed R."""
        keep = min(rank, self.directions)
        sigma = np.sqrt(self.squares[:keep])
        right = (self.vectors[:, :keep] / sigma).T @ self.core
        return Combination(
            left=self.pull @ right.T,
            right=right,
            singular_values=sigma,
            cut=float(self.squares[keep:].sum()),
            total=float(self.squares.sum()),
        )


def spectrum(grams: Grams, middle: Matrix) -> Spectrum:
    """The singular values and vectors of B `middle` A, in coefficients."""
    lower = _factor(grams.b)
    core = lower.T @ middle
    squares, vectors = np.linalg.eigh(_symmetric(core @ grams.a @ core.T))
    squares, vectors = squares[::-1], vectors[:, ::-1]
    entered = float(np.diag(grams.b) @ middle**2 @ np.diag(grams.a))
    squares = np.where(squares > NEGLIGIBLE * max(entered, squares[0]), squares, 0.0)
    return Spectrum(squares, vectors, core, middle @ grams.a)


def best_rank(grams: Grams, middle: Matrix, rank: int) -> Combination:
    """The best adapter of at most `rank` for B `middle` A. `rank` ≥ 0; may exceed R."""
    return spectrum(grams, middle).best(rank)


def apply(factors: Sequence[Factors], combination: Combination) -> Factors:
    """The result's factors with scale 1, streamed from the stacked ones.

    Signs: the largest entry of each column of B′ is positive.
    """
    b = tall_product([f.b for f in factors], combination.left)
    a = tall_product([f.a.T for f in factors], combination.right.T)
    largest = np.abs(b).argmax(axis=0)
    signs = np.where(b[largest, np.arange(b.shape[1])] < 0, -1.0, 1.0)
    return Factors(
        a=np.ascontiguousarray((a * signs).T, dtype=np.float32),
        b=(b * signs).astype(np.float32),
        scale=1.0,
    )


def _factor(gram: Matrix) -> Matrix:
    """L with L Lᵀ = `gram` up to rounding, for a positive semidefinite matrix that may be singular."""
    scale = np.sqrt(np.maximum(np.diag(gram), 0.0))
    safe = np.where(scale > 0, scale, 1.0)
    unit = _symmetric(gram / np.outer(safe, safe))
    try:
        lower = np.linalg.cholesky(unit + JITTER * np.eye(len(unit)))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(unit)
        lower = vectors * np.sqrt(np.maximum(values, 0.0))
    return np.asarray(scale[:, None] * lower)


def _symmetric(matrix: Matrix) -> Matrix:
    return np.asarray((matrix + matrix.T) / 2)
