"""The rows of training. usage: python -m benchmarks.train [MODULE ...]

Each module of `MODULES` gives the rows that its docstring names; without arguments all run, about an hour on two cores.
`ORCHD_BENCH_SMALL=1` runs them on a toy model, to see that they work: their figures mean nothing then.
`speed` needs `pip install -r benchmarks/train/requirements.txt`.
"""

from __future__ import annotations

import sys

from benchmarks.report import run_modules

MODULES = (
    "speed",
    "overhead",
    "resume",
    "quality",
    "steps",
    "rates",
    "leaks",
)

if __name__ == "__main__":
    run_modules("train", MODULES, sys.argv[1:])
