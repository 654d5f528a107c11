"""Row `resume`: bytes that differ between the adapter of a training that was killed and went on, again and again, and
that of one that nobody disturbed.

The process is killed by SIGKILL after a time drawn with seed 0, in the middle of whatever it does then, until one gets
to the end. `kills` says how often.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.report import Row
from benchmarks.train import chats, skill
from benchmarks.train.skill import DEMO_BASE
from orchd.importers.conversation import Conversation, Message
from orchd.importers.source import ImportLog
from orchd.train.datasets.build import Parts, build
from orchd.train.specs import Checkpointing, TrainSpec

STEPS = 60 if chats.SMALL else 600
EVERY = 5  # steps between two checkpoints
KILL_SECONDS = (0.3, 2.0) if chats.SMALL else (1.0, 8.0)
"""After the first checkpoint of a process, or after it has gone on from one."""

MOST_KILLS = 5 if chats.SMALL else 50
TRAIN = """
import os, sys
import msgspec
from pathlib import Path
from benchmarks.train.contender import Silent
from orchd.jobs.context import JobContext
from orchd.train import loop
from orchd.train.specs import TrainSpec

class Telling(Silent):
    def send(self, message):
        if message.get("done"):
            print("step", flush=True)

loop.run(msgspec.json.decode(sys.argv[1], type=TrainSpec), JobContext(Path(sys.argv[2]), 1, Telling()))
"""


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        data = _dataset(folder)
        whole, _ = _train(_spec(data, folder / "whole"), folder / "a", None)
        rng = random.Random(0)
        killed, kills = None, 0
        while killed is None:
            after = rng.uniform(*KILL_SECONDS) if kills < MOST_KILLS else None
            killed, was = _train(_spec(data, folder / "killed"), folder / f"b{kills}", after)
            kills += was
    differ = abs(len(whole or b"") - len(killed)) + sum(a != b for a, b in zip(whole or b"", killed, strict=False))
    figures = {"kills": float(kills), "bytes": float(len(killed))}
    met = differ == 0 and kills > 0
    return [Row("resume", "bytes that differ", differ, "not disturbed", None, None, "none", met, figures)]


def _dataset(folder: Path) -> Path:
    file = skill.write(folder / "skill.jsonl")
    rows = [
        Conversation(id=str(number), messages=tuple(msgspec.convert(json.loads(line)["messages"], tuple[Message, ...])))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines())
    ]
    build(rows, ImportLog(), folder / "data", Parts(), "skill")
    return folder / "data"


def _spec(data: Path, run: Path) -> TrainSpec:
    often = Checkpointing(interval=EVERY)
    return TrainSpec(
        base=str(DEMO_BASE), dataset=str(data), run=str(run), steps=STEPS, lora_dropout=0.1, checkpointing=often
    )


def _train(spec: TrainSpec, workdir: Path, kill_after: float | None) -> tuple[bytes | None, bool]:
    """The adapter's bytes, or None where the process was killed so many seconds after its first step."""
    workdir.mkdir()
    plain = msgspec.json.encode(spec).decode()
    environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, plain, str(workdir)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    if kill_after is not None and process.stdout.readline():
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
    process.communicate()
    if process.returncode == -signal.SIGKILL:
        return None, True
    if process.returncode:
        raise SystemExit("the training failed")
    return (workdir / "adapter" / "adapter_model.safetensors").read_bytes(), False
