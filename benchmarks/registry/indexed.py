"""The home of a node with a hundred thousand adapters and an index over them, made once for all rows of a run.

The index is made in a process of its own, which tells what that cost; it is what `rebuild-100k` shows. Peers'
announcements and a hundred followed authors are put in afterwards.
"""

from __future__ import annotations

import atexit
import json
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import NamedTuple

from benchmarks.registry import many
from orchd.registry.local import put
from orchd.registry.local_rows import Trust
from orchd.registry.rebuild import rebuild
from orchd.registry.registry import Registry

FOLLOWED = 100


class Cost(NamedTuple):
    """Seconds, the seconds of processor time of all processes and of the first one alone, and its peak in MB."""

    wall: float
    cpu: float
    own_cpu: float
    peak_mb: float


class Home(NamedTuple):
    """`path` is what ORCHD_HOME would be. `made` is the cost of the index made from nothing, `again` of `rebuild`."""

    path: Path
    made: Cost
    again: Cost

    @property
    def data(self) -> Path:
        return self.path / "data"


@cache
def home() -> Home:
    """Thrown away when this process ends. Rows use it one after the other."""
    stack = ExitStack()
    atexit.register(stack.close)
    data = stack.enter_context(many.data_folder())
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.registry.indexed", str(data)], stdout=subprocess.PIPE, check=True
    )
    made, again = (Cost(*cost) for cost in json.loads(told.stdout))
    return Home(data.parent, made, again)


def open_registry(data: Path) -> Registry:
    return Registry.open(data, lambda: many.NOW_MS, many.me().author)


def follow_some(registry: Registry) -> None:
    """A node that has opinions: the most productive authors are followed."""
    authors = registry.index.read(
        "SELECT author FROM adapter GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT ?", (FOLLOWED,)
    )
    rows = [
        Trust(subject=author, kind="author", verdict="follow", note="", auto_update=False, since=0)
        for (author,) in authors
    ]
    registry.local.act("trust.follow", *map(put, rows))
    registry.people.forget()
    registry.restand()


class _Meter:
    """Costs of what comes one after the other."""

    def __init__(self) -> None:
        self._before = self._now()

    def lap(self) -> Cost:
        before, self._before = self._before, self._now()
        wall, own, children = (after - was for after, was in zip(self._before, before, strict=True))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        return Cost(wall, own + children, own, peak)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.perf_counter(), time.process_time(), children.ru_utime + children.ru_stime


def main(data: Path) -> None:
    meter = _Meter()
    registry = open_registry(data)
    made = meter.lap()
    rebuild(registry)
    again = meter.lap()
    many.fill_announcements(registry)
    follow_some(registry)
    registry.close()
    print(json.dumps([made, again]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
