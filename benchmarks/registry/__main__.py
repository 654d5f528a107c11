"""The rows of the registry. usage: python -m benchmarks.registry [MODULE ...]

Each module of `MODULES` gives the rows that its docstring names; without arguments all run. What is compared runs in
turn within one process, so that a busy moment of the machine hits both.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.report import Row, machine, publish

MODULES = ("door", "receive", "rebuilding", "search", "show", "memory", "killing", "full_disk")


def main(wanted: list[str]) -> None:
    if strange := set(wanted) - set(MODULES):
        raise SystemExit(f"no rows {', '.join(sorted(strange))}; there are {', '.join(MODULES)}")
    about = machine()
    rows: list[Row] = []
    for name in wanted or MODULES:
        rows.extend(import_module(f"benchmarks.registry.{name}").rows())
    publish("registry", about, rows)


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent.parent)
    main(sys.argv[1:])
