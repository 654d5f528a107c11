"""Gram matrices against the dense products they stand for."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from orchd.average import gram
from orchd.average.combine import apply, best_rank, mean_matrix
from orchd.average.gram import Factors


def factors(seed: int, ranks: list[int], rows: int = 30, columns: int = 17) -> list[Factors]:
    rng = np.random.default_rng(seed)
    return [
        Factors(
            rng.normal(size=(r, columns)).astype(np.float32),
            rng.normal(size=(rows, r)).astype(np.float32),
            float(rng.uniform(0.5, 2)),
        )
        for r in ranks
    ]


def delta(part: Factors) -> gram.Matrix:
    return np.asarray(part.scale * (part.b.astype(np.float64) @ part.a.astype(np.float64)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_inner_products_norms_and_distances(seed: int, ranks: list[int]) -> None:
    parts = factors(seed, ranks)
    deltas = [delta(part) for part in parts]
    dense = np.array([[float(np.sum(x * y)) for y in deltas] for x in deltas])
    inner = gram.inner_products(gram.grams_of(parts))
    assert np.allclose(inner, dense, rtol=1e-10)
    assert np.allclose(gram.norms(inner), [np.linalg.norm(x) for x in deltas], rtol=1e-10)
    weights = np.linspace(-1, 1, len(parts))
    mixed = sum(w * x for w, x in zip(weights, deltas, strict=True))
    assert np.isclose(gram.squared_norm(inner, list(weights)), float(np.sum(mixed**2)), atol=1e-8)


def test_cosines_of_opposites_and_of_nothing() -> None:
    (one,) = factors(1, [3])
    opposite = Factors(-one.a, one.b, 2 * one.scale)
    nothing = Factors(np.zeros_like(one.a), one.b, 1.0)
    cosines = gram.cosines(gram.inner_products(gram.grams_of([one, opposite, nothing])))
    assert np.allclose(cosines, [[1, -1, 0], [-1, 1, 0], [0, 0, 0]])


def test_long_factors_are_summed_in_chunks_like_short_ones() -> None:
    parts = factors(2, [2, 3], rows=2 * gram.CHUNK_ROWS + 5, columns=gram.CHUNK_ROWS + 1)
    grams = gram.grams_of(parts)
    stacked = np.concatenate([p.b for p in parts], axis=1, dtype=np.float64)
    assert np.allclose(grams.b, stacked.T @ stacked, rtol=1e-12)
    product = gram.tall_product([p.b for p in parts], np.eye(5))
    assert np.array_equal(product, stacked)


def test_any_middle_matrix() -> None:
    parts = factors(3, [3, 4])
    middle = np.random.default_rng(4).normal(size=(7, 7))
    stacked_b = np.concatenate([p.b for p in parts], axis=1, dtype=np.float64)
    stacked_a = np.concatenate([p.a for p in parts], axis=0, dtype=np.float64)
    target = stacked_b @ middle @ stacked_a
    u, s, v = np.linalg.svd(target)
    best = best_rank(gram.grams_of(parts), middle, 4)
    assert np.allclose(best.singular_values, s[:4])
    assert np.isclose(best.cut, float(np.sum(s[4:] ** 2)))
    assert np.allclose(delta(apply(parts, best)), (u[:, :4] * s[:4]) @ v[:4], atol=1e-4)


def test_rows_are_orthonormal_and_signs_are_settled() -> None:
    parts = factors(5, [3, 3])
    grams = gram.grams_of(parts)
    result = apply(parts, best_rank(grams, mean_matrix(grams.ranks, grams.scales, [0.5, 0.5]), 4))
    assert np.allclose(result.a @ result.a.T, np.eye(4), atol=1e-6)
    assert (result.b[np.abs(result.b).argmax(axis=0), np.arange(4)] > 0).all()


def test_nothing_is_inverted_where_adapters_cancel() -> None:
    (one,) = factors(6, [3])
    grams = gram.grams_of([one, one])
    best = best_rank(grams, mean_matrix(grams.ranks, grams.scales, [1.0, -1.0]), 4)
    whole = gram.squared_norm(gram.inner_products(gram.grams_of([one])), [1.0])
    assert best.total <= 1e-12 * whole
    assert np.isfinite(best.left).all()
    assert np.isfinite(best.right).all()
