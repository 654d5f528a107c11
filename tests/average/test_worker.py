"""The averaging and verifying jobs: results, refusals, cancellation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from orchd.average.adapter import Adapter
from orchd.average.recipe import TOLERANCE_PPM
from orchd.average.specs import AverageSpec
from orchd.average.worker import run
from orchd.errors import (
    AdapterConfigRefused,
    AverageIsZero,
    AverageOverflows,
    AverageSpecInvalid,
    JobCancelled,
    LeafUnreadable,
    ShapesDiffer,
    TensorsRefused,
)

from .bench import Bench, leaves
from .peft_folders import SHAPES, Lora, dense, dense_mean, distance, random_lora

DTYPES = ("BF16", "F16", "F32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [2, 64])
def test_an_honest_average_holds(bench: Bench, dtype: str, rank: int) -> None:
    folders = bench.write(*(random_lora(seed) for seed in range(4)))
    average, result = bench.average(folders, [1, 2, 3, 4], rank=rank, dtype=dtype, strength=1.5)
    check = bench.verify(average, folders, [1, 2, 3, 4], rank=rank, strength=1.5, tolerance_ppm=result.tolerance_ppm)
    assert check.holds, check.detail
    assert check.relative_error <= {"BF16": 3e-3, "F16": 4e-4, "F32": 1e-6}[dtype]
    assert check.residual == pytest.approx(result.residual_ppm / 1e6, abs=1e-6)
    exact = dense_mean(folders, [0.15, 0.3, 0.45, 0.6])
    assert check.distance == pytest.approx(distance(dense(average), exact), abs=1e-6)


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_a_tampered_average_does_not_hold(bench: Bench, share: float) -> None:
    """One module's B is changed by a share of itself; what is off is found, and its size."""
    folders = bench.write(random_lora(1), random_lora(2))
    average, result = bench.average(folders, rank=64)
    with Adapter(average) as adapter:
        factors = {name: (f.a, f.b) for name, f in ((n, adapter.factors(n)) for n in adapter.modules)}
    a, b = factors["model.layers.0.q_proj"]
    changed = share * np.roll(b, 1, axis=0)
    tampered = Lora(factors | {"model.layers.0.q_proj": (a, b + changed)}, {"lora_alpha": result.rank})
    (claimed,) = bench.write(tampered)
    check = bench.verify(claimed, folders, rank=64, tolerance_ppm=result.tolerance_ppm)
    exact = dense_mean(folders, [0.5, 0.5])
    off = float(np.linalg.norm(changed @ a)) / sum(float(np.sum(d**2)) for d in exact.values()) ** 0.5
    assert not check.holds
    assert check.relative_error == pytest.approx(off, rel=1e-3)
    assert "% off" in check.detail


def test_another_recipe_does_not_hold(bench: Bench) -> None:
    folders = bench.write(random_lora(1), random_lora(2))
    average, _ = bench.average(folders, rank=3)
    assert bench.verify(average, folders, rank=3).holds
    assert not bench.verify(average, folders, [1, 2], rank=3).holds
    assert not bench.verify(average, folders, rank=3, strength=1.1).holds
    assert not bench.verify(average, folders[:1], rank=3).holds


def test_a_claim_above_its_rank_does_not_hold(bench: Bench) -> None:
    """It is nearer to the exact average than the recipe's rank allows, so it is not that recipe's result."""
    folders = bench.write(random_lora(1), random_lora(2))
    average, _ = bench.average(folders, rank=6)
    check = bench.verify(average, folders, rank=4)
    assert not check.holds
    assert "larger rank" in check.detail


def test_a_lineage_can_not_excuse_everything(bench: Bench) -> None:
    folders = bench.write(random_lora(1), random_lora(2))
    check = bench.verify(folders[0], folders, rank=64, tolerance_ppm=1_000_000)
    assert not check.holds
    assert check.tolerance == 0.02


