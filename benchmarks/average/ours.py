"""orchd's average in a process of its own. usage: python -m benchmarks.average.ours OUT ADAPTER...

Prints JSON: seconds on the clock and of the processor, and the largest resident memory in MB. Python's start and
numpy's import are in the memory and not in the seconds.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.average.shapes import RANK, job
from orchd.average.specs import AverageSpec, WeightedAdapter
from orchd.average.worker import run


def average(out: Path, folders: Sequence[Path]) -> dict[str, float]:
    """Run this file on the folders."""
    command = [sys.executable, "-m", "benchmarks.average.ours", str(out), *map(str, folders)]
    told: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return told


def main(out: str, *folders: str) -> None:
    leaves = tuple(WeightedAdapter(id=f"{place:04}", path=path) for place, path in enumerate(folders))
    clock, processor = time.perf_counter(), time.process_time()
    run(AverageSpec(adapters=leaves, rank=RANK), job(Path(out)))
    told = {"seconds": time.perf_counter() - clock, "cpu": time.process_time() - processor}
    print(json.dumps(told | {"mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}))


if __name__ == "__main__":
    main(*sys.argv[1:])
