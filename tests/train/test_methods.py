"""Each way to train: what it changes, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchd.errors import TrainingRefused
from orchd.importers.conversation import Conversation
from orchd.jobs.context import JobContext
from orchd.lm.adapter import read_config, read_weights, save_adapter
from orchd.lm.base import load_base
from orchd.train import advice, loop, prepare
from orchd.train.places import adapter_targets, chosen
from orchd.train.specs import Change, TrainSpec, alpha_of

from .conftest import DEMO_BASE, MakeDataset
from .test_loop import logits, random_adapter, spec

NAMES = (
    *(f"model.layers.{layer}.self_attn.{name}" for layer in range(3) for name in ("q_proj", "v_proj")),
    *(f"model.layers.{layer}.mlp.up_proj" for layer in range(3)),
    "model.norm",
)


def test_rslora_is_signed_for_and_learns(dataset: MakeDataset, reversals: list[Conversation], job: JobContext) -> None:
    result = loop.run(spec(dataset(reversals), rank=32, steps=60, batch_size=16, rslora=True), job)
    config = read_config(job.workdir / "adapter")
    assert (config.use_rslora, config.r, config.lora_alpha) == (True, 32, 8.0)
    assert config.scale == pytest.approx(8 / 32**0.5)
    assert result.rslora
    assert result.heldout[0].exact_match > 0.5


@pytest.mark.parametrize(
    ("fields", "alpha"), [({"rank": 4}, 8), ({"rank": 4, "rslora": True}, 8), ({"alpha": 3.0, "rslora": True}, 3)]
)
def test_alpha_where_none_is_given(fields: dict[str, Any], alpha: float) -> None:
    assert alpha_of(TrainSpec(base="", dataset="", **fields)) == alpha


@pytest.mark.parametrize("rslora", [True, False])
def test_going_on_with_another_scale_is_the_same_function(tmp_path: Path, rslora: bool) -> None:
    want = random_adapter(tmp_path / "first", rank=4, alpha=4)
    asked = TrainSpec(base="", dataset="", initial=str(tmp_path / "first"), rank=9, rslora=rslora)
    assert abs(logits(prepare.new_adapter(asked, load_base(DEMO_BASE))) - want).max() < 1e-4


def test_only_the_chosen_places_are_trained(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext
) -> None:
    asked = spec(dataset(reversals, split="train"), modules=("q_proj", "mlp"), layers=(-1,))
    result = loop.run(asked, job)
    want = ("model.layers.2.mlp.down_proj", "model.layers.2.mlp.gate_proj", "model.layers.2.mlp.up_proj",
            "model.layers.2.self_attn.q_proj")  # fmt: skip
    assert result.target_modules == want
    there = {
        name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in read_weights(job.workdir / "adapter")
    }
    assert there == set(want)


def test_going_on_keeps_the_places(tmp_path: Path) -> None:
    base = load_base(DEMO_BASE)
    first = TrainSpec(base="", dataset="", modules=("self_attn",), rank=4)
    save_adapter(prepare.new_adapter(first, base), tmp_path / "first", "F32")
    then = TrainSpec(base="", dataset="", initial=str(tmp_path / "first"), rank=4)
    again = prepare.new_adapter(then, load_base(DEMO_BASE))
    assert set(again.peft_config["default"].target_modules) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    wider = TrainSpec(base="", dataset="", initial=str(tmp_path / "first"), rank=4, modules=("self_attn", "mlp"))
    assert "up_proj" in prepare.new_adapter(wider, load_base(DEMO_BASE)).peft_config["default"].target_modules


@pytest.mark.parametrize(
    ("modules", "layers", "found"),
    [
        ((), (), NAMES),
        (("q_proj",), (0, -1), (NAMES[0], NAMES[4])),
        (("mlp",), (), NAMES[6:9]),
        (("norm",), (), (NAMES[9],)),
        ((), (1,), (NAMES[2], NAMES[3], NAMES[7])),
    ],
)
def test_chosen(modules: tuple[str, ...], layers: tuple[int, ...], found: tuple[str, ...]) -> None:
    assert chosen(NAMES, modules, layers) == list(found)


@pytest.mark.parametrize(
    ("modules", "layers", "field", "said"),
    [
        (("q_prj",), (), "modules", "no 'q_prj'"),
        ((), (3,), "layers", "3 layers, none is 3"),
        ((), (-4,), "layers", "none is -4"),
        (("norm",), (0,), "modules", "no norm in the chosen layers"),
    ],
)
def test_what_the_base_lacks(modules: Any, layers: Any, field: str, said: str) -> None:
    with pytest.raises(TrainingRefused, match=said) as refused:
        chosen(NAMES, modules, layers)
    assert refused.value.field == field


def test_the_head_gets_no_adapter() -> None:
    model = load_base(DEMO_BASE).model
    assert adapter_targets(model, (), ()) == "all-linear"
    with pytest.raises(TrainingRefused, match="lm_head"):
        adapter_targets(model, ("lm_head",), ())


def test_the_next_command_says_it() -> None:
    used = TrainSpec(base="", dataset="", rslora=True, modules=("mlp", "q_proj"), layers=(-2, -1))
    line = advice.again(used, [Change(option="steps", value=9)], words=("mine",), options={"name": "a b", "base": ""})
    assert line == "orchctl train start mine --name 'a b' --steps 9 --rslora --modules=mlp,q_proj --layers=-2,-1"
