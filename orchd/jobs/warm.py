"""One worker process that has loaded torch already waits for the next torch job.

Importing torch, transformers and peft takes 4-10 s. A warm process runs one job and exits like any other; the next
one is started while that job runs, and leaves when no job has come for `idle_seconds`.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from orchd.jobs.process import COMMAND, WorkerProcess


class WarmPool:
    """Hands out worker processes. Lives in `nursery`; `idle_seconds` 0 means that nothing is kept warm."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        threads: int,
        idle_seconds: float,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._nursery = nursery
        self._threads = threads
        self._idle_seconds = idle_seconds
        self._command = command
        self._waiting: WorkerProcess | None = None

    @property
    def waiting(self) -> WorkerProcess | None:
        """The process that waits now, if there is one and it lives."""
        return self._waiting if self._waiting is not None and self._waiting.running else None

    async def take(self, *, warm: bool) -> WorkerProcess:
        """A process for one job. A job that wants `warm` gets the waiting one, and the next is started."""
        if not warm:
            return await self._start(warm=False)
        worker, self._waiting = self.waiting, None
        if worker is None:
            worker = await self._start(warm=True)
        self.prepare()
        return worker

    def prepare(self) -> None:
        """Have one process waiting: called when a warm job starts, and again when it ends (a long job outlasts it)."""
        if self._idle_seconds > 0:
            self._nursery.start_soon(self._keep_one)

    async def _start(self, *, warm: bool) -> WorkerProcess:
        return await WorkerProcess.start(self._nursery, threads=self._threads, warm=warm, command=self._command)

    async def _keep_one(self) -> None:
        """Start the next process and let it go when it has waited for too long."""
        if self.waiting is not None:
            return
        try:
            worker = self._waiting = await self._start(warm=True)
        except OSError:
            return  # no process to be had now: the next job starts its own, and reports why it can't
        with trio.move_on_after(self._idle_seconds):
            await worker.wait()
        if self._waiting is worker:
            self._waiting = None
            await worker.stop()
