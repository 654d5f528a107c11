"""PEFT ⇄ mlx-lm: equal tensors after a round trip, equal products where the two can't say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchd.errors import AdapterConfigRefused, TensorsRefused
from orchd.registry import mlx_folder, peft_config, weights
from tests.serve import tiny


def tensors(path: Path) -> dict[str, tuple[str, bytes, tuple[int, ...]]]:
    data = path.read_bytes()
    return {t.name: (t.dtype, data[t.start : t.end], t.shape) for t in weights.read_header(path).values()}


def products(folder: Path) -> dict[str, np.ndarray]:
    """What a PEFT folder adds to each weight."""
    config = peft_config.read_plain(folder / "adapter_config.json")
    file = folder / "adapter_model.safetensors"
    with weights.mapped(file) as view:
        found = {t.name: weights.values(view, t).astype(np.float64) for t in weights.read_header(file).values()}
    modules = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in found}
    place = "base_model.model.{}.lora_{}.weight"
    return {m: config.scale_of(m) * found[place.format(m, "B")] @ found[place.format(m, "A")] for m in modules}


def there_and_back(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    mlx, back = tmp_path / "mlx", tmp_path / "back"
    mlx.mkdir()
    back.mkdir()
    mlx_folder.to_mlx(folder, mlx)
    mlx_folder.to_peft(mlx, back)
    return mlx, back


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_there_and_back_every_bit_is_the_same(tmp_path: Path, dtype: str) -> None:
    folder = tiny.make_adapter(tmp_path / "peft")
    if dtype != "F32":
        with weights.mapped(folder / "adapter_model.safetensors") as view:
            header = weights.read_header(folder / "adapter_model.safetensors")
            found = {name: weights.values(view, tensor) for name, tensor in header.items()}
        tiny.write_safetensors(folder / "adapter_model.safetensors", found, dtype)
    mlx, back = there_and_back(folder, tmp_path)
    assert tensors(back / "adapter_model.safetensors") == tensors(folder / "adapter_model.safetensors")
    kept = ("r", "lora_alpha", "target_modules", "peft_type", "bias")
    before, after = (json.loads((one / "adapter_config.json").read_text()) for one in (folder, back))
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    a = tensors(mlx / "adapters.safetensors")["model.layers.0.mlp.up_proj.lora_a"]
    assert a[2] == (tiny.HIDDEN, 4)
    assert a[0] == dtype
    settings = json.loads((mlx / "adapter_config.json").read_text())["lora_parameters"]
    assert settings["scale"] == 2.0
    assert "mlp.up_proj" in settings["keys"]


@pytest.mark.parametrize(
    ("config", "ranks"),
    [
        ({"use_rslora": True}, {}),
        ({"alpha_pattern": {"up_proj": 3}}, {}),
        ({"rank_pattern": {"up_proj": 2}}, {"up_proj": 2}),
    ],
)
def test_what_differs_by_module_gives_the_same_products(
    tmp_path: Path, config: dict[str, Any], ranks: dict[str, int]
) -> None:
    folder = tiny.make_adapter(tmp_path / "peft", ranks=ranks, **config)
    _, back = there_and_back(folder, tmp_path)
    before, after = products(folder), products(back)
    assert before.keys() == after.keys()
    for module in before:
        np.testing.assert_allclose(before[module], after[module], rtol=1e-6, atol=1e-7)


def test_what_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.mkdir()
    with pytest.raises(AdapterConfigRefused, match="use_dora"):
        mlx_folder.to_mlx(tiny.make_adapter(tmp_path / "dora", use_dora=True), target)
    mlx, _ = there_and_back(tiny.make_adapter(tmp_path / "peft"), tmp_path)
    plain = json.loads((mlx / "adapter_config.json").read_text())
    for change in ({"fine_tune_type": "dora"}, {"lora_parameters": {"rank": 4}}, {"lora_parameters": 3}):
        (mlx / "adapter_config.json").write_text(json.dumps(plain | change))
        with pytest.raises(AdapterConfigRefused):
            mlx_folder.to_peft(mlx, target)
    wrong = plain | {"lora_parameters": plain["lora_parameters"] | {"rank": 5}}
    (mlx / "adapter_config.json").write_text(json.dumps(wrong))
    with pytest.raises(TensorsRefused, match="rank is 5"):
        mlx_folder.to_peft(mlx, target)


def test_mlx_lm_reads_what_is_written(tmp_path: Path) -> None:
    """Its own loader and its own model: the logits of base and adapter are those of transformers + PEFT."""
    pytest.importorskip("mlx.core")
    import mlx.core as mx
    import torch
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    from orchd.lm.adapter import load_adapter
    from orchd.lm.base import load_base

    base = tiny.make_base(tmp_path / "base")
    folder = tiny.make_adapter(tmp_path / "peft", rank_pattern={"up_proj": 2}, ranks={"up_proj": 2}, use_rslora=True)
    mlx, _ = there_and_back(folder, tmp_path)
    plain, _ = load_model(base)
    ids = [[5, 17, 99, 250, 31, 8]]
    before = np.array(plain(mx.array(ids)).astype(mx.float32))
    model = load_adapters(plain, str(mlx))
    model.set_dtype(mx.float32)
    found = np.array(model(mx.array(ids)))
    with torch.inference_mode():
        wanted = load_adapter(load_base(base), folder)(input_ids=torch.tensor(ids)).logits.numpy()
    assert np.abs(found - wanted).max() < 1e-3
    assert np.abs(before - wanted).max() > 0.1
