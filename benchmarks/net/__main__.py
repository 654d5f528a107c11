"""The rows of the network. usage: python -m benchmarks.net [MODULE ...]

Each module of `MODULES` gives the rows that its docstring names; without arguments all run.
"""

from __future__ import annotations

import sys

from benchmarks.report import run_modules

MODULES = ("fetch", "providers", "reach", "churn", "idle", "sim")

if __name__ == "__main__":
    run_modules("net", MODULES, sys.argv[1:])
