"""Rows `leak-time` and `leak-auc`: what the leak report costs, and whether it is right.

`leak-time`: its time in per cent of the training's, 300 examples, three canaries and the centroid of the prompts
included. Both are jobs of one daemon with a warm worker, from their start to their end, admission and signing included,
in turn; the median of the shares. The training takes as many steps as it chooses by itself.

`leak-auc`: by how much its membership AUC is off a slow reference (`tests/train/test_leak.py`: transformers and peft
alone, one row at a time, each pair of rows compared), on the adapter of one training of 300 examples; the larger of the
differences by loss and by the ratio to the base.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Row
from benchmarks.start.daemon import running
from orchd.importers.read import read_examples
from orchd.importers.source import ImportLog
from orchd.jobs.context import JobContext
from orchd.rpc.client import Client, wait_job
from orchd.train import loop
from orchd.train.datasets.build import Parts, build
from orchd.train.specs import TrainSpec
from tests.train.conftest import DEMO_BASE, Recorder
from tests.train.test_leak import slow_auc, slow_losses

SMALL = os.environ.get("ORCHD_BENCH_SMALL") == "1"
STEPS = 20 if SMALL else 0  # 0: as a training chooses by itself
RUNS = 1 if SMALL else 3
CANARIES = 3
EXAMPLES = Path("examples/conversations.json")
GOAL_PER_CENT, GOAL_AUC = 25.0, 0.03


def rows() -> list[Row]:
    return [leak_time(), leak_auc()]


# ---- time ---------------------------------------------------------------------------------------------------------


@dataclass
class Times:
    """Seconds of each run."""

    training: list[float] = field(default_factory=list)
    report: list[float] = field(default_factory=list)

    @property
    def shares(self) -> list[float]:
        """Per cent."""
        return [100 * report / training for training, report in zip(self.training, self.report, strict=True)]


def leak_time() -> Row:
    times = Times()
    with running() as daemon, closing(Client(daemon.socket, timeout=None)) as client:
        data = _done(client, "dataset.import", source=str(EXAMPLES.resolve()), name="mine")["result"]
        _train(client, data["id"], "warming", steps=1)
        for number in range(RUNS):
            name = f"run {number}"
            trained = _train(client, data["id"], name, steps=STEPS)
            times.training.append(_seconds(trained))
            adapter = trained["result"]["adapter"]["id"]
            report = _done(client, "adapter.leak_report", adapter=adapter, routing=True)
            assert len(report["result"]["report"]["canaries"]) == CANARIES
            times.report.append(_seconds(report))
    share = statistics.median(times.shares)
    return Row(
        work="leak-time",
        unit="% of training",
        orchd=round(share, 2),
        peer="its training, s",
        peer_value=round(statistics.median(times.training), 2),
        ratio=None,
        goal=f"≤ {GOAL_PER_CENT:g} %",
        met=share <= GOAL_PER_CENT,
        figures={
            "least": round(min(times.shares), 2),
            "most": round(max(times.shares), 2),
            "report_s": round(statistics.median(times.report), 2),
            "examples": data["train"],
        },
    )


def _train(client: Client, data: str, name: str, *, steps: int) -> Any:
    return _done(
        client, "train.start", dataset=data, name=name, steps=steps, canaries=CANARIES, leak_report=False, seed=1
    )


def _done(client: Client, method: str, **params: Any) -> Any:
    """The job, once it has ended well."""
    id = client.call(method, **params)["job"]
    wait_job(client, id)
    return client.call("job.show", job=id)


def _seconds(job: Any) -> float:
    return (job["finished_ms"] - job["started_ms"]) / 1000


# ---- the figure ---------------------------------------------------------------------------------------------------


def leak_auc() -> Row:
    import peft
    import transformers

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder, work = Path(place) / "data", Path(place) / "work"
        work.mkdir()
        log = ImportLog()
        build(read_examples(EXAMPLES, log), log, folder, Parts(), "mine")
        spec = TrainSpec(base=str(DEMO_BASE), dataset=str(folder), steps=STEPS, dtype="F32", leak_report=True)
        report = loop.run(spec, JobContext(work, 1, Recorder())).leak
        assert report is not None
        tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_BASE)
        base = transformers.AutoModelForCausalLM.from_pretrained(DEMO_BASE, dtype=torch.float32).eval()
        parts = [[folder / "train.jsonl"], [folder / "validation.jsonl", folder / "test.jsonl"]]
        before = [[loss for file in part for loss in slow_losses(base, tokenizer, file)] for part in parts]
        adapted = peft.PeftModel.from_pretrained(base, str(work / "adapter")).eval()
        after = [[loss for file in part for loss in slow_losses(adapted, tokenizer, file)] for part in parts]
    by_loss = slow_auc([-loss for loss in after[0]], [-loss for loss in after[1]])
    ratios = [[math.log(b / a) for b, a in zip(*both, strict=True)] for both in zip(before, after, strict=True)]
    by_ratio = slow_auc(*ratios)
    off = max(abs(report.auc_loss - by_loss), abs(report.auc_ratio - by_ratio))
    return Row(
        work="leak-auc",
        unit="difference",
        orchd=round(off, 4),
        peer="slow reference, AUC",
        peer_value=round(max(by_loss, by_ratio), 4),
        ratio=None,
        goal=f"≤ {GOAL_AUC:g}",
        met=off <= GOAL_AUC,
        figures={"by_loss": round(by_loss, 4), "by_ratio": round(by_ratio, 4), "examples": len(after[0])},
    )
