"""Every method against its dense reference, and the laws that all of them keep."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchd.average import middles
from orchd.average.combine import apply, best_rank
from orchd.average.gram import Factors, grams_of, inner_products
from orchd.average.methods import COEFFICIENTS, krum_scores
from orchd.average.middles import MIDDLES, trimmed
from orchd.average.rules import METHODS

from . import dense_rules
from .test_gram import delta, factors

Array = dense_rules.Array
examples = settings(max_examples=25, deadline=None)
some = st.integers(0, 2**32)
REFERENCES: dict[str, Callable[[Array, Array], Array]] = {
    "clip": dense_rules.clip,
    "krum": dense_rules.krum,
    "multi-krum": dense_rules.multi_krum,
    "geometric-median": dense_rules.geometric_median,
}


def votes(seed: int, count: int, rank: int = 2) -> list[Factors]:
    """Around a common part, of different lengths."""
    rng = np.random.default_rng(seed)
    (common,) = factors(seed, [rank])
    return [
        Factors(
            (common.a + rng.normal(size=common.a.shape)).astype(np.float32),
            (common.b * rng.uniform(0.3, 3)).astype(np.float32),
            float(rng.uniform(0.5, 2)),
        )
        for _ in range(count)
    ]


def shares(seed: int, count: int) -> Array:
    drawn = np.random.default_rng(seed).uniform(0.2, 1, count)
    return np.asarray(drawn / drawn.sum())


def middle_of(parts: list[Factors], method: str, weights: Array) -> Array:
    """The dense result of one module where each adapter is a vote."""
    grams = grams_of(parts)
    middle = MIDDLES[method](grams, np.eye(len(parts)), weights)
    return np.asarray(delta(apply(parts, best_rank(grams, middle, 64))))


def near(found: Array, wanted: Array, share: float = 2e-5) -> bool:
    return float(np.linalg.norm(found - wanted)) <= share * float(np.linalg.norm(wanted))


@examples
@example(seed=7630646, count=3, method="krum")  # two votes are nearest to each other: rounding must not choose
@given(seed=some, count=st.integers(3, 9), method=st.sampled_from(sorted(REFERENCES)))
def test_coefficients_are_those_of_the_dense_rule(seed: int, count: int, method: str) -> None:
    parts, weights = votes(seed, count), shares(seed, count)
    points = np.array([delta(part).ravel() for part in parts])
    taken = COEFFICIENTS[method](inner_products(grams_of(parts)), weights)
    assert near(taken @ points, REFERENCES[method](points, weights), 1e-4 if method == "geometric-median" else 1e-9)


@examples
@given(seed=some, count=st.integers(1, 5), rank=st.integers(1, 3))
def test_tsv_is_the_dense_one(seed: int, count: int, rank: int) -> None:
    parts, weights = factors(seed, [rank] * count), shares(seed, count)
    wanted = dense_rules.tsv(np.array([delta(part) for part in parts]), weights, rank)
    assert near(middle_of(parts, "tsv", weights), wanted)


@examples
@given(seed=some, count=st.integers(3, 8))
def test_median_and_trimmed_mean_are_the_dense_ones(seed: int, count: int) -> None:
    parts, weights = votes(seed, count), shares(seed, count)
    deltas = np.array([delta(part) for part in parts])
    assert near(middle_of(parts, "median", weights), dense_rules.median(deltas))
    wanted = dense_rules.trimmed_mean(deltas, trimmed(count))
    assert near(middle_of(parts, "trimmed-mean", weights), wanted)


def test_coordinates_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, weights = votes(1, 5), shares(1, 5)
    whole = middle_of(parts, "median", weights)
    monkeypatch.setattr(middles, "BLOCK_NUMBERS", 1)
    assert near(middle_of(parts, "median", weights), whole, 1e-9)


@pytest.mark.parametrize("method", sorted(MIDDLES))
@pytest.mark.parametrize("count", [1, 4])
def test_copies_give_themselves(method: str, count: int) -> None:
    (one,) = factors(2, [3])
    assert near(middle_of([one] * count, method, np.full(count, 1 / count)), delta(one))


@examples
@given(seed=some, method=st.sampled_from(sorted(METHODS)), data=st.data())
def test_the_order_of_votes_does_not_matter(seed: int, method: str, data: st.DataObject) -> None:
    parts, weights = votes(seed, 5), shares(seed, 5)
    order = data.draw(st.permutations(range(5)))
    again, shuffled = [parts[i] for i in order], weights[order]
    if method in MIDDLES:
        assert near(middle_of(again, method, shuffled), middle_of(parts, method, weights))
    else:
        rule = COEFFICIENTS[method]
        taken = rule(inner_products(grams_of(parts)), weights)
        assert np.allclose(rule(inner_products(grams_of(again)), shuffled), taken[order], atol=1e-6)


@examples
@given(seed=some, method=st.sampled_from(sorted(METHODS)), scale=st.sampled_from([1e-3, 1e3]))
def test_all_votes_scaled_scale_the_result(seed: int, method: str, scale: float) -> None:
    parts, weights = votes(seed, 4), shares(seed, 4)
    larger = [Factors(p.a, p.b, p.scale * scale) for p in parts]
    if method in MIDDLES:
        assert near(middle_of(larger, method, weights), scale * middle_of(parts, method, weights))
    else:
        rule = COEFFICIENTS[method]
        wanted = rule(inner_products(grams_of(parts)), weights)
        assert np.allclose(rule(inner_products(grams_of(larger)), weights), wanted, atol=1e-6)


@examples
@given(seed=some, method=st.sampled_from(sorted(MIDDLES)), factor=st.floats(1e-2, 1e2))
def test_other_factors_of_the_same_function_change_nothing(seed: int, method: str, factor: float) -> None:
    """A·c and B/c, and a turn between A and B."""
    parts, weights = votes(seed, 4), shares(seed, 4)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(2, 2)))
    turned = [
        Factors((turn @ p.a * factor).astype(np.float32), (p.b @ turn.T / factor).astype(np.float32), p.scale)
        for p in parts
    ]
    assert near(middle_of(turned, method, weights), middle_of(parts, method, weights), 1e-3)


@pytest.mark.parametrize("method", ["median", "trimmed-mean", "geometric-median", "krum", "multi-krum", "clip"])
def test_one_loud_vote_of_seven_moves_it_little(method: str) -> None:
    """Against the honest mean, by at most the honest votes' own spread; the plain mean is 10^5 times further off."""
    parts, weights = votes(3, 7), np.full(7, 1 / 7)
    loud = [*parts[:6], Factors(-parts[6].a, parts[6].b, 1e6)]
    deltas = [delta(part) for part in loud]
    honest = np.mean(deltas[:6], axis=0)
    if method in MIDDLES:
        found = middle_of(loud, method, weights)
    else:
        taken = COEFFICIENTS[method](inner_products(grams_of(loud)), weights)
        found = np.asarray(sum(c * d for c, d in zip(taken, deltas, strict=True)))
    spread = max(float(np.linalg.norm(d - honest)) for d in deltas[:6])
    assert float(np.linalg.norm(found - honest)) <= spread
    assert float(np.linalg.norm(np.mean(deltas, axis=0) - honest)) > 1e4 * spread


