"""The rows of averaging. usage: python -m benchmarks.average [MODULE ...]

Each module of `MODULES` gives the rows that its docstring names; without arguments all run, about half an hour on two
cores, nearly all of it PEFT's. They want 4 GB of memory and 2 GB of disk in the folder for temporary files.
`rounds` trains 63,000 steps in all, which takes hours; `ORCHD_BENCH_SEEDS=1` takes one seed instead of five.
`ORCHD_BENCH_SMALL=1` runs them on small shapes, to see that they work: their figures mean nothing then.
"""

from __future__ import annotations

import sys

from benchmarks.report import run_modules

MODULES = ("speed", "memory", "error", "oneshot", "rounds")

if __name__ == "__main__":
    run_modules("average", MODULES, sys.argv[1:])
