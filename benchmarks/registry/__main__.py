"""The rows of the registry. usage: python -m benchmarks.registry [MODULE ...]

Each module of `MODULES` gives the rows that its docstring names; without arguments all run. What is compared runs in
turn within one process, so that a busy moment of the machine hits both.
"""

from __future__ import annotations

import sys

from benchmarks.report import run_modules

MODULES = ("door", "receive", "rebuilding", "search", "show", "memory", "killing", "full_disk")

if __name__ == "__main__":
    run_modules("registry", MODULES, sys.argv[1:])
