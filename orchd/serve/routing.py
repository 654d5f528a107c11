"""The router, daemon side: one worker process, started when somebody asks, ended when nobody does for a while.

A worker holds one base. What was asked of one that dies is not asked again: whoever asked goes on with the plain base,
which is sooner there. The next request starts a new one.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio

from orchd.errors import OrchdError, RouterLost, WorkerLost, from_wire
from orchd.jobs.process import WorkerProcess
from orchd.serve.routes import (
    Answer,
    Average,
    Averaged,
    Choose,
    Chosen,
    Command,
    Entry,
    Failed,
    LeftOut,
    Lesson,
    Look,
    Looked,
    RouteSpec,
    Shelve,
    Shelved,
)

IDLE_SECONDS = 600.0
ANSWER_SECONDS = 20.0
"""The first request waits for the base's lower half and its public prompts; after this the plain base answers."""

StartWorker = Callable[[trio.Nursery], Awaitable[WorkerProcess]]
Wanted = TypeVar("Wanted", bound=msgspec.Struct)
LOG = logging.getLogger(__name__)


class RouterRuntime:
    """Asks the worker. `run` it in a nursery; everything else may then be called from any task.

    `folder` is the worker's, which stays: what the base's public prompts come to is kept there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 1,
        sandbox: str = "auto",
        idle_seconds: float = IDLE_SECONDS,
        start: StartWorker | None = None,
    ) -> None:
        self._folder = folder
        self._threads = threads
        self._sandbox = sandbox
        self._idle_seconds = idle_seconds
        self._start = start or self._start_process
        self._numbers = itertools.count(1)
        self._starting = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._session: _Session | None = None

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the worker's tasks until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    @property
    def worker_pid(self) -> int | None:
        """The process id of the worker, if one runs."""
        return self._session.worker.pid if self._session and self._session.usable else None

    def shelved(self, spec: RouteSpec, shelf: str) -> bool:
        """Whether a worker runs for this spec, and has this shelf (any text that names it)."""
        session = self._session
        return session is not None and session.usable and (session.spec, session.shelf) == (spec, shelf)

    async def shelve(
        self, spec: RouteSpec, shelf: str, entries: Sequence[Entry], lessons: Sequence[Lesson]
    ) -> tuple[LeftOut, ...]:
        """Let these take part; who does not, and why. Raises RouterLost."""

        def command(number: int) -> Command:
            return Shelve(request=number, entries=tuple(entries), lessons=tuple(lessons))

        session = await self._usable(spec)
        found = await self._ask(session, command, Shelved)
        session.shelf = shelf
        return found.left_out

    async def choose(self, spec: RouteSpec, text: str) -> Chosen:
        """Raises RouterLost."""
        session = await self._usable(spec)
        return await self._ask(session, lambda number: Choose(request=number, text=text), Chosen)

    async def look(self, spec: RouteSpec, text: str) -> bytes:
        """The vector of a text, as `Lesson` keeps it. Raises RouterLost."""
        session = await self._usable(spec)
        return (await self._ask(session, lambda number: Look(request=number, text=text), Looked)).data

    async def average(self, spec: RouteSpec, texts: Sequence[str]) -> Averaged:
        """The centroid of prompts. Raises RouterLost."""
        session = await self._usable(spec)
        return await self._ask(session, lambda number: Average(request=number, texts=tuple(texts)), Averaged)

    async def stop(self) -> None:
        """End the worker."""
        async with self._starting:
            if self._session is not None:
                await self._session.stop()

    async def _ask(self, session: _Session, command: Callable[[int], Command], wanted: type[Wanted]) -> Wanted:
        with trio.move_on_after(ANSWER_SECONDS):
            answer = await session.ask(command(next(self._numbers)))
            if isinstance(answer, Failed):
                raise from_wire(answer.code, answer.message, answer.hint, answer.field)
            if not isinstance(answer, wanted):
                raise RouterLost(f"the router answered with {type(answer).__name__}")
            return answer
        raise RouterLost(f"the router did not answer within {ANSWER_SECONDS:g} s")

    async def _usable(self, spec: RouteSpec) -> _Session:
        async with self._starting:
            if self._session is not None and self._session.usable:
                if self._session.spec == spec:
                    return self._session
                await self._session.stop()
            if self._nursery is None:
                raise RouterLost("the router is not running")
            with trio.CancelScope(shield=True):  # a worker that was started always gets its reader
                worker = await self._start(self._nursery)
                self._session = _Session(worker, spec, self._idle_seconds)
                self._nursery.start_soon(self._session.attend)
                try:
                    await worker.send(self._assignment(spec))
                except WorkerLost as error:
                    raise RouterLost(error.message) from error
            return self._session

    def _assignment(self, spec: RouteSpec) -> dict[str, object]:
        return {
            "kind": "route",
            "spec": msgspec.to_builtins(spec),
            "workdir": str(self._folder),
            "threads": self._threads,
            "sandbox": self._sandbox,
        }

    async def _start_process(self, nursery: trio.Nursery) -> WorkerProcess:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return await WorkerProcess.start(nursery, threads=self._threads, on_stderr=_log_stderr)


class _Session:
    """One worker process and the requests that are open in it."""

    def __init__(self, worker: WorkerProcess, spec: RouteSpec, idle_seconds: float) -> None:
        self.worker = worker
        self.spec = spec
        self.shelf: str | None = None
        self._idle_seconds = idle_seconds
        self._open: dict[int, trio.MemorySendChannel[Answer | OrchdError]] = {}
        self._reading = trio.CancelScope(deadline=trio.current_time() + idle_seconds)
        self._ended = trio.Event()
        self._stopping = False

    @property
    def usable(self) -> bool:
        return self.worker.running and not self._stopping and not self._reading.cancel_called

    async def ask(self, command: Command) -> Answer:
        """Raises RouterLost when the worker ends before it has answered."""
        sender, receiver = trio.open_memory_channel[Answer | OrchdError](1)
        self._open[command.request] = sender
        self._reading.deadline = trio.current_time() + self._idle_seconds
        try:
            if self._stopping:
                raise RouterLost("the router has ended")
            await self.worker.send(command)
            answer = await receiver.receive()
        except WorkerLost as error:
            raise RouterLost(error.message) from error
        finally:
            self._open.pop(command.request, None)
        if isinstance(answer, OrchdError):
            raise answer
        return answer

    async def attend(self) -> None:
        """Read what the worker says until it ends, is idle for too long, or is to stop; then end it."""
        error: OrchdError = RouterLost("the router's process ended unexpectedly")
        try:
            with self._reading:
                async for message in self.worker.messages():
                    if message.get("event") == "error":
                        told = msgspec.convert({"request": 0, **message, "event": "failure"}, Failed)
                        error = from_wire(told.code, told.message, told.hint, told.field)
                    elif "request" in message:
                        answer = msgspec.convert(message, Answer)
                        self._deliver(answer.request, answer)
        except (WorkerLost, msgspec.ValidationError) as reason:
            error = RouterLost(str(reason))
        finally:
            self._stopping = True
            for number in list(self._open):
                self._deliver(number, error)
            try:
                await self._end()
            finally:
                self._ended.set()

    async def stop(self) -> None:
        self._stopping = True
        self._reading.cancel()
        await self._ended.wait()

    async def _end(self) -> None:
        await self.worker.close_input()
        await self.worker.stop()

    def _deliver(self, number: int, answer: Answer | OrchdError) -> None:
        sender = self._open.pop(number, None)
        if sender is not None:
            sender.send_nowait(answer)


def _log_stderr(chunk: bytes) -> None:
    LOG.info("router: %s", chunk.decode(errors="replace").rstrip())
