"""The rows of training. usage: python -m benchmarks.train [MODULE ...]

Each module of `MODULES` gives the rows that its docstring names; without arguments all run. `ORCHD_BENCH_SMALL=1` runs
them small, to see that they work: their figures mean nothing then.
"""

from __future__ import annotations

import sys

from benchmarks.report import run_modules

MODULES = (
    "quality",
    "steps",
    "leaks",
)

if __name__ == "__main__":
    run_modules("train", MODULES, sys.argv[1:])
