"""Several processes make the steps of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchd.importers.conversation import Conversation
from orchd.lm.adapter import read_weights
from orchd.train import loop, runs
from orchd.train.curves import StepPoint, read_points, validations
from orchd.train.specs import Checkpointing, TrainSpec

from .conftest import MakeDataset, new_job
from .test_loop import spec


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launch(asked: TrainSpec, folder: Path) -> dict[str, Any]:
    """Two gloo processes; the result that the first one told."""
    file = folder.with_suffix(".json")
    file.write_bytes(msgspec.json.encode(asked))
    where = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *where, "-m", "orchd.train.launch", str(file), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TMPDIR": str(folder.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return next(one["result"] for one in told if one["event"] == "result")


def losses(run: Path) -> list[float]:
    points = read_points(run / runs.METRICS_FILE)
    return [point.loss for point in points if isinstance(point, StepPoint) and point.loss is not None]


def test_two_processes_have_the_losses_of_one(
    dataset: MakeDataset, reversals: list[Conversation], tmp_path: Path
) -> None:
    often = Checkpointing(interval=4, keep_best=1)
    asked = spec(dataset(reversals), steps=12, batch_size=9, checkpointing=often, run=str(tmp_path / "alone"))
    alone = new_job(tmp_path / "work")
    result = loop.run(asked, alone)
    told = launch(msgspec.structs.replace(asked, lora_dropout=None), tmp_path / "two")  # none among several processes
    one, two = losses(tmp_path / "alone"), losses(tmp_path / "two" / "run")
    assert len(one) == len(two) == 12
    assert two == pytest.approx(one, rel=1e-4)
    assert one[-1] < 0.8 * one[0]
    first, second = (
        validations(read_points(run / runs.METRICS_FILE)) for run in (tmp_path / "alone", tmp_path / "two" / "run")
    )
    assert [point.loss for point in second] == pytest.approx([point.loss for point in first], rel=1e-4)
    assert (told["steps"], told["tokens"], told["best_step"]) == (result.steps, result.tokens, result.best_step)
    before, after = read_weights(alone.workdir / "adapter"), read_weights(tmp_path / "two" / "adapter")
    assert max(float((after[name] - weight).abs().max()) for name, weight in before.items()) < 1e-3
