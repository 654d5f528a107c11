"""What a worker function sees of the outside: `def run(spec: SpecStruct, job: JobContext) -> ResultStruct`.

Imported by workers and by worker functions, so it loads nothing heavy. Cancellation arrives as the exception
`JobCancelled`, raised from `progress()`, `check()` or `receive()`; a worker function lets it pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from orchd.errors import JobCancelled

Figure = float | int | str
"""A number or word that is shown beside a progress bar, such as the current loss."""

ALIVE_SECONDS = 5.0
"""A job that checks and has told nothing for this long says that it is alive."""

PROGRESS_SECONDS = 0.05
"""At most one progress report in this time is passed on; the first one that completes a stage always is."""


class Wire(Protocol):
    """Both directions of the pipe to the daemon, as a worker function needs them."""

    def send(self, message: Mapping[str, object]) -> None: ...

    def receive(self) -> dict[str, object] | None: ...


class Pace:
    """Thins progress reports: a job may report at every step."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._completed: tuple[float, str] | None = None

    def lets_pass(self, now_s: float, done: float, total: float, unit: str) -> bool:
        completes = done >= total and self._completed != (total, unit)
        if not completes and self._last is not None and now_s - self._last < PROGRESS_SECONDS:
            return False
        self._last = now_s
        self._completed = (total, unit) if done >= total else None
        return True


class JobContext:
    """One job's working folder, its number of threads, and its line to the daemon.

    `workdir` is a folder that belongs to this job alone and is removed after it; `tmp` in it is for temporary files.
    `threads` is how many CPU threads the job may use. Nothing here is safe to call from several threads, except `log`
    and `send`.
    """

    def __init__(
        self,
        workdir: Path,
        threads: int,
        wire: Wire,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workdir = workdir
        self.threads = threads
        self._wire = wire
        self._monotonic = monotonic
        self._pace = Pace()
        self._cancelled = False
        self._receiving = False
        self._talks = False
        self._sent_at = monotonic()
        self._tell: Callable[[], None] | None = None

    def progress(self, done: float, total: float, unit: str, after_s: float = 0.0, **figures: Figure) -> None:
        """Tell how far the job is: `done` of `total` in `unit` ("steps", "rows", "bytes"), and figures such as loss.

        `after_s` is how long what comes after all of them will take. Cheap enough to call at every step. Raises
        `JobCancelled`.
        """
        self.check()
        now = self._monotonic()
        if not self._pace.lets_pass(now, done, total, unit):
            return
        self._sent_at = now
        told = {"event": "progress", "done": done, "total": total, "unit": unit, "figures": figures}
        self._wire.send(told | ({"after_s": round(after_s, 1)} if after_s else {}))

    def log(self, text: str) -> None:
        """Add a line to the job's log."""
        self._wire.send({"event": "log", "text": text})

    def check(self) -> None:
        """Raise `JobCancelled` when the daemon asked for the end of the job. Long work calls it often: a job that does
        not is taken to hang (`orchd/jobs/silence.py`)."""
        if self._cancelled:
            raise JobCancelled("the job was cancelled")
        now = self._monotonic()
        if now - self._sent_at >= ALIVE_SECONDS and not self._talks:
            self._sent_at = now
            self._wire.send({"event": "alive"})
        if (tell := self._tell) is not None:
            self._tell = None  # to tell is to check as well
            try:
                tell()
            finally:
                self._tell = tell

    @contextmanager
    def telling(self, tell: Callable[[], None]) -> Iterator[None]:
        """In it, `tell`, which reports progress, is called at every `check`."""
        self._tell = tell
        try:
            yield
        finally:
            self._tell = None

    def send(self, message: Mapping[str, object]) -> None:
        """Send one message of a conversation (`chat`). It must hold `event` with a word of the conversation's own."""
        self._talks = True
        self._wire.send(message)

    def receive(self) -> dict[str, object] | None:
        """The daemon's next message of a conversation, or None when the daemon has closed its side: return then.

        Waits. Raises `JobCancelled` at once when SIGTERM arrives while it waits.
        """
        self._receiving = self._talks = True
        try:
            self.check()
            return self._wire.receive()
        finally:
            self._receiving = False

    def cancel(self) -> None:
        """Called by the signal handler: the next `check`, or the `receive` that waits now, raises `JobCancelled`."""
        self._cancelled = True
        if self._receiving:
            self.check()
