"""Layers of the base that are not held in memory: how many, and that nothing but memory and time changes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchd.errors import TrainingRefused
from orchd.importers.conversation import Conversation
from orchd.jobs.context import JobContext
from orchd.lm.base import load_base
from orchd.train import loop, planner
from orchd.train.placement import layers_outside
from orchd.train.plan_specs import BaseFacts, PlanSpec
from orchd.train.specs import TrainSpec

from .conftest import DEMO_BASE, MakeDataset, new_job

BASE = BaseFacts(
    width=1,
    inner=1,
    layers=10,
    vocabulary=1,
    parameters=1_200,
    adapter_parameters=1,
    context=1,
    layer_parameters=1_000,
    file_bytes=2_400,
)
"""4,800 bytes, 400 in each layer."""


def spec(**fields: object) -> TrainSpec:
    return msgspec.convert({"base": "b", "dataset": "d", **fields}, TrainSpec)


@pytest.mark.parametrize(
    ("device", "free", "outside"),
    [
        ("cuda", None, 0),
        ("cuda", 6_858, 0),
        ("cuda", 6_857, 1),
        ("cuda", 4_000, 5),
        ("cuda", 100, 10),
        ("cpu", 10_300, 0),
        ("cpu", 6_858, 6),
    ],
)
def test_as_many_layers_as_have_to_are_not_held(device: str, free: int | None, outside: int) -> None:
    assert layers_outside(spec(), BASE, device, free) == outside


def test_a_base_that_is_its_files_is_left_to_the_system() -> None:
    mapped = msgspec.structs.replace(BASE, is_mapped=True)
    assert layers_outside(spec(), mapped, "cpu", 100) == 0
    assert layers_outside(spec(), mapped, "cuda", 100) == 10


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "full"}, "whole weights are trained where they lie"),
        ({"quantization": "nf4"}, "a base in nf4 is held whole"),
        ({"gradient_checkpointing": "off"}, "every layer would be kept"),
        ({"backend": "mlx"}, "mlx holds a base whole"),
    ],
)
def test_where_it_can_not_be(fields: dict[str, object], words: str) -> None:
    assert layers_outside(spec(**fields), BASE, "cuda", 100) == 0
    assert layers_outside(spec(**fields, offload=0), BASE, "cuda", 100) == 0
    with pytest.raises(TrainingRefused, match=words):
        layers_outside(spec(**fields, offload=2), BASE, "cuda", 100)


def test_more_layers_than_there_are() -> None:
    with pytest.raises(TrainingRefused, match="offload 11: the base has 10 layers"):
        layers_outside(spec(offload=11), BASE, "cpu", None)


def test_layers_that_are_not_held_have_no_numbers_and_learn_the_same(
    dataset: MakeDataset, reversals: list[Conversation], tmp_path: Path
) -> None:
    held = load_base(DEMO_BASE, outside=2).model
    assert [layer.mlp.up_proj.weight.device.type for layer in held.model.layers] == ["cpu", "meta", "meta"]
    asked = TrainSpec(base=str(DEMO_BASE), dataset=str(dataset(reversals)), steps=6, compute="F32")
    made = {}
    for outside in (0, 2):
        work = tmp_path / f"work{outside}"
        result = loop.run(msgspec.structs.replace(asked, offload=outside), new_job(work))
        made[outside] = (result.train_loss, (work / result.adapter / "adapter_model.safetensors").read_bytes())
    assert made[0] == made[2]


def test_the_plan_says_so(dataset: MakeDataset, reversals: list[Conversation], job: JobContext) -> None:
    asked = TrainSpec(base=str(DEMO_BASE), dataset=str(dataset(reversals)), steps=6, offload=3)
    lines = {line.name: line for line in planner.run_plan(PlanSpec(train=asked), job).lines}
    assert (lines["offload"].shown, lines["offload"].value) == ("3 of 3 layers", 3)
    assert "stay in its files" in lines["offload"].why
    assert lines["gradient_checkpointing"].value == "on"
