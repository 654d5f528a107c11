"""One job that hasn't ended, as the queue holds it in memory."""

from __future__ import annotations

import base64
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import trio

from orchd.jobs.context import Figure, Pace
from orchd.jobs.eta import Estimate
from orchd.jobs.process import WorkerProcess
from orchd.jobs.silence import Silence
from orchd.jobs.states import Job, Progress, State, move


class _Report(Progress, frozen=True, kw_only=True):
    """A worker's progress report. `after_s`: how long what comes after its stage will take."""

    after_s: float = 0.0


class Entry:
    """The job, and what is needed to run, stop and await it."""

    def __init__(
        self,
        job: Job,
        *,
        resumable: bool,
        on_result: Callable[[Any, Path], Awaitable[msgspec.Struct]] | None = None,
    ) -> None:
        self.job = job
        self.resumable = resumable
        self.on_result = on_result
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.writing = trio.Lock()
        self.worker: WorkerProcess | None = None
        self.left = trio.Event()  # set when the worker has nothing more to do with the job
        self.told: State | None = None
        self.began_s: float | None = None  # trio's clock
        self.silent = False  # a worker of it was ended for its silence
        self._estimate = Estimate()

    def moved(self, state: State, now_ms: int, now_s: float, **changes: Any) -> Job:
        """The job in its next state, as `states.move` has it, with how long it ran."""
        if state is State.RUNNING:
            self.began_s = now_s
        elif state.ended and self.began_s is not None:
            changes["seconds"] = round(now_s - self.began_s, 3)
        return move(self.job, state, now_ms, **changes)

    def paused(self) -> None:
        """It stood still for a while that says nothing about how fast it goes."""
        self._estimate = Estimate()

    def waits(self, silence: Silence, now_ms: int) -> Progress:
        """How far it was when its worker was last heard, and since when it is silent."""
        before = self.job.progress or Progress(done=0, total=1, unit="stages")
        since_ms = now_ms - round(silence.silent_s * 1000)
        told: dict[str, Figure] = {"waits": silence.told_words, "silent_since_ms": since_ms}
        return msgspec.structs.replace(before, eta_s=None, figures=before.figures | told)

    def report(self, report: dict[str, Any], now_s: float) -> Progress | None:
        """The progress that a report tells, with the time left; None when it is malformed."""
        try:
            plain = msgspec.convert(report, _Report)
        except msgspec.ValidationError:
            return None
        left = self._estimate.seconds_left(now_s, plain.done, plain.total, plain.unit)
        left = None if left is None else round(left + max(0.0, plain.after_s), 1)
        return Progress(done=plain.done, total=plain.total, unit=plain.unit, eta_s=left, figures=plain.figures)


class LocalContext:
    """What work in the daemon itself may tell about its job. Cancellation is trio's."""

    def __init__(self, progress: Callable[[dict[str, Any]], None], log: Callable[[str], None]) -> None:
        self._progress = progress
        self._log = log
        self._pace = Pace()

    def progress(self, done: float, total: float, unit: str, **figures: Figure) -> None:
        """As `JobContext.progress`: cheap enough for every chunk. For the daemon's thread only."""
        if self._pace.lets_pass(trio.current_time(), done, total, unit):
            self._progress({"done": done, "total": total, "unit": unit, "figures": figures})

    def log(self, text: str) -> None:
        self._log(text)


def new_id(time_ms: int, rng: random.Random) -> str:
    """`job_` and 16 characters: 48 bits of time, then 32 random bits, in an alphabet that sorts like the bytes."""
    data = time_ms.to_bytes(6, "big") + rng.getrandbits(32).to_bytes(4, "big")
    return "job_" + base64.b32hexencode(data).decode().lower()
