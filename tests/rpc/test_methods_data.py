"""Which jobs keep a data set from being deleted, and how the list of them is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from orchd.errors import ParamsInvalid
from orchd.node import Node
from orchd.registry import DatasetRow
from orchd.registry.own import Datasets
from orchd.rpc.methods_data import DatasetList, dataset_list, names
from orchd.train.plan_specs import PlanSpec
from orchd.train.specs import EvaluateSpec, LeakSpec, TrainSpec
from tests.helpers import Lab

FOLDER, OTHER = "/data/datasets/dst_a", "/data/datasets/dst_b"
TRAINING = TrainSpec(base="/base", dataset=FOLDER)


@pytest.mark.parametrize(
    "spec",
    [
        TRAINING,
        TrainSpec(base="/base", dataset=OTHER, learnt_before=(FOLDER,)),
        PlanSpec(train=TRAINING, command=""),
        EvaluateSpec(base="/base", adapters=(), dataset=FOLDER),
        LeakSpec(base="/base", adapter="/adapter", datasets=(OTHER, FOLDER)),
    ],
)
def test_whatever_reads_it_counts(spec: msgspec.Struct) -> None:
    assert names(msgspec.to_builtins(spec), FOLDER)
    assert not names(msgspec.to_builtins(spec), "/data/datasets/dst_c")


def row(id: str, made: int) -> DatasetRow:
    counts = {"train": 8, "validation": 1, "test": 1, "skipped": 0}
    return DatasetRow(id=id, name=id, kind="qa", warnings=(), created_ms=made, **counts)


async def test_data_sets_come_by_the_page(lab: Lab) -> None:
    held = Datasets(lab.registry.local, lab.root / "datasets", lambda: lab.now_ms)
    node = cast(Node, SimpleNamespace(datasets=held))
    for id, made in (("dst_b", 1), ("dst_a", 2), ("dst_c", 2)):
        (lab.root / id).mkdir()
        held.add(row(id, made), lab.root / id)
    first = await dataset_list(node, DatasetList(limit=2))
    assert [one.id for one in first.datasets] == ["dst_c", "dst_a"]
    held.remove("dst_a")
    rest = await dataset_list(node, DatasetList(limit=2, cursor=first.cursor))
    assert ([one.id for one in rest.datasets], rest.cursor) == (["dst_b"], None), "where it ended may be gone"


@pytest.mark.parametrize(
    ("asked", "field"), [({"limit": 0}, "limit"), ({"cursor": "dst_a"}, "cursor"), ({"cursor": "12-"}, "cursor")]
)
async def test_a_page_that_is_none_is_refused(asked: dict[str, Any], field: str) -> None:
    with pytest.raises(ParamsInvalid) as refused:
        await dataset_list(cast(Node, None), DatasetList(**asked))
    assert refused.value.field == field
