"""`python -m tests.environment.import_worker`: a worker whose one job is to import a module and say its version."""

from __future__ import annotations

import importlib
import sys

import msgspec

from orchd import worker
from orchd.jobs.context import JobContext
from orchd.jobs.kinds import Kind

HERE = "tests.environment.import_worker"
COMMAND = (sys.executable, "-m", HERE)


class Import(msgspec.Struct, frozen=True, kw_only=True):
    module: str


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    version: str


def run(spec: Import, job: JobContext) -> Imported:
    return Imported(version=importlib.import_module(spec.module).VERSION)


KINDS = {
    "train": Kind(f"{HERE}:run", f"{HERE}:Import", f"{HERE}:Imported", warm=True, sets_up=True),
    "look": Kind(f"{HERE}:run", f"{HERE}:Import", f"{HERE}:Imported", warm=True),
}

if __name__ == "__main__":
    worker.WARM_MODULES = ()
    worker.leave(worker.main(kinds=KINDS))
