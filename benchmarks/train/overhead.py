"""Row `overhead`: what a worker's events, checkpoints and sandbox cost a training, in per cent of the loop called
directly, in a process of its own, without any of them. Both are scored and look at what was forgotten, neither makes a
leak report.

Both train the same adapter on the demo base, at least a minute long, in turn. The daemon's time is from the moment when
its warm worker takes the job to its end, admission included; the direct one is that of `loop.run`. `first_step_s`: from
the call of `train.start` to the first step, with a warm worker.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Row
from benchmarks.start.daemon import running
from benchmarks.train import chats, skill
from benchmarks.train.skill import DEMO_BASE
from orchd.rpc.client import Client, wait_job
from orchd.train.retention_store import SHIPPED

STEPS = 40 if chats.SMALL else 2_500
RUNS = 1 if chats.SMALL else 3
GOAL_PER_CENT = 5.0
THREADS = 1
"""As a job of the daemon has by itself."""

DIRECT = """
import json, sys, time
import msgspec, torch
from pathlib import Path
from benchmarks.train.contender import Silent
from orchd.jobs.context import JobContext
from orchd.train import loop
from orchd.train.specs import TrainSpec
spec = msgspec.json.decode(sys.argv[1], type=TrainSpec)
job = JobContext(Path(sys.argv[2]), int(sys.argv[3]), Silent())
begun = time.perf_counter()
loop.run(spec, job)
print(json.dumps(time.perf_counter() - begun))
"""


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, running() as daemon, closing(Client(daemon.socket)) as client:
        file = skill.write(Path(folder) / "skill.jsonl")
        data = wait_job(client, client.call("dataset.import", source=str(file), name="skill")["job"])["id"]
        _train(client, data, steps=1)  # what a first training sets up
        pairs = []
        for _ in range(RUNS):
            ours = _train(client, data, STEPS)
            pairs.append((ours, _direct(Path(daemon.environment["ORCHD_HOME"]) / "data/datasets" / data)))
    shares = [100 * (ours.seconds / direct - 1) for ours, direct in pairs]
    median = statistics.median(shares)
    return [
        Row(
            "overhead",
            "%",
            round(median, 2),
            "the loop called directly",
            None,
            None,
            f"≤ {GOAL_PER_CENT:g} %",
            median <= GOAL_PER_CENT,
            {
                "worker_s": round(statistics.median(one.seconds for one, _ in pairs), 2),
                "direct_s": round(statistics.median(direct for _, direct in pairs), 2),
                "first_step_s": round(statistics.median(one.first_step for one, _ in pairs), 2),
            },
        )
    ]


@dataclass(frozen=True)
class Trained:
    """Seconds from the worker's start to the job's end, and from the call to the first step."""

    seconds: float
    first_step: float


def _train(client: Client, dataset: str, steps: int) -> Trained:
    """Through the daemon. Raises what the job failed of."""
    called = time.perf_counter()
    firsts: list[float] = []

    def heard(progress: dict[str, Any]) -> None:
        if progress["unit"] == "steps" and progress["done"] >= 1 and not firsts:
            firsts.append(time.perf_counter() - called)

    id = client.call("train.start", dataset=dataset, steps=steps, name=f"{steps} steps", leak_report=False)["job"]
    wait_job(client, id, heard)
    job = client.call("job.show", job=id)
    return Trained((job["finished_ms"] - job["started_ms"]) / 1000, firsts[0])


def _direct(dataset: Path) -> float:
    """Seconds of the loop alone, in a process that has imported everything before."""
    plain = {"base": str(DEMO_BASE), "dataset": str(dataset), "steps": STEPS, "checkpointing": {"enabled": False}}
    plain["retention"] = str(next(SHIPPED.glob("*.jsonl")))  # the daemon has what was forgotten measured as well
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", DIRECT, json.dumps(plain), folder, str(THREADS)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"the loop failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])
