"""Row `first-token`: from starting `orchctl chat` until the first letter of the answer, with a warm daemon.

The demo base is deployed and has answered once. `starting` is how long `orchctl --version` takes of it.
"""

from __future__ import annotations

import statistics
import subprocess
import time

from benchmarks.report import Row
from benchmarks.start.daemon import PROGRAMS, Daemon, running

RUNS = 5
LIMIT_S = 3.0
ASKED = "copy: cat sun key"


def rows() -> list[Row]:
    with running() as daemon:
        subprocess.run(
            [PROGRAMS / "orchctl", "deploy", "--name", "plain", "--quiet"],
            env=daemon.environment,
            check=True,
            capture_output=True,
        )
        _first(daemon)
        found = [_first(daemon) for _ in range(RUNS)]
        starting = statistics.median(_starting(daemon) for _ in range(RUNS))
    seconds = statistics.median(found)
    return [
        Row(
            work="first-token",
            unit="s",
            orchd=float(f"{seconds:.4g}"),
            peer="—",
            peer_value=None,
            ratio=None,
            goal=f"at most {LIMIT_S:g} s",
            met=seconds <= LIMIT_S,
            figures={"starting": float(f"{starting:.4g}"), "worst": float(f"{max(found):.4g}"), "runs": float(RUNS)},
        )
    ]


def _first(daemon: Daemon) -> float:
    start = time.perf_counter()
    command = [PROGRAMS / "orchctl", "chat", "plain", ASKED]
    with subprocess.Popen(command, env=daemon.environment, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        letter = process.stdout.read(1)
        took = time.perf_counter() - start
        process.stdout.read()
    if process.returncode != 0 or not letter.strip():
        raise SystemExit("`orchctl chat` gave no answer")
    return took


def _starting(daemon: Daemon) -> float:
    start = time.perf_counter()
    subprocess.run([PROGRAMS / "orchctl", "--version"], env=daemon.environment, check=True, capture_output=True)
    return time.perf_counter() - start
