"""The robust rules on dense vectors, slow and by the book: what the Gram matrices are compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def clip(points: Array, weights: Array) -> Array:
    lengths = [float(np.linalg.norm(p)) for p in points]
    limit = sorted(lengths)[(len(lengths) - 1) // 2]
    shortened = [p * min(1.0, limit / n) for p, n in zip(points, lengths, strict=True)]
    return np.asarray(sum(w * p for w, p in zip(weights, shortened, strict=True)))


def krum_order(points: Array) -> tuple[list[int], int]:
    """Blanchard et al. 2017: the votes by score, equal ones in their order, and n - f - 2."""
    wrong = (len(points) - 3) // 2
    nearest = len(points) - wrong - 2
    scores = []
    for i, p in enumerate(points):
        others = sorted(float(np.sum((p - q) ** 2)) for j, q in enumerate(points) if j != i)
        scores.append(sum(others[:nearest]))
    return sorted(range(len(points)), key=lambda i: round(scores[i] / max(scores), 9)), nearest


def krum(points: Array, weights: Array) -> Array:
    return np.asarray(points[krum_order(points)[0][0]])


def multi_krum(points: Array, weights: Array) -> Array:
    order, count = krum_order(points)
    return np.asarray(np.mean([points[i] for i in order[:count]], axis=0))


def geometric_median(points: Array, weights: Array) -> Array:
    """Gradient descent with halving steps on Σ w ‖z - p‖, from the best of the mean and the points."""

    def cost(z: Array) -> float:
        return float(sum(w * np.linalg.norm(z - p) for w, p in zip(weights, points, strict=True)))

    at = min([weights @ points, *points], key=cost)
    step = 1.0
    for _ in range(20_000):
        away = [(w, z, float(np.linalg.norm(z))) for w, z in zip(weights, at - points, strict=True)]
        gradient = sum(w * z / n for w, z, n in away if n > 1e-12)
        there = at - step * gradient
        if cost(there) < cost(at):
            at, step = there, step * 1.5
        elif (step := step / 2) < 1e-12:
            break
    return np.asarray(at)


def tsv(deltas: Array, weights: Array, rank: int) -> Array:
    """Gargiulo et al. 2025 on dense matrices (g, m, n) of rank `rank`: polar factors of the stacked vectors."""
    parts = [np.linalg.svd(d, full_matrices=False) for d in deltas]
    left = np.hstack([u[:, :rank] for u, _, _ in parts])
    right = np.hstack([v[:rank].T for _, _, v in parts])
    sizes = np.concatenate([len(deltas) * w * s[:rank] for w, (_, s, _) in zip(weights, parts, strict=True)])
    return np.asarray((polar(left) * sizes) @ polar(right).T)


def polar(vectors: Array) -> Array:
    p, _, q = np.linalg.svd(vectors, full_matrices=False)
    return np.asarray(p @ q)


def coordinates(deltas: Array) -> tuple[Array, Array]:
    """The votes' common bases, by the dense sums."""
    unit = [d / np.linalg.norm(d) for d in deltas]
    return principal(np.asarray(sum(d @ d.T for d in unit))), principal(np.asarray(sum(d.T @ d for d in unit)))


def principal(square: Array) -> Array:
    values, vectors = np.linalg.eigh(square)
    return np.asarray(vectors[:, values > 1e-10 * values[-1]])


def median(deltas: Array) -> Array:
    left, right = coordinates(deltas)
    return np.asarray(left @ np.median([left.T @ d @ right for d in deltas], axis=0) @ right.T)


def trimmed_mean(deltas: Array, cut: int) -> Array:
    left, right = coordinates(deltas)
    seen = np.sort([left.T @ d @ right for d in deltas], axis=0)
    return np.asarray(left @ seen[cut : len(seen) - cut].mean(axis=0) @ right.T)
