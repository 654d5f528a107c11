"""The fixed table of job kinds. A worker runs what this table names and nothing else.

Only names stand here, so that the daemon reads the table without loading any of the rooms it points at.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from orchd.jobs.sandbox.report import Sockets


class Kind(NamedTuple):
    """`function`, `spec` and `result` are "module:name"; `warm` says that a process with torch loaded is worth it.

    `nice` is how far its process is behind others; somebody waits for the answers of one with 0.

    `sockets` are those that it can't do without: "own" where it listens on a Unix socket in its folder and connects to
    none, "unix" where it connects to that one as well (which can't be told from others), "loopback" where its processes
    talk to each other over a `lo` of theirs.

    `sets_up`: what it needs is downloaded for it where it is not installed; other jobs say how to have it.

    A `short` one does not wait for others than its like: somebody sits there and wants to see what comes out.

    With `resumes` the same spec goes on where an earlier process stopped; it is the command that has it done by hand.
    """

    function: str
    spec: str
    result: str
    warm: bool = False
    resumes: str = ""
    nice: int = 10
    sockets: Sockets = "none"
    sets_up: bool = False
    short: bool = False


Kinds = Mapping[str, Kind]

KINDS: Kinds = {
    "dataset.import": Kind(
        "orchd.train.datasets.worker:run",
        "orchd.train.datasets.specs:ImportSpec",
        "orchd.train.datasets.specs:ImportResult",
        short=True,
    ),
    "dataset.validate": Kind(
        "orchd.train.datasets.worker:run_validate",
        "orchd.train.datasets.specs:ValidateSpec",
        "orchd.train.datasets.specs:ValidateResult",
        short=True,
    ),
    "dataset.prepare": Kind(
        "orchd.train.datasets.worker:run_prepare",
        "orchd.train.datasets.specs:PrepareSpec",
        "orchd.train.datasets.specs:ImportResult",
        short=True,
    ),
    "dataset.preview": Kind(
        "orchd.train.datasets.view:run_preview",
        "orchd.train.datasets.specs:PreviewSpec",
        "orchd.train.datasets.specs:Preview",
        warm=True,
        short=True,
    ),
    "dataset.stats": Kind(
        "orchd.train.datasets.view:run_stats",
        "orchd.train.datasets.specs:StatsSpec",
        "orchd.train.datasets.specs:Stats",
        warm=True,
        short=True,
    ),
    "train": Kind(
        "orchd.train.loop:run",
        "orchd.train.specs:TrainSpec",
        "orchd.train.specs:TrainResult",
        warm=True,
        resumes="orchctl train resume",
        sets_up=True,
    ),
    "train.plan": Kind(
        "orchd.train.planner:run_plan",
        "orchd.train.plan_specs:PlanSpec",
        "orchd.train.plan_specs:Plan",
        warm=True,
        short=True,
    ),
    "train.validate": Kind(
        "orchd.train.planner:run_validate",
        "orchd.train.plan_specs:ValidateSpec",
        "orchd.train.plan_specs:Validation",
        warm=True,
        short=True,
    ),
    "evaluate": Kind(
        "orchd.train.evaluate:run",
        "orchd.train.specs:EvaluateSpec",
        "orchd.train.specs:EvaluateResult",
        warm=True,
    ),
    "leak": Kind(
        "orchd.train.leak.worker:run",
        "orchd.train.specs:LeakSpec",
        "orchd.train.specs:LeakResult",
        warm=True,
    ),
    "base.unpack": Kind(
        "orchd.train.unpack:run",
        "orchd.train.specs:UnpackSpec",
        "orchd.train.specs:UnpackResult",
        warm=True,
    ),
    "average": Kind(
        "orchd.judging.job:run",
        "orchd.average.specs:AverageSpec",
        "orchd.average.specs:AverageResult",
    ),
    "average.plan": Kind(
        "orchd.judging.job:run_plan",
        "orchd.average.specs:PlanSpec",
        "orchd.average.specs:AveragePlan",
    ),
    "average.round": Kind(
        "orchd.average.round_worker:run",
        "orchd.average.rounds_specs:RoundSpec",
        "orchd.average.rounds_specs:RoundResult",
    ),
    "average.verify_round": Kind(
        "orchd.average.round_worker:run_verify",
        "orchd.average.rounds_specs:VerifyRoundSpec",
        "orchd.average.specs:VerifyResult",
    ),
    "average.verify": Kind(
        "orchd.average.worker:run_verify",
        "orchd.average.specs:VerifySpec",
        "orchd.average.specs:VerifyResult",
        short=True,
    ),
    "deploy": Kind(
        "orchd.serve.build:run",
        "orchd.serve.specs:BuildSpec",
        "orchd.serve.specs:BuildResult",
        warm=True,
        sockets="unix",
    ),
    "adapter.export": Kind(
        "orchd.serve.export:run",
        "orchd.serve.specs:ExportSpec",
        "orchd.serve.specs:ExportResult",
        warm=True,
    ),
    "chat": Kind(
        "orchd.serve.embedded_worker:run",
        "orchd.serve.specs:ChatSpec",
        "orchd.serve.specs:ChatEnd",
        nice=0,
        sockets="own",
    ),
    "route": Kind(
        "orchd.serve.route_worker:run",
        "orchd.serve.routes:RouteSpec",
        "orchd.serve.routes:RouteEnd",
        nice=0,
    ),
}


def load(name: str) -> Any:
    """The object that a "module:name" of the table stands for. Imports its module."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def struct(name: str) -> type[msgspec.Struct]:
    """The Struct that a "module:name" of the table stands for."""
    found = load(name)
    if not (isinstance(found, type) and issubclass(found, msgspec.Struct)):
        raise TypeError(f"{name} is not a msgspec.Struct")
    return found
