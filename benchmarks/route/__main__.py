"""The rows of routing. usage: python -m benchmarks.route [MODULE ...]

Each module of `MODULES` gives the rows that its docstring names; a few minutes on one core.
"""

from __future__ import annotations

import sys

from benchmarks.report import run_modules

MODULES = ("choice",)

if __name__ == "__main__":
    run_modules("route", MODULES, sys.argv[1:])
