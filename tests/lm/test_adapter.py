from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from orchd.errors import AdapterUnfit, BaseUnusable
from orchd.lm.adapter import adapter_weights, load_adapter, read_config, save_adapter, set_weights, start_adapter
from orchd.lm.base import Base, load_base

from .conftest import DEMO_BASE

IDS = torch.tensor([[2, 50, 300, 700, 3]])


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
        return found


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A float32 adapter with some effect."""
    base = load_base(DEMO_BASE)
    torch.manual_seed(3)
    model = start_adapter(base, rank=4, alpha=8)
    set_weights(model, {name: torch.randn_like(tensor) * 0.1 for name, tensor in adapter_weights(model).items()})
    save_adapter(model, tmp_path / "adapter", dtype="F32")
    torch.save(logits(model), tmp_path / "logits")
    return tmp_path / "adapter"


def test_a_new_adapter_changes_nothing(base: Base) -> None:
    before = logits(base.model)
    model = start_adapter(base, rank=8, alpha=16)
    assert torch.equal(logits(model), before)
    assert len(adapter_weights(model)) == 2 * 3 * 7


def test_dropout_leaves_out_inner_numbers_while_it_learns(base: Base) -> None:
    model = start_adapter(base, rank=40, alpha=80, dropout=0.25)
    set_weights(model, {name: torch.randn_like(tensor) * 0.1 for name, tensor in adapter_weights(model).items()})
    between = next(module for name, module in model.named_modules() if name.endswith("lora_A.default"))
    given = torch.ones(500, between.in_features)
    whole = between.eval()(given)
    made = between.train()(given)
    assert float((made == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert torch.allclose(made[made != 0], (whole / 0.75)[made != 0])
    assert not torch.equal(logits(model.train()), logits(model))
    assert torch.equal(logits(model.eval()), logits(model))


def test_it_comes_back_and_goes_away(base: Base, saved: Path) -> None:
    plain = logits(base.model)
    model = load_adapter(base, saved)
    want = torch.load(saved.parent / "logits", weights_only=True)
    assert torch.allclose(logits(model), want, atol=1e-5)
    assert not torch.allclose(want, plain, atol=0.1)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(logits(model.unload()), plain)


def test_peft_itself_reads_it(base: Base, saved: Path) -> None:
    model = peft.PeftModel.from_pretrained(base.model, saved)
    want = torch.load(saved.parent / "logits", weights_only=True)
    assert torch.allclose(logits(model), want, atol=1e-5)


def test_the_same_adapter_gives_the_same_bytes_and_names_no_place(saved: Path, tmp_path: Path) -> None:
    model = load_adapter(load_base(DEMO_BASE), saved)
    for name in ("one", "two"):
        save_adapter(model, tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert str(DEMO_BASE.parent) not in json.dumps(config)


def change(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"r": 0}, "r 0"),
        ({"r": "many"}, "Expected `int`"),
        ({"r": 5}, "this base needs"),
        ({"target_modules": ["q_proj"]}, "without a place"),
        ({"target_modules": ["nothing_of_this"]}, "not found"),
    ],
)
def test_settings_that_are_refused(base: Base, saved: Path, fields: dict[str, Any], message: str) -> None:
    change(saved, **fields)
    with pytest.raises(AdapterUnfit, match=message):
        load_adapter(base, saved)
    assert not hasattr(base.model.model.layers[0].mlp.up_proj, "lora_A")


def test_tensors_that_are_refused(base: Base, saved: Path) -> None:
    file = saved / "adapter_model.safetensors"
    weights = load_file(file)
    save_file(dict(list(weights.items())[1:]), file)
    with pytest.raises(AdapterUnfit, match="missing"):
        load_adapter(base, saved)
    file.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(AdapterUnfit, match=r"adapter_model\.safetensors"):
        load_adapter(base, saved)
    file.rename(saved / "adapter_model.bin")
    with pytest.raises(AdapterUnfit, match=r"adapter_model\.safetensors"):
        load_adapter(base, saved)


def test_scale() -> None:
    assert read_config_of({"r": 16, "lora_alpha": 32}).scale == 2
    assert read_config_of({"r": 16, "lora_alpha": 32, "use_rslora": True}).scale == 8


def read_config_of(fields: dict[str, Any]) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "adapter_config.json").write_text(json.dumps({"target_modules": ["q_proj"]} | fields))
        return read_config(Path(folder))


def test_bases_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseUnusable, match=r"no config\.json"):
        load_base(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(BaseUnusable, match=r"pytorch_model\.bin could hold code"):
        load_base(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(BaseUnusable):
        load_base(tmp_path)