def test_figures_of_the_result(bench: Bench) -> None:
    one = random_lora(1)
    opposite = Lora({n: (-a, b) for n, (a, b) in one.factors.items()})
    folders = bench.write(one, random_lora(2), opposite)
    average, result = bench.average(folders, [3, 2, 1], rank=5, dtype="BF16")
    assert result.weights_ppm == (500_000, 333_333, 166_667)
    assert result.cosines[0][2] == pytest.approx(-1)
    assert result.norms[0] == pytest.approx(result.norms[2])
    assert (result.rank, result.alpha, result.rslora) == (5, 5.0, False)
    assert result.target_modules == ("q_proj", "up_proj")
    assert result.tolerance_ppm == TOLERANCE_PPM["BF16"]
    with Adapter(average) as adapter:
        counted = sum(m.rank * (m.rows + m.columns) for m in adapter.modules.values())
        assert {m.scale for m in adapter.modules.values()} == {1.0}
    assert result.parameters == counted


def test_the_settings_written_are_plain_and_hold_no_path(bench: Bench) -> None:
    folders = bench.write(random_lora(1, base_model_name_or_path="someone/base"))
    average, _ = bench.average(folders)
    config = json.loads((average / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert config["r"] == config["lora_alpha"] == 3
    assert sorted(p.name for p in average.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_modules_that_only_some_have_and_mixed_ranks(bench: Bench) -> None:
    folders = bench.write(
        random_lora(1, rank=1, modules=["model.layers.0.up_proj"]),
        random_lora(2, rank=4, modules=["model.layers.0.q_proj", "model.layers.0.up_proj"]),
    )
    average, result = bench.average(folders, [1, 3], rank=16)
    assert distance(dense(average), dense_mean(folders, [0.25, 0.75])) < 5e-6
    config = json.loads((average / "adapter_config.json").read_text())
    assert result.rank == config["r"] == 5
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({"model.layers.0.q_proj": 4}, {})


def test_a_module_that_cancels_is_left_out(bench: Bench) -> None:
    one = random_lora(1)
    name = "model.layers.0.up_proj"
    a, b = one.factors[name]
    folders = bench.write(one, Lora(one.factors | {name: (a, -b)}))
    average, result = bench.average(folders)
    with Adapter(average) as adapter:
        assert set(adapter.modules) == {"model.layers.0.q_proj", "model.layers.1.q_proj"}
    assert result.target_modules == ("q_proj",)


def _refused(bench: Bench, adapters: list[Lora], error: type[Exception], match: str, **spec: object) -> None:
    folders = bench.write(*adapters)
    job, _ = bench.job()
    with pytest.raises(error, match=match):
        run(AverageSpec(adapters=leaves(folders), **spec), job)
    assert list(job.workdir.iterdir()) == []


def test_all_that_cancels_is_refused(bench: Bench) -> None:
    one = random_lora(1)
    _refused(bench, [one, Lora({n: (-a, b) for n, (a, b) in one.factors.items()})], AverageIsZero, "zero")


def test_other_shapes_are_refused(bench: Bench) -> None:
    one, other = random_lora(1), random_lora(2)
    name = "model.layers.1.q_proj"
    other.factors[name] = (np.ones((3, 10), np.float32), np.ones((12, 3), np.float32))
    _refused(bench, [one, other], ShapesDiffer, r"layers\.1\.q_proj differ: 12×10 and 12×9")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_number_that_is_none_is_refused(bench: Bench, value: float, dtype: str) -> None:
    folders = bench.write(random_lora(1), Lora(random_lora(2).factors, dtype=dtype))
    path = folders[1] / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(value).astype("<f4").tobytes() if dtype == "F32" else data[-4:]
    if dtype == "F16":
        data[-2:] = np.float16(value).astype("<f2").tobytes()
    if dtype == "BF16":
        data[-2:] = np.float32(value).astype("<f4").tobytes()[2:]
    path.write_bytes(data)
    job, _ = bench.job()
    with pytest.raises(TensorsRefused, match="NaN or infinity"):
        run(AverageSpec(adapters=leaves(folders)), job)
    assert list(job.workdir.iterdir()) == []


@pytest.mark.parametrize(
    "setting", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"lora_bias": True}]
)
def test_what_is_not_plain_lora_is_refused(bench: Bench, setting: dict[str, object]) -> None:
    _refused(bench, [random_lora(1), random_lora(2, **setting)], AdapterConfigRefused, next(iter(setting)))


def test_a_saved_whole_module_is_refused(bench: Bench) -> None:
    folders = bench.write(random_lora(1))
    path = folders[0] / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"layers.0.q_proj.lora_A.weight", b"layers.0.q_proj.saved.weight!"))
    job, _ = bench.job()
    with pytest.raises(TensorsRefused, match=r"saved\.weight"):
        run(AverageSpec(adapters=leaves(folders)), job)


