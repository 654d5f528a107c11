"""Whether a job's worker still answers: how long it has told nothing, whether it computes meanwhile, how long it may.

A worker shows that it is alive by its progress, its log, and the line that `JobContext.check` sends now and then: all
from the thread that does the work, so that one that hangs shows nothing. Seconds are of a clock that stands still
while the machine is suspended (`trio.current_time`: CLOCK_MONOTONIC); where the daemon's own ticks come late, because
it was stopped itself, nobody was silent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from orchd.errors import WorkerLost, WorkerSilent
from orchd.jobs.process import WorkerProcess

TICK_SECONDS: Final = 5.0
"""How often it is looked at."""

GAP_SECONDS: Final = 30.0
"""A tick that comes so late says that this process did not run: the silence begins anew."""

TOLD_SHARE: Final = 0.2
"""After this share of the time that ends a worker, its job says that it is silent: after a minute of five."""

STEPPING: Final = ("training", "validating")
"""Phases in which it answers at every pass through the base."""

OTHER_TIMES: Final = 3
"""So many times the limit is allowed in other phases: a base is loaded, or a file written, in one piece."""

LONGEST_TIMES: Final = 20
"""So many times as long as the phase's longest stretch of work here is allowed too, for a step that takes minutes."""

COMPUTING_TIMES: Final = 10
"""So many times as long is allowed while it uses the processor: a step is slow when the machine is busy elsewhere."""


class Silence:
    """One worker's. `limit_s`: seconds without a word and without work that end it while it trains; 0: never.

    `silent_s`: since it last said something; `idle_s`: for how long it has used no processor time, up to now."""

    def __init__(self, limit_s: float, now_s: float) -> None:
        self._limit_s = limit_s
        self._at = now_s
        self._longest: dict[str, float] = {}
        self._cpu_s: float | None = None
        self.phase = ""
        self.silent_s = 0.0
        self.idle_s = 0.0
        self.told = False

    def heard(self, now_s: float, phase: str | None = None) -> None:
        """The worker said something; `phase` where it named one."""
        self.passed(now_s)
        worked = self.silent_s if self._cpu_s is None else self.silent_s - self.idle_s
        self._longest[self.phase] = max(worked, self._longest.get(self.phase, 0.0))
        self.phase = self.phase if phase is None else phase
        self._begin()

    def passed(self, now_s: float) -> bool:
        """Count the time up to now; whether this process itself has stood still."""
        late = now_s - self._at
        self._at = now_s
        if late > GAP_SECONDS:
            self._begin()
            return True
        self.silent_s += late
        return False

    def tick(self, now_s: float, cpu_s: float | None) -> bool:
        """Look at it, with the processor time that it has used up to now (None: not known). As `passed`."""
        before = self.silent_s
        if self.passed(now_s):
            return True
        if cpu_s is None or (self._cpu_s is not None and cpu_s <= self._cpu_s):
            self.idle_s += self.silent_s - before
        else:
            self.idle_s = 0.0
        self._cpu_s = cpu_s
        return False

    @property
    def end_s(self) -> float:
        """After so many seconds without work it is ended in this phase."""
        limit = self._limit_s * (1 if self.phase in STEPPING else OTHER_TIMES)
        return max(limit, LONGEST_TIMES * self._longest.get(self.phase, 0.0))

    @property
    def share(self) -> float:
        """Of what it may: 1 ends it."""
        if not self._limit_s:
            return 0.0
        return max(self.idle_s / self.end_s, self.silent_s / (COMPUTING_TIMES * self.end_s))

    @property
    def words(self) -> str:
        doing = f" while {self.phase}" if self.phase else ""
        computing = f"computed nothing for {self.idle_s:.0f} s" if self._stands_still else "goes on computing"
        return f"has said nothing for {self.silent_s:.0f} s{doing}, and {computing}"

    @property
    def told_words(self) -> str:
        left = (1 - self.share) / self.share * (self.idle_s if self._stands_still else self.silent_s)
        return f"the worker {self.words}; it is ended in {left:.0f} s"

    @property
    def _stands_still(self) -> bool:
        return self.idle_s / self.end_s == self.share

    def error(self, pid: int) -> WorkerSilent:
        return WorkerSilent(f"worker process {pid} {self.words}; it was ended")

    def _begin(self) -> None:
        self.silent_s = self.idle_s = 0.0
        self._cpu_s = None
        self.told = False


@contextmanager
def watched(
    worker: WorkerProcess,
    silence: Silence,
    nursery: trio.Nursery,
    paused: Callable[[], None],
    tell: Callable[[], None],
) -> Iterator[None]:
    """In it, `worker` is killed when it is silent for too long. Raises `WorkerSilent` for its loss then.

    `tell` is called at each tick once there is something to tell, `paused` when this process has stood still."""
    scope = trio.CancelScope()

    async def look() -> None:
        with scope:
            await _too_long(silence, worker.pid, paused, tell)
            worker.kill()

    nursery.start_soon(look, name=f"silence of {worker.pid}")
    try:
        yield
    except WorkerLost:
        if silence.share >= 1:
            raise silence.error(worker.pid) from None
        raise
    finally:
        scope.cancel()


async def _too_long(silence: Silence, pid: int, paused: Callable[[], None], tell: Callable[[], None]) -> None:
    """Return when process `pid` has been silent for too long."""
    while silence.share < 1:
        await trio.sleep(TICK_SECONDS)
        if silence.tick(trio.current_time(), processor_seconds(pid) if silence.silent_s else None):
            paused()
        elif silence.told or silence.share >= TOLD_SHARE:
            tell()
            silence.told = True


def phase_of(message: Mapping[str, object]) -> str | None:
    """The phase that a worker's message names."""
    match message:
        case {"figures": {"phase": str(phase)}}:
            return phase
    return None


def processor_seconds(pid: int) -> float | None:
    """What a process and those that it has started have used, all their threads; None where the system has no /proc."""
    found = None
    for one in _family(pid):
        with suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            found = (found or 0.0) + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def _family(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _family(int(child))
