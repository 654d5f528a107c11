"""The methods that work inside one module: from its Gram matrices and the votes to a middle matrix M, (R, R).

The result of a module is B M A with the leaves' stacked factors. A vote is V = B diag(mixᵢ sᵢ) A over its members; one
whose members lack the module votes zero there, as it does in a mean.

Everything happens in a `Frame`, orthonormal bases of the joint column space of B (p dimensions) and row space of A
(q): T_B (p, R) with T_Bᵀ T_B = Bᵀ B, T_A likewise. There a vote is the small matrix X Yᵀ, X = T_B diag(mixᵢ sᵢ) and
Y = T_A, and lengths and angles are those of the dense ΔW. Directions that hold less than `NEGLIGIBLE` of the squared
length of the unit columns are rounding, and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from orchd.average.gram import Grams, Matrix

Middle = Callable[[Grams, Matrix, Matrix], Matrix]
"""(Gram matrices of the k leaves that have the module, `mix` (g, k) of all votes, `weights` (g,)) → M (R, R)."""

NEGLIGIBLE = 1e-10
CANCELLED = 1e-12
"""A vote whose squared length is below this share of what went into it has cancelled itself: zero."""
SAME_DIRECTION = 1e-3
"""TSV-M takes singular vectors that differ by less than this sine for the same one: between them lies only rounding."""
LEAST_SINGULAR = 1e-6
"""Of a vote's largest singular value: below, TSV-M has no direction."""
TRIM = 0.25
"""Of the votes, cut off at each end by the trimmed mean: two of eight (`average.md` §4: 20 % are hostile)."""
BLOCK_NUMBERS = 1 << 22
"""Coordinates of all votes in memory at a time, 32 MiB of float64."""


@dataclass(frozen=True)
class Frame:
    """Orthonormal coordinates: `left` T_B (p, R), `right` T_A (q, R), and their pseudo-inverses (R, p), (R, q)."""

    left: Matrix
    right: Matrix
    left_inverse: Matrix
    right_inverse: Matrix

    @classmethod
    def of(cls, grams: Grams) -> Frame:
        return cls(*_roots(grams.b, grams.a))

    def middle(self, core: Matrix) -> Matrix:
        """M with B M A = `core` (p, q) in this frame."""
        return np.asarray(self.left_inverse @ core @ self.right_inverse.T)


def tsv(grams: Grams, mix: Matrix, weights: Matrix) -> Matrix:
    """TSV-M, merging by whitened task singular vectors: U⊥ diag(g wᵥ σᵥ) V⊥ᵀ.

    The votes' singular vectors, stacked, are replaced by the nearest orthonormal ones (their polar factor), so that
    votes that use the same directions do not overwrite each other. Gargiulo et al., "Task singular vectors" (2025). A
    single vote comes back as it is. With equal weights each vote counts once, not 1/g: hence strengths near .4.
    """
    frame = Frame.of(grams)
    lefts, rights, sizes = [], [], []
    for vote, x, y in _votes(frame, grams, mix):
        left, size, right = _singular(x, y)
        lefts.append(left)
        rights.append(right)
        sizes.append(len(mix) * weights[vote] * size)
    if not lefts:
        return np.zeros_like(grams.a)
    core = (_polar(np.hstack(lefts)) * np.concatenate(sizes)) @ _polar(np.hstack(rights)).T
    return frame.middle(core)


def median(grams: Grams, mix: Matrix, weights: Matrix) -> Matrix:
    """The coordinate median (of an even number: the mean of the two middle ones) in the votes' common coordinates.

    These are the entries of P_Bᵀ ΔW P_A with the principal bases of the votes, each at unit length:
    P_B are the eigenvectors of Σ ΔW ΔWᵀ/‖ΔW‖², P_A those of Σ ΔWᵀ ΔW/‖ΔW‖² (the higher-order SVD of the votes,
    De Lathauwer 2000). They depend on the votes' functions alone, not on how these are factored or ordered, and not on
    how loud a vote is. In the base's own coordinates the median of matrices of rank r has full rank, and all of it is
    entries that no two votes agree on; here it stays in what the votes wrote.
    """
    return _by_coordinate(grams, mix, lambda values: np.median(values, axis=0))


def trimmed_mean(grams: Grams, mix: Matrix, weights: Matrix) -> Matrix:
    """The mean of what is left in each coordinate (see `median`) without the `trimmed` lowest and highest votes."""
    count = len(mix)
    cut = trimmed(count)
    return _by_coordinate(grams, mix, lambda values: np.sort(values, axis=0)[cut : count - cut].mean(axis=0))