def test_half_a_module_and_a_false_rank_are_refused(bench: Bench) -> None:
    _refused(bench, [random_lora(1, r=5, lora_alpha=5)], TensorsRefused, "rank 3 and 3, its settings say 5")


def test_numbers_that_do_not_fit_are_refused(bench: Bench) -> None:
    one = random_lora(1)
    huge = Lora({n: (a, b * np.float32(1e7)) for n, (a, b) in one.factors.items()})
    _refused(bench, [huge], AverageOverflows, "F16", dtype="F16")


@pytest.mark.parametrize("spec", [{"rank": 0}, {"rank": 1025}, {"method": "linear"}, {"strength": 0.0}])
def test_a_senseless_plan_is_refused(bench: Bench, spec: dict[str, object]) -> None:
    _refused(bench, [random_lora(1)], AverageSpecInvalid, "rank|method|strength", **spec)


def test_a_leaf_whose_bytes_vanish_leaves_nothing(bench: Bench) -> None:
    folders = bench.write(random_lora(1), random_lora(2))
    (folders[1] / "adapter_model.safetensors").unlink()
    job, _ = bench.job()
    with pytest.raises(LeafUnreadable, match=f"{folders[1].name}: its files can't be read: No such file"):
        run(AverageSpec(adapters=leaves(folders)), job)
    assert list(job.workdir.iterdir()) == []


def test_progress_goes_module_by_module(bench: Bench) -> None:
    made = random_lora(1), random_lora(2)
    folders = bench.write(*made)
    job, wire = bench.job()
    run(AverageSpec(adapters=leaves(folders)), job)
    assert [(m["done"], m["total"], m["unit"]) for m in wire.sent] == [(n, 3, "modules") for n in range(4)]
    sizes = [sum(a.nbytes + b.nbytes for one in made for a, b in [one.factors[name]]) for name in sorted(SHAPES)]
    assert [m["figures"]["bytes"] for m in wire.sent] == [sum(sizes[:n]) for n in range(4)]


def test_cancelling_leaves_nothing(bench: Bench) -> None:
    folders = bench.write(random_lora(1), random_lora(2))
    job, _ = bench.job(cancel_at=2)
    with pytest.raises(JobCancelled):
        run(AverageSpec(adapters=leaves(folders)), job)
    assert list(job.workdir.iterdir()) == []


def test_an_embedding_is_averaged_under_its_own_names(bench: Bench, tmp_path: Path) -> None:
    rename = [(b"lora_A.weight", b"lora_embedding_A"), (b"lora_B.weight", b"lora_embedding_B")]
    folders = bench.write(*(random_lora(s, modules=["model.layers.0.up_proj"]) for s in (1, 2)))
    for folder in folders:
        path = folder / "adapter_model.safetensors"
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = data[8 : 8 + size]
        for old, new in rename:
            header = header.replace(old, new)
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    average, _ = bench.average(folders)
    assert distance(dense(average), dense_mean(folders, [0.5, 0.5])) < 5e-6
    assert b"lora_embedding_A" in (average / "adapter_model.safetensors").read_bytes()
