"""Every command shows its method's real result: one is made from the result's type, full and as empty as it may be."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from orchd import notes
from orchd.average.specs import AveragePlan
from orchd.cli.command import Command
from orchd.cli.run import load
from orchd.cli.table import NOUNS
from orchd.environment.environment import State
from orchd.leaks import LeakShown
from orchd.measuring import Attested
from orchd.registry.exchange import Exported
from orchd.registry.rebuild import Rebuilt
from orchd.rpc import methods_adapters, methods_base_add, methods_exchange
from orchd.rpc.methods import TABLE
from orchd.rpc.methods_registry import ScrubDone
from orchd.train import plan_specs
from orchd.train.datasets import export, specs
from orchd.train.specs import EvaluateResult

JOB_RESULTS: dict[str, Any] = {
    "environment.make": State,
    "environment.repair": State,
    "dataset.import": notes.DatasetShown,
    "dataset.create": notes.DatasetShown,
    "dataset.prepare": notes.DatasetShown,
    "dataset.validate": specs.ValidateResult,
    "dataset.preview": specs.Preview,
    "dataset.stats": specs.Stats,
    "dataset.export": export.Exported,
    "train.plan": plan_specs.Plan,
    "train.validate": plan_specs.Validation,
    "train.start": notes.Trained,
    "train.resume": notes.Trained,
    "train.continue_from": notes.Trained,
    "average.start": notes.Averaged,
    "average.plan": AveragePlan,
    "average.preview": AveragePlan,
    "average.verify": notes.AverageVerified,
    "adapter.evaluate": EvaluateResult,
    "adapter.compare": EvaluateResult,
    "adapter.attest": Attested,
    "adapter.leak_report": LeakShown,
    "adapter.fetch": methods_adapters.Fetched,
    "adapter.export": Exported,
    "adapter.import": methods_exchange.AdaptersImported,
    "base.add": methods_base_add.BaseAdded,
    "deploy.start": notes.DeploymentRow,
    "registry.scrub": ScrubDone,
    "registry.rebuild": Rebuilt,
}
PARITY = {"held": True, "detail": "all equal"}
OWN_WAYS = {"rpc.discover", "events.subscribe", "chat.complete", "job.report"}
"""Shown by code of their own, tested elsewhere."""

COMMANDS = [
    command
    for noun in NOUNS
    if noun != "demo"
    for command in load(noun)
    if command.method and command.method not in OWN_WAYS
]


def example(kind: Any, full: bool) -> Any:
    """A plain value of a type; optional parts are there when `full`."""
    match kind:
        case msgspec.inspect.UnionType(types=types):
            some = [t for t in types if not isinstance(t, msgspec.inspect.NoneType)]
            return example(some[0], full) if full or len(some) == len(types) else None
        case msgspec.inspect.StructType(fields=fields):
            return {f.encode_name: example(f.type, full) for f in fields}
        case msgspec.inspect.ListType(item_type=item) | msgspec.inspect.VarTupleType(item_type=item):
            return [example(item, full)] if full else []
        case msgspec.inspect.DictType(value_type=value):
            return {"loss": example(value, full)} if full else {}
        case msgspec.inspect.EnumType(cls=cls):
            return next(iter(cls)).value
        case msgspec.inspect.LiteralType(values=values):
            return values[0]
        case msgspec.inspect.IntType():
            return 3
        case msgspec.inspect.FloatType():
            return 0.25
        case msgspec.inspect.BoolType():
            return full
        case msgspec.inspect.StrType():
            return "text" if full else ""
        case msgspec.inspect.AnyType():
            return PARITY if full else None
    raise AssertionError(kind)


@pytest.mark.parametrize("full", [True, False], ids=["full", "empty"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.method)
def test_the_result_is_shown(command: Command, full: bool) -> None:
    result_type = JOB_RESULTS.get(command.method) if command.job else TABLE[command.method].result
    assert result_type is not None, f"{command.method} starts a job: add its result above"
    made = json.loads(json.dumps(example(msgspec.inspect.type_info(result_type), full)))
    msgspec.convert(made, result_type)
    shown = command.human(made)
    assert shown or not full
    assert "None" not in shown
    assert command.verdict is None or command.verdict(made) in ((0,) if full else (1, 4))