def trimmed(votes: int) -> int:
    """How many votes the trimmed mean cuts off at each end: a quarter, of three votes or more at least one."""
    return max(int(TRIM * votes), 1 if votes >= 3 else 0)


def _by_coordinate(grams: Grams, mix: Matrix, rule: Callable[[Matrix], Matrix]) -> Matrix:
    frame = Frame.of(grams)
    votes = list(_votes(frame, grams, mix))
    if not votes:
        return np.zeros_like(grams.a)
    left_basis = _principal([(x, y) for _, x, y in votes])
    right_basis = _principal([(y, x) for _, x, y in votes])
    turned = [(vote, left_basis.T @ x, right_basis.T @ y) for vote, x, y in votes]
    rows, columns = left_basis.shape[1], right_basis.shape[1]
    core = np.empty((rows, columns))
    step = max(1, BLOCK_NUMBERS // (len(mix) * columns))
    for start in range(0, rows, step):
        values = np.zeros((len(mix), min(step, rows - start), columns))
        for vote, x, y in turned:
            values[vote] = x[start : start + step] @ y.T
        core[start : start + step] = rule(values)
    return frame.middle(left_basis @ core @ right_basis.T)


def _votes(frame: Frame, grams: Grams, mix: Matrix) -> Iterator[tuple[int, Matrix, Matrix]]:
    """Each vote that is not zero in this module: its number, X (p, r), Y (q, r)."""
    each = np.repeat(np.arange(len(grams.ranks)), grams.ranks)
    factors = mix[:, each] * np.asarray(grams.scales)[each]
    for vote, row in enumerate(factors):
        inside = np.flatnonzero(row)
        x, y = frame.left[:, inside] * row[inside], frame.right[:, inside]
        left, right = x.T @ x, y.T @ y
        if np.sum(left * right) > CANCELLED * float(np.diag(left) @ np.diag(right)):
            yield vote, x, y


def _principal(votes: list[tuple[Matrix, Matrix]]) -> Matrix:
    """The eigenvectors of Σ ΔW ΔWᵀ/‖ΔW‖², ΔW = X Yᵀ, the largest first; those with no share are left out."""
    total = np.zeros((len(votes[0][0]), len(votes[0][0])))
    for x, y in votes:
        inner = y.T @ y
        total += x @ inner @ x.T / np.sum((x.T @ x) * inner)
    values, vectors = np.linalg.eigh((total + total.T) / 2)
    return np.asarray(vectors[:, values > NEGLIGIBLE * values[-1]][:, ::-1])


def _singular(x: Matrix, y: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """U, σ and V of X Yᵀ."""
    (left, r_left), (right, r_right) = np.linalg.qr(x), np.linalg.qr(y)
    u, sizes, v = np.linalg.svd(r_left @ r_right.T, full_matrices=False)
    kept = sizes > LEAST_SINGULAR * sizes[0]
    return left @ u[:, kept], sizes[kept], right @ v[kept].T


def _polar(vectors: Matrix) -> Matrix:
    """The nearest matrix with orthonormal columns; where columns coincide, with orthonormal rows in their span."""
    u, sizes, v = np.linalg.svd(vectors, full_matrices=False)
    kept = sizes > SAME_DIRECTION * sizes[0]
    return np.asarray(u[:, kept] @ v[kept])


def _roots(left: Matrix, right: Matrix) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    (one, back), (other, other_back) = _root(left), _root(right)
    return one, other, back, other_back


def _root(gram: Matrix) -> tuple[Matrix, Matrix]:
    """T (p, R) with Tᵀ T = `gram`, and its pseudo-inverse (R, p)."""
    scale = np.sqrt(np.maximum(np.diag(gram), 0.0))
    safe = np.where(scale > 0, scale, 1.0)
    unit = gram / np.outer(safe, safe)
    values, vectors = np.linalg.eigh((unit + unit.T) / 2)
    kept = values > NEGLIGIBLE * values[-1]
    root, vectors = np.sqrt(values[kept]), vectors[:, kept]
    return np.asarray((vectors * root).T * scale), np.asarray(vectors / root / safe[:, None])


MIDDLES: Mapping[str, Middle] = {"tsv": tsv, "median": median, "trimmed-mean": trimmed_mean}
