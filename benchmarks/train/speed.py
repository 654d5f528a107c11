"""Rows `tokens-vs-hf-padmax`, `tokens-vs-hf-pad`, `tokens-vs-trl` and `memory-vs-hf`: how fast chats are learnt.

Each contender has a process of its own and the machine to itself; they take turns, and a row's ratio is the median of
the ratios within a round. Tokens are real ones, prompts included, never padding; the first step, which warms up, does
not count. All start from the same weights and see the same rows in the same order, so the loss curves are printed
beside each other, and `loss_gap` is the largest difference of two steps (not for TRL, which packs other rows into a
step).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass

from benchmarks.report import Row
from benchmarks.train import chats

ROUNDS = 1 if chats.SMALL else 3
GOALS = {"hf-padmax": 3.0, "hf-pad": 1.3, "trl": None}
PEERS = {
    "hf-padmax": f"HF Trainer, padding to {chats.LONGEST:,}",
    "hf-pad": "HF Trainer, padding to the pass",
    "trl": "TRL, packing",
}


@dataclass(frozen=True)
class Run:
    """Real tokens a second, the losses by step (nats a counted token), and the most memory (bytes)."""

    speed: float
    losses: list[float]
    peak: int


def rows() -> list[Row]:
    names = ("orchd", *PEERS)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(ROUNDS):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            runs[name].append(measured(name))
    ours = runs["orchd"]
    print(f"losses by step, orchd: {_told(ours[0].losses)}")
    for name in PEERS:
        print(f"losses by step, {name}: {_told(runs[name][0].losses)}")
    return [*(_speed(name, ours, runs[name]) for name in PEERS), _memory(ours, runs["hf-pad"])]


def measured(name: str) -> Run:
    """One contender in a process of its own. Raises `SystemExit` with what it said where it fails."""
    threads = str(chats.THREADS)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train.contender", name],
        env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    ends = [step["seconds"] for step in told["steps"]]
    counts = [step["tokens"] for step in told["steps"]]
    drawn = sum(
        len(one.ids) for one in chats.order(chats.rows())[chats.ROWS_A_STEP :]
    )  # without those of the first step
    tokens = drawn if counts[0] is None else counts[-1] - counts[0]
    return Run(tokens / (ends[-1] - ends[0]), [step["loss"] for step in told["steps"]], told["peak_bytes"])


def _speed(name: str, ours: list[Run], theirs: list[Run]) -> Row:
    ratio = statistics.median(a.speed / b.speed for a, b in zip(ours, theirs, strict=True))
    goal = GOALS[name]
    figures = {} if name == "trl" else {"loss_gap": _gap(ours[0], theirs[0])}
    return Row(
        f"tokens-vs-{name}",
        "real tokens/s",
        round(statistics.median(one.speed for one in ours), 1),
        PEERS[name],
        round(statistics.median(one.speed for one in theirs), 1),
        round(ratio, 3),
        "told, no goal" if goal is None else f"≥ {goal:g} times",
        goal is None or ratio >= goal,
        {"last_loss": ours[0].losses[-1], "peer_last_loss": theirs[0].losses[-1], **figures},
    )


def _memory(ours: list[Run], theirs: list[Run]) -> Row:
    mine, other = (statistics.median(one.peak for one in runs) / 1e6 for runs in (ours, theirs))
    return Row(
        "memory-vs-hf",
        "MB",
        round(mine),
        PEERS["hf-pad"],
        round(other),
        round(other / mine, 3),
        "not above",
        mine <= other,
    )


def _gap(one: Run, other: Run) -> float:
    return round(max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True)), 4)


def _told(losses: list[float]) -> str:
    return " ".join(f"{loss:.3f}" for loss in losses)