def test_a_vote_without_the_module_votes_zero() -> None:
    parts, weights = votes(4, 3), np.full(5, 0.2)
    grams, mix = grams_of(parts), np.eye(5)[:, :3]
    dense = [delta(part) for part in parts]
    left, right = dense_rules.coordinates(np.array(dense))
    seen = [left.T @ d @ right for d in dense] + [np.zeros((left.shape[1], right.shape[1]))] * 2
    wanted = left @ np.median(seen, axis=0) @ right.T
    found = delta(apply(parts, best_rank(grams, MIDDLES["median"](grams, mix, weights), 64)))
    assert near(found, wanted)


@pytest.mark.parametrize("method", sorted(MIDDLES))
def test_a_vote_that_cancels_itself_is_zero(method: str) -> None:
    """An author's three adapters cancel up to rounding: that has no direction, and is not made one."""
    one, second, other = factors(5, [2, 2, 2])
    third = -(one.a + second.a)
    parts = [Factors(a, one.b, 0.3) for a in (one.a, second.a, third)] + [other]
    mix = np.array([[1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 1.0]])
    middle = MIDDLES[method](grams_of(parts), mix, np.array([0.5, 0.5]))
    found = delta(apply(parts, best_rank(grams_of(parts), middle, 64)))
    assert near(found, (1.0 if method == "tsv" else 0.5) * delta(other))


def test_equal_scores_go_to_the_first() -> None:
    inner = np.eye(4)
    assert np.ptp(krum_scores(inner)) == 0
    assert COEFFICIENTS["krum"](inner, np.full(4, 0.25)).argmax() == 0


def test_the_table_has_every_method_once() -> None:
    assert {**COEFFICIENTS, **MIDDLES}.keys() == METHODS.keys()
    assert {name for name, about in METHODS.items() if about.linear} == set(COEFFICIENTS)
