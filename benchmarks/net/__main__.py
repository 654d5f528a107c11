"""The rows of the network. usage: python -m benchmarks.net [MODULE ...]

Each module of `MODULES` gives the rows that its docstring names; without arguments all run.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.report import Row, machine, publish

MODULES = ("fetch", "providers", "reach", "churn", "idle", "sim")


def main(wanted: list[str]) -> None:
    if strange := set(wanted) - set(MODULES):
        raise SystemExit(f"no rows {', '.join(sorted(strange))}; there are {', '.join(MODULES)}")
    about = machine()
    rows: list[Row] = []
    for name in wanted or MODULES:
        rows.extend(import_module(f"benchmarks.net.{name}").rows())
    publish("net", about, rows)


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent.parent)
    main(sys.argv[1:])
