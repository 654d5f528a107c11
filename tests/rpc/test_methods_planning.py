"""`train.plan` and `train.validate` up to their jobs, and the operations that other trainers' clients expect."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchd.errors import ParamsInvalid
from orchd.node import Node
from orchd.rpc.methods import TABLE
from orchd.rpc.methods_exchange import AdapterExport, adapter_export
from orchd.rpc.methods_planning import TrainValidate, read, train_plan, train_validate
from orchd.rpc.methods_training import TrainStart, named, train_start
from tests.helpers import Lab

from .test_methods_training import Work

OPERATIONS = {
    "createDataset": "dataset.create",
    "listDatasets": "dataset.list",
    "deleteDataset": "dataset.delete",
    "prepareData": "dataset.prepare",
    "validateConfig": "train.validate",
    "startTraining": "train.start",
    "getTrainingStatus": "job.show",
    "cancelTraining": "job.cancel",
    "listTrainingJobs": "job.list",
    "cleanupCheckpoints": "checkpoint.cleanup",
    "evaluateModel": "adapter.evaluate",
    "exportModel": "adapter.export",
}
SEEDS_CONFIG: dict[str, Any] = {
    "learning_rate": 1e-4,
    "batch_size": 4,
    "epochs": 3,
    "warmup_steps": 10,
    "max_steps": 500,
    "weight_decay": 0.01,
    "gradient_accumulation_steps": 4,
    "lora_rank": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "validation_split": 0.1,
    "early_stopping": {"enabled": True, "patience": 3, "min_delta": 0.01},
    "checkpointing": {"enabled": True, "interval": 100, "keep_best": 3},
}


@pytest.fixture
def work(lab: Lab) -> Work:
    return Work(lab)


@pytest.mark.parametrize("name", OPERATIONS.values())
def test_the_operations_of_a_training_service_are_there(name: str) -> None:
    assert name in TABLE


async def test_its_whole_configuration_is_taken(work: Work) -> None:
    good, wrong = read(SEEDS_CONFIG)
    assert wrong == []
    await train_plan(work.node, TrainStart(dataset="mine", base="tiny", **good))
    (spec,) = work.specs
    train = spec.train
    for name, value in SEEDS_CONFIG.items():
        found = getattr(train, name.removeprefix("lora_") if name != "lora_dropout" else name)
        assert found == value or {key: getattr(found, key) for key in value} == value
    assert spec.command.startswith("orchctl train start mine ")
    assert "--epochs 3" in spec.command


def test_one_thing_has_one_value() -> None:
    assert named(TrainStart(dataset="mine", lora_rank=8)).rank == 8
    assert named(TrainStart(dataset="mine", rank=8, lora_rank=8)).lora_rank is None
    with pytest.raises(ParamsInvalid, match="rank is 8, and lora_rank 4") as refused:
        named(TrainStart(dataset="mine", rank=8, lora_rank=4))
    assert refused.value.field == "lora_rank"


async def test_every_mistake_is_found_at_once(work: Work) -> None:
    config = {
        "dataset": "mine",
        "base": "tiny",
        "learning_rate": 10,
        "epochs": "three",
        "batchsize": 4,
        "early_stopping": {"patiance": 3},
        "checkpointing": {"keep_best": 0},
        "seed": 3,
    }
    await train_validate(work.node, TrainValidate(config=config))
    (task,) = work.specs
    fields = {one.field: one for one in task.errors}
    assert set(fields) == {
        "learning_rate",
        "epochs",
        "batchsize",
        "early_stopping.patiance",
        "checkpointing.keep_best",
    }
    assert fields["batchsize"].hint == "Did you mean `batch_size`?"
    assert "got `str`" in fields["epochs"].message
    assert task.train.seed == 3
    assert task.train.base == str(work.lab.base.path)
    assert set(task.given) == {"dataset", "base", "learning_rate", "checkpointing", "seed"}


async def test_a_plan_reckons_with_nothing_that_can_not_be(work: Work) -> None:
    config = {"dataset": "mine", "base": "tiny", "lora_rank": 0, "early_stopping": {"patience": 0}}
    config |= {"gradient_accumulation_steps": 0}
    await train_validate(work.node, TrainValidate(config=config | {"epochs": 3}))
    (task,) = work.specs
    assert [one.field for one in task.errors] == [
        "lora_rank",
        "gradient_accumulation_steps",
        "early_stopping.patience",
    ]
    assert task.errors[0].message == "lora_rank 0 is not from 1 to 256"
    assert task.train.early_stopping.patience == 5
    assert task.train.epochs == 3
    assert task.train.gradient_accumulation_steps == 1, "a plan divides by it"


@pytest.mark.parametrize(("name", "wrong"), [("lora_rank", 0), ("lora_alpha", -1), ("rank", 0)])
async def test_a_refusal_names_what_was_asked_for(work: Work, name: str, wrong: int) -> None:
    with pytest.raises(ParamsInvalid, match=f"^{name} {wrong}") as refused:
        await train_start(work.node, TrainStart(dataset="mine", **{name: wrong}))
    assert refused.value.field == name


async def test_settings_alone_are_looked_at_too(work: Work) -> None:
    await train_validate(work.node, TrainValidate(config={"learning_rate": 1e-4}))
    await train_validate(work.node, TrainValidate(config={"learning_rate": 1e-4}, base="tiny"))
    await train_validate(work.node, TrainValidate(config={}, base="nowhere"))
    alone, based, wrong = work.specs
    assert (alone.train.base, alone.train.learning_rate, alone.errors) == ("", 1e-4, ())
    assert based.train.base == str(work.lab.base.path)
    assert [one.field for one in wrong.errors] == ["base"]


async def test_a_format_that_there_is_not() -> None:
    row = SimpleNamespace(id="adp_x", name="x")
    node = cast(Node, SimpleNamespace(registry=SimpleNamespace(adapter=lambda text: row)))
    with pytest.raises(ParamsInvalid) as wrong:
        await adapter_export(node, AdapterExport(adapter="x", path="/tmp/x", format="ggu"))
    assert wrong.value.hint == "Did you mean `gguf`?"
