"""Laws that averaging must keep, for random ranks, settings and module subsets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchd.average.adapter import Adapter

from .bench import Bench
from .peft_folders import SHAPES, Lora, dense, dense_mean, distance, random_lora, truncated

SAME = 5e-6  # factors are float32
Benches = Callable[[], Bench]


@st.composite
def loras(draw: st.DrawFn) -> Lora:
    """A random adapter: some modules, a rank by module, α, rsLoRA, patterns."""
    modules = draw(st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, unique=True))
    ranks = {name: draw(st.integers(1, 6)) for name in modules}
    config: dict[str, object] = {"lora_alpha": draw(st.sampled_from([1, 8, 12.5])), "use_rslora": draw(st.booleans())}
    if draw(st.booleans()):
        config["alpha_pattern"] = {draw(st.sampled_from(["q_proj", "layers.0.up_proj", modules[0]])): 5}
    return random_lora(draw(st.integers(0, 2**32)), modules=modules, ranks=ranks, **config)


examples = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@examples
@given(adapter=loras())
def test_one_adapter_with_weight_one_comes_back(fresh_bench: Benches, adapter: Lora) -> None:
    bench = fresh_bench()
    folders = bench.write(adapter)
    average, result = bench.average(folders, rank=64)
    assert distance(dense(average), dense(folders[0])) < SAME
    assert result.residual_ppm == 0
    with Adapter(average) as after, Adapter(folders[0]) as before:
        full = {n: min(m.rank, m.rows, m.columns) for n, m in before.modules.items()}
        assert {n: m.rank for n, m in after.modules.items()} == full


@examples
@given(adapter=loras(), copies=st.integers(2, 4))
def test_copies_average_to_themselves(fresh_bench: Benches, adapter: Lora, copies: int) -> None:
    bench = fresh_bench()
    folders = bench.write(*[adapter] * copies)
    average, result = bench.average(folders, rank=64)
    assert distance(dense(average), dense(folders[0])) < SAME
    assert result.rank == max(min(a.shape[0], *SHAPES[n]) for n, (a, _) in adapter.factors.items())
    assert np.allclose(result.cosines, 1.0)


@examples
@given(adapters=st.lists(loras(), min_size=2, max_size=4), data=st.data())
def test_the_order_changes_no_byte(fresh_bench: Benches, adapters: list[Lora], data: st.DataObject) -> None:
    bench = fresh_bench()
    folders = bench.write(*adapters)
    weights = [1.0 + i for i in range(len(folders))]
    order = data.draw(st.permutations(range(len(folders))))
    first, result = bench.average(folders, weights, rank=4)
    second, shuffled = bench.average([folders[i] for i in order], [weights[i] for i in order], rank=4)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert shuffled.norms == tuple(result.norms[i] for i in order)
    assert shuffled.weights_ppm == tuple(result.weights_ppm[i] for i in order)


@examples
@given(adapters=st.lists(loras(), min_size=1, max_size=4), rank=st.integers(1, 12), strength=st.floats(0.2, 3))
def test_no_adapter_of_that_rank_is_nearer(
    fresh_bench: Benches, adapters: list[Lora], rank: int, strength: float
) -> None:
    """Against the dense optimum, module by module (Eckart and Young)."""
    bench = fresh_bench()
    folders = bench.write(*adapters)
    weights = [1.0 + i for i in range(len(folders))]
    average, result = bench.average(folders, weights, rank=rank, strength=strength)
    exact = dense_mean(folders, [ppm / 1e6 * result.strength_ppm / 1e6 for ppm in result.weights_ppm])
    best = {name: truncated(delta, rank) for name, delta in exact.items()}
    assert distance(dense(average), exact) == pytest.approx(distance(best, exact), abs=SAME)
    assert result.residual_ppm == pytest.approx(1e6 * distance(best, exact), abs=10)


@examples
@given(adapter=loras(), other=loras(), factor=st.sampled_from([-3.0, 0.01, 7.5, 1000.0]))
def test_moving_a_factor_between_a_and_b_changes_nothing(
    fresh_bench: Benches, adapter: Lora, other: Lora, factor: float
) -> None:
    bench = fresh_bench()
    c = np.float32(factor)
    moved = Lora({n: (a * c, b / c) for n, (a, b) in adapter.factors.items()}, adapter.config)
    one, two, third = bench.write(adapter, moved, other)
    first, _ = bench.average([one, third], rank=64)
    second, _ = bench.average([two, third], rank=64)
    assert distance(dense(second), dense(first)) < SAME


@examples
@given(adapter=loras(), other=loras(), share=st.sampled_from([0.25, 0.5, 0.75]))
def test_splitting_a_weight_over_two_copies_changes_nothing(
    fresh_bench: Benches, adapter: Lora, other: Lora, share: float
) -> None:
    bench = fresh_bench()
    one, copy, third = bench.write(adapter, adapter, other)
    first, _ = bench.average([one, third], [2.0, 2.0], rank=5)
    second, _ = bench.average([one, copy, third], [2 * share, 2 * (1 - share), 2.0], rank=5)
    assert distance(dense(second), dense(first)) < 1e-3  # the r-th direction may nearly tie with the next
    whole, _ = bench.average([one, third], [2.0, 2.0], rank=64)
    split, _ = bench.average([one, copy, third], [2 * share, 2 * (1 - share), 2.0], rank=64)
    assert distance(dense(split), dense(whole)) < SAME


@examples
@given(adapters=st.lists(loras(), min_size=2, max_size=3), strength=st.floats(0.1, 4))
def test_strength_scales(fresh_bench: Benches, adapters: list[Lora], strength: float) -> None:
    bench = fresh_bench()
    folders = bench.write(*adapters)
    plain, _ = bench.average(folders, rank=64)
    strong, _ = bench.average(folders, rank=64, strength=strength)
    scaled = {name: strength * delta for name, delta in dense(plain).items()}
    assert distance(dense(strong), scaled) < 2e-5  # the strength itself is rounded to a millionth
