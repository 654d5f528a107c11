"""The rows of serving. usage: python -m benchmarks.serve [MODULE ...]

Each module of `MODULES` gives the rows that its docstring names; without arguments all run.
"""

from __future__ import annotations

import sys

from benchmarks.report import run_modules

MODULES = ("parity", "merge", "first_token")

if __name__ == "__main__":
    run_modules("serve", MODULES, sys.argv[1:])
