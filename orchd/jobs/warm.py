"""One worker process that has loaded torch already waits for the next torch job.

Importing torch, transformers and peft takes 4-10 s. Where a warm process forks for its jobs (`orchd/worker.py`) the
same one comes back after each; elsewhere it runs one job, and another is started when that has ended. It leaves when
no job has come for `idle_seconds`.
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
        self._patience: trio.CancelScope | None = None

    @property
    def waiting(self) -> WorkerProcess | None:
        """The process that waits now, if there is one and it lives."""
        return self._waiting if self._waiting is not None and self._waiting.running else None

    def has(self, command: Sequence[str]) -> bool:
        """Whether a process waits that runs this command."""
        return self.waiting is not None and self.waiting.command == tuple(command)

    async def take(self, *, warm: bool, command: Sequence[str] | None = None) -> WorkerProcess:
        """A process for one job. A job that wants `warm` gets the one that waits, if it runs the same `command`."""
        command = command or self._command
        worker = self.waiting if warm else None
        if worker is not None:
            self._forget()
            if worker.command == tuple(command):
                return worker
            worker.kill()
        return await WorkerProcess.start(self._nursery, threads=self._threads, warm=warm, command=command)

    def give_back(self, worker: WorkerProcess) -> None:
        """A warm process after its job. Where it has exited, another is started in its place."""
        if self._idle_seconds > 0 and self.waiting is None:
            self._nursery.start_soon(self._keep, worker)
        else:
            worker.kill()

    def _forget(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._waiting = self._patience = None

    async def _keep(self, worker: WorkerProcess) -> None:
        """Have the process wait, and let it go when it has waited for too long."""
        if not worker.running:
            try:
                worker = await self.take(warm=True, command=worker.command)
            except OSError:
                return  # no process to be had now: the next job starts its own, and reports why it can't
        if self.waiting is not None:
            worker.kill()
            return
        self._waiting = worker
        with trio.move_on_after(self._idle_seconds) as patience:
            self._patience = patience
            await worker.wait()
        if self._waiting is worker and self._patience is patience:
            self._waiting = self._patience = None
            await worker.stop()
