"""Which jobs keep a data set from being deleted."""

from __future__ import annotations

import msgspec
import pytest

from orchd.rpc.methods_data import names
from orchd.train.plan_specs import PlanSpec
from orchd.train.specs import EvaluateSpec, LeakSpec, TrainSpec

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
