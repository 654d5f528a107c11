"""The queue: jobs wait, run in worker processes or in the daemon itself, and end in one of four ways.

Every change of state goes through `states.TRANSITIONS`, is written to the index, and is then told as an event.
A restart of the daemon queues again what still waited and what can go on where it stopped, and marks the rest of what
ran as `interrupted`.
"""

from __future__ import annotations

import builtins
import contextlib
import logging
import random
import shutil
import traceback
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trio

from orchd.config import JobsConfig
from orchd.errors import (
    JobCancelled,
    JobFailed,
    JobInterrupted,
    JobNotRunning,
    OrchdError,
    WorkerLost,
    WorkerSilent,
    numbered,
)
from orchd.jobs import files
from orchd.jobs.entry import Entry, LocalContext, new_id
from orchd.jobs.events import EventLog
from orchd.jobs.kinds import KINDS, Kind, Kinds, struct
from orchd.jobs.lanes import Lanes
from orchd.jobs.process import COMMAND, STOP_SECONDS, WorkerProcess, job_ended
from orchd.jobs.rows import JobRows
from orchd.jobs.sandbox.report import Sandbox
from orchd.jobs.silence import Silence, phase_of, watched
from orchd.jobs.states import ErrorInfo, Job, Progress, State, worker_error
from orchd.jobs.warm import WarmPool
from orchd.registry.local import Local

LOG_BYTES = 2_000_000
"""A job's log on disk."""

LOG_TAIL = 20
"""Lines of the log that go with the error of a failed job."""

LEAVE_SECONDS = 5.0
"""A worker that gave its result has this long to exit."""

WAITING_SECONDS = 1.0
"""How often those that wait are told how long, while something runs."""

REWRITE_SECONDS = 5.0
"""How often the end of a job is tried to be written that the disk had no room for."""

MOST_CRASHES = 5
"""A job that was running when the daemon died so often isn't taken up again: it may be the reason."""

STARTING = Progress(done=0, total=0, unit="jobs", figures={"phase": "starting", "waits": "for a process with torch"})

OnResult = Callable[[Any, Path], Awaitable[msgspec.Struct]]
"""Makes the public result from the worker's and the working folder, in the daemon."""

Finisher = Callable[[Job, Any, Path], Awaitable[msgspec.Struct]]
"""The same for every job of a kind; what it needs to know is in `job.note`."""

Prepared = Callable[[Callable[[LocalContext], Awaitable[Any]]], Awaitable[Any]]
"""Does in the daemon what comes before a job's worker: told as the job's progress, left when the job is cancelled."""

Ask = Callable[[Sequence[str]], Awaitable[Any]]


class Python(Protocol):
    """Which Python a job's worker runs in."""

    async def run(self, kind: Kind, prepared: Prepared, ask: Ask) -> Any:
        """What `ask` gives for the command of a worker; raises what it raises."""


LocalWork = Callable[[LocalContext], Awaitable[msgspec.Struct]]

log = logging.getLogger("orchd.jobs")


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    queued: int
    running: int


class Jobs:
    """All jobs of this node. `run` has to be running in the daemon's nursery; the rest is for the daemon's thread.

    `work` is where the jobs' working folders lie (default: beside the state); it is emptied at start.
    """

    def __init__(
        self,
        local: Local,
        state_dir: Path,
        config: JobsConfig,
        events: EventLog,
        *,
        work: Path | None = None,
        kinds: Kinds = KINDS,
        command: Sequence[str] = COMMAND,
        rng: random.Random | None = None,
    ) -> None:
        self._rows = JobRows(local)
        self._config = config
        self._events = events
        self._logs = state_dir / "jobs"
        self._work = work or state_dir / "work"
        self._kinds = kinds
        self._command = command
        self._rng = rng or random.SystemRandom()
        self._finishers: dict[str, Finisher] = {}
        self._live: dict[str, Entry] = {}
        self._unwritten: dict[str, Entry] = {}  # these have ended, and the disk does not know it yet
        self._queue = Lanes(kinds, config.parallel)
        self._told_waiting_at = 0.0
        self._last_ms = 0
        self._stopping = False
        self.python: Python | None = None
        self._nursery: trio.Nursery | None = None
        self._pool: WarmPool | None = None

    def finisher(self, kind: str, finish: Finisher) -> None:
        """Register what makes the public result of every `kind` job. Call it before `run`.

        Only a job with a registered finisher (or none at all) can be queued again after a restart: a closure that
        was given to `submit` is gone then.
        """
        self._finishers[kind] = finish

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Work off the queue until cancelled; running jobs are then interrupted and their workers killed."""
        await trio.to_thread.run_sync(self._prepare_folders)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._pool = WarmPool(
                    nursery,
                    threads=self._config.threads,
                    idle_seconds=self._config.warm_seconds,
                    command=self._command,
                )
                await self._recover()
                nursery.start_soon(self._prune_daily)
                nursery.start_soon(self._rewrite)
                task_status.started()
                self._fill()
        finally:
            self._nursery = self._pool = None

    # ---- what callers do ----------------------------------------------------------------------------------------

    async def submit(
        self,
        kind: str,
        spec: msgspec.Struct,
        *,
        title: str,
        on_result: OnResult | None = None,
        note: Any = None,
        id: str | None = None,
    ) -> Job:
        """Queue a job for a worker process and return at once.

        `on_result` (or the kind's finisher) gets the worker's result as the Struct that the table of kinds names.
        `note` is plain JSON or a Struct that is kept with the job, `id` one that `next_id` gave.
        """
        if kind not in self._kinds:
            raise ValueError(f"no job kind {kind!r}")
        job = self._new(kind, title, id=id, spec=msgspec.to_builtins(spec), note=msgspec.to_builtins(note))
        entry = Entry(job, resumable=on_result is None, on_result=on_result)
        await self._add(entry)
        self._queue.add(entry)
        self._fill()
        return entry.job

    def next_id(self) -> str:
        """An id for a job whose spec has to name it."""
        self._last_ms = max(self._events.clock(), self._last_ms + 1)
        return new_id(self._last_ms, self._rng)

    async def submit_local(self, kind: str, title: str, work: LocalWork, *, note: Any = None) -> Job:
        """Run `work` in the daemon itself, at once and beside the queue: for what waits more than it computes."""
        nursery = self._started()
        entry = Entry(self._new(kind, title, note=msgspec.to_builtins(note)), resumable=False)
        await self._add(entry)
        nursery.start_soon(partial(self._run, entry, partial(self._work_locally, entry, work)))
        return entry.job

    def going(self, kind: str) -> builtins.list[Job]:
        """Those of a kind that have not ended and were not asked to."""
        jobs = (entry.job for entry in self._live.values() if entry.job.kind == kind)
        return [job for job in jobs if job.state in (State.QUEUED, State.RUNNING)]

    def under_way(self, kind: str, note: Any) -> Job | None:
        """A job with that note which has not ended and was not asked to."""
        return next((job for job in self.going(kind) if job.note == note), None)

    async def wait(self, job_id: str) -> Job:
        """The job, once it has ended. Cancelling the wait doesn't touch the job."""
        entry = self._live.get(job_id)
        if entry is None:
            return await self.get(job_id)
        await entry.ended.wait()
        return entry.job

    async def get(self, job_id: str) -> Job:
        """The job as it stands, by its id or the beginning of it. Raises `JobUnknown`, `AmbiguousId`."""
        entry = self._live.get(job_id)
        if entry is not None:
            return entry.job
        return self._now(await trio.to_thread.run_sync(self._rows.get, job_id))

    async def list(
        self, state: State | None = None, limit: int = 50, cursor: str | None = None
    ) -> tuple[builtins.list[Job], str | None]:
        """Jobs, newest first, and the cursor of the next page (None: this was the last)."""
        jobs = await trio.to_thread.run_sync(self._rows.newest, state, limit + 1, cursor)
        page = [self._now(job) for job in jobs[:limit]]
        following = page[-1].id if len(jobs) > limit else None
        late = {id: entry.job for id, entry in self._unwritten.items() if (following or "") < id < (cursor or "job_~")}
        page = [job for job in page if job.id not in late] + list(late.values())
        page = [job for job in page if job.id not in late or state in (None, job.state)]
        return sorted(page, key=lambda job: job.id, reverse=True), following

    def _now(self, job: Job) -> Job:
        """A job that was read from the disk, as it stands."""
        entry = self._live.get(job.id) or self._unwritten.get(job.id)
        return job if entry is None else entry.job

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; it gets 5 s before its worker is killed. Raises `JobNotRunning` when it has ended."""
        job = await self.get(job_id)
        entry = self._live.get(job.id)
        if entry is None or entry.job.state.ended:
            raise JobNotRunning(f"job {job.id} has ended already: {job.state}", field="job")
        if entry.job.state is State.QUEUED:
            await self._end(entry, State.CANCELLED)
        elif entry.job.state is not State.CANCELLING:
            await self._move(entry, State.CANCELLING)
            self._stop(entry)
        return entry.job

    async def pause(self) -> None:
        """The daemon is about to stop: jobs that can go on later get 5 s to leave a checkpoint. Nothing starts now."""
        self._stopping = True
        async with trio.open_nursery() as nursery:
            for entry in self._live.values():
                if self._goes_on(entry) and entry.job.state is State.RUNNING and entry.worker is not None:
                    nursery.start_soon(self._end_worker, entry, entry.worker)

    async def logs(self, job_id: str, limit: int = 200) -> builtins.list[str]:
        """The last lines of a job's log."""
        job = await self.get(job_id)
        return await trio.to_thread.run_sync(files.tail, self._log_file(job.id), limit)

    def counts(self) -> Counts:
        return Counts(queued=len(self._queue), running=len(self._live) - len(self._queue))

    # ---- one job ------------------------------------------------------------------------------------------------

    async def _run(self, entry: Entry, work: Callable[[], Awaitable[msgspec.Struct]]) -> None:
        """Take a job from queued to its end. Nothing that it raises gets out, but for the daemon's own shutdown."""
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            if entry.job.state.ended:
                return
            await self._move(entry, State.RUNNING, progress=None)
            result = msgspec.to_builtins(await work())
        except trio.Cancelled:
            self._stopping = True
            with trio.CancelScope(shield=True):
                await self._interrupt(entry)
            raise
        except Exception as error:
            await self._fail(entry, numbered(error) or self._unforeseen(entry, error))
        else:
            await self._end(entry, State.DONE, result=result)

    def _unforeseen(self, entry: Entry, error: Exception) -> OrchdError:
        self._write_log(entry.job.id, "".join(traceback.format_exception(error)).encode())
        return JobFailed(f"{type(error).__name__}: {error}")

    async def _work_in_worker(self, entry: Entry) -> msgspec.Struct:
        kind = self._kinds[entry.job.kind]
        workdir = self._work / entry.job.id
        try:
            await trio.to_thread.run_sync(partial(workdir.mkdir, parents=True))
            ask = partial(self._ask_worker, entry, workdir, kind.warm)
            python = self.python
            result = await (python.run(kind, partial(self.told, entry.job.id), ask) if python else ask(self._command))
            typed = msgspec.convert(result, struct(kind.result))
            if entry.on_result is not None:
                return await entry.on_result(typed, workdir)
            if entry.job.kind in self._finishers:
                return await self._finishers[entry.job.kind](entry.job, typed, workdir)
            return typed
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(partial(shutil.rmtree, workdir, ignore_errors=True))

    async def told(self, job_id: str, work: Callable[[LocalContext], Awaitable[Any]]) -> Any:
        """`work` before or after the worker's, told as the job's progress; `JobCancelled` is raised when it is that."""
        entry = self._live[job_id]
        entry.scope = trio.CancelScope()  # one serves only once
        if entry.job.state is not State.CANCELLING:
            with entry.scope:
                return await work(self._local_context(entry))
        raise JobCancelled("the job was cancelled")

    async def _ask_worker(self, entry: Entry, workdir: Path, warm: bool, command: Sequence[str]) -> Any:
        """Have a worker process do the job. Returns its result or raises its error.

        One that falls silent is ended; a job that can go on where it stopped does so once."""
        try:
            return await self._ask_once(entry, workdir, warm, command)
        except WorkerSilent as error:
            goes_on = self._goes_on(entry) and entry.job.state is State.RUNNING and not self._stopping
            if entry.silent or not goes_on:
                raise
            entry.silent = True
            entry.paused()
            log.warning("job %s: %s; it goes on with another", entry.job.id, error.message)
            self._write_log(entry.job.id, f"{error.message}; another goes on from the last checkpoint\n".encode())
            await trio.to_thread.run_sync(files.empty, workdir)
            return await self._ask_once(entry, workdir, warm, command)

    async def _ask_once(self, entry: Entry, workdir: Path, warm: bool, command: Sequence[str]) -> Any:
        if self._pool is None:
            raise WorkerLost("the daemon is stopping")
        if warm and not self._pool.has(command):
            self._show_progress(entry, STARTING)
        worker = await self._pool.take(warm=warm, command=command)
        worker.on_stderr = partial(self._write_log, entry.job.id)
        entry.worker, entry.left = worker, trio.Event()
        try:
            if entry.job.state is State.CANCELLING:
                worker.kill()
                raise JobCancelled("the job was cancelled before it began")
            await worker.send(
                {
                    "kind": entry.job.kind,
                    "spec": entry.job.spec,
                    "workdir": str(workdir),
                    "threads": self._config.threads,
                    "sandbox": self._config.sandbox,
                    "memory_mb": self._config.memory_mb,
                }
            )
            silence = Silence(self._config.silent_seconds, trio.current_time())
            with watched(worker, silence, self._started(), entry.paused, partial(self._waits, entry, silence)):
                return await self._listen(entry, worker, silence)
        finally:
            entry.worker = None
            entry.left.set()
            await self._dismiss(worker, warm)

    async def _dismiss(self, worker: WorkerProcess, warm: bool) -> None:
        """Let the process of the job exit, so that its last words are in the log; a warm parent goes on waiting."""
        ended = False
        try:
            with trio.move_on_after(LEAVE_SECONDS), contextlib.suppress(WorkerLost):
                ended = await job_ended(worker)
        finally:
            if ended and warm and self._pool is not None:
                self._pool.give_back(worker)
            else:
                worker.kill()

    async def _listen(self, entry: Entry, worker: WorkerProcess, silence: Silence) -> Any:
        """Take in what the worker says until it gives a result (returned) or an error (raised)."""
        async for message in worker.messages():
            if silence.told:
                self._write_log(entry.job.id, f"it answers again after {silence.silent_s:.0f} s\n".encode())
                entry.paused()
            silence.heard(trio.current_time(), phase_of(message))
            match message:
                case {"event": "progress"}:
                    self._progress(entry, message)
                case {"event": "log", "text": str(text)}:
                    self._write_log(entry.job.id, text.encode() + b"\n")
                case {"event": "sandbox", "sandbox": dict(told)}:
                    self._confined(entry, told)
                case {"event": "result", "result": result}:
                    return result
                case {"event": "error"}:
                    raise worker_error(message)
                case {"event": "ended", "status": int(status)}:
                    worker.kill()
                    raise worker.lost(status)
        await worker.wait()
        raise worker.lost()

    def _confined(self, entry: Entry, told: dict[str, Any]) -> None:
        found = msgspec.convert(told, Sandbox)
        entry.job = msgspec.structs.replace(entry.job, sandbox=found)
        if found.open:
            self._write_log(entry.job.id, f"sandbox: {found.words}\n".encode())
            log.warning("job %s could reach %s: %s", entry.job.id, ", ".join(found.open), found.words)

    async def _work_locally(self, entry: Entry, work: LocalWork) -> msgspec.Struct:
        with entry.scope:
            return await work(self._local_context(entry))
        raise JobCancelled("the job was cancelled")

    def _local_context(self, entry: Entry) -> LocalContext:
        return LocalContext(
            progress=partial(self._progress, entry),
            log=lambda text: self._write_log(entry.job.id, text.encode() + b"\n"),
        )

    # ---- changes of state ---------------------------------------------------------------------------------------

    def _new(self, kind: str, title: str, id: str | None = None, **more: Any) -> Job:
        identifier = id or self.next_id()
        return Job(id=identifier, kind=kind, title=title, state=State.QUEUED, created_ms=self._last_ms, **more)

    async def _add(self, entry: Entry) -> None:
        """Make a job known. It is on disk when this returns."""
        self._started()
        await trio.to_thread.run_sync(self._rows.put, entry.job, entry.resumable)
        self._live[entry.job.id] = entry
        self._tell(entry.job)

    async def _move(self, entry: Entry, state: State, **changes: Any) -> None:
        """The one way from state to state: in memory, then on disk, then as an event.

        What a full disk or a broken index does not take up costs the record, not the job; its end is written later.
        """
        entry.job = entry.moved(state, self._events.clock(), trio.current_time(), **changes)
        with trio.CancelScope(shield=True):
            async with entry.writing:
                job = entry.job
                try:
                    await trio.to_thread.run_sync(self._rows.put, job, entry.resumable)
                except Exception:
                    log.exception("job %s: its state %s could not be written", job.id, state)
                    if job.state.ended:
                        self._unwritten[job.id] = entry
                if entry.told is not job.state:
                    self._tell(job)
                    entry.told = job.state

    async def _end(self, entry: Entry, state: State, **changes: Any) -> None:
        await self._move(entry, state, progress=None, **changes)
        self._live.pop(entry.job.id, None)
        entry.ended.set()
        self._queue.leave(entry)
        self._fill()

    async def _fail(self, entry: Entry, error: OrchdError) -> None:
        if self._stopping and entry.job.state is State.RUNNING and self._goes_on(entry):
            await self._interrupt(entry)
            return
        if isinstance(error, WorkerLost) and self._goes_on(entry):
            command = f"{self._kinds[entry.job.kind].resumes} {entry.job.id}"
            why = error.default_hint if isinstance(error, WorkerSilent) else "It was killed, or out of memory."
            error = type(error)(error.message, hint=f"{why} `{command}` goes on.")
        if isinstance(error, JobCancelled) or (isinstance(error, WorkerLost) and entry.job.state is State.CANCELLING):
            await self._end(entry, State.CANCELLED)
            return
        tail = await trio.to_thread.run_sync(files.tail, self._log_file(entry.job.id), LOG_TAIL)
        await self._end(entry, State.FAILED, error=ErrorInfo.of(error, tuple(tail)))

    async def _interrupt(self, entry: Entry) -> None:
        """The daemon stops. What still waits stays queued, and what can go on later waits for that."""
        if entry.job.state is State.QUEUED and entry.resumable:
            return
        if entry.job.state is State.RUNNING and self._goes_on(entry):
            await self._move(entry, State.QUEUED, progress=None)
            return
        await self._end(entry, State.INTERRUPTED, error=ErrorInfo.of(_interrupted(entry.job)))

    def _goes_on(self, entry: Entry) -> bool:
        """Whether another worker can take the job up where this one left it."""
        kind = self._kinds.get(entry.job.kind)
        return entry.resumable and kind is not None and bool(kind.resumes)

    def _stop(self, entry: Entry) -> None:
        entry.scope.cancel()
        if entry.worker is not None:
            self._started().start_soon(self._end_worker, entry, entry.worker)

    async def _end_worker(self, entry: Entry, worker: WorkerProcess) -> None:
        """SIGTERM, after 5 s SIGKILL; a worker that has left the job by then may be on another one already."""
        worker.terminate()
        with trio.move_on_after(STOP_SECONDS):
            await entry.left.wait()
            return
        worker.kill()

    def _progress(self, entry: Entry, report: dict[str, Any]) -> None:
        progress = entry.report(report, trio.current_time())
        if progress is None:
            return
        self._show_progress(entry, progress)
        if len(self._queue) and trio.current_time() - self._told_waiting_at >= WAITING_SECONDS:
            self._tell_waiting()

    def _show_progress(self, entry: Entry, progress: Progress) -> None:
        entry.job = msgspec.structs.replace(entry.job, progress=progress)
        self._events.emit("job.progress", msgspec.to_builtins(progress), job=entry.job.id)

    def _waits(self, entry: Entry, silence: Silence) -> None:
        """Say that its worker is silent, and since when."""
        if not silence.told:
            self._write_log(entry.job.id, f"{silence.told_words}\n".encode())
        self._show_progress(entry, entry.waits(silence, self._events.clock()))

    def _tell(self, job: Job) -> None:
        word = "started" if job.state is State.RUNNING else job.state.value
        data: dict[str, Any] = {"kind": job.kind, "title": job.title}
        if job.error is not None:
            data["error"] = msgspec.to_builtins(job.error)
        self._events.emit(f"job.{word}", data, job=job.id)

    # ---- the queue ----------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Start what may start."""
        if self._nursery is None or self._stopping:
            return
        while (entry := self._queue.next()) is not None:
            self._nursery.start_soon(self._run, entry, partial(self._work_in_worker, entry))
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        """Each job that waits says what for, and how long that takes."""
        self._told_waiting_at = trio.current_time()
        for entry in self._queue.waiting:
            progress = self._queue.wait(entry)
            if progress != entry.job.progress:
                self._show_progress(entry, progress)

    async def _recover(self) -> None:
        """After a restart: what waited waits again, and what can go on; the rest of what ran was interrupted."""
        for job, resumable in await trio.to_thread.run_sync(self._rows.unfinished):
            if job.id in self._live:
                continue
            self._last_ms = max(self._last_ms, job.created_ms)
            entry = Entry(job, resumable=resumable)
            if job.state is State.RUNNING and job.crashes < MOST_CRASHES and self._goes_on(entry):
                self._live[job.id] = entry
                await self._move(entry, State.QUEUED, crashes=job.crashes + 1)
                self._queue.add(entry)
            elif job.state is State.QUEUED and resumable and job.kind in self._kinds:
                self._live[job.id] = entry
                self._queue.add(entry)
            else:
                await self._end(entry, State.INTERRUPTED, error=ErrorInfo.of(_interrupted(job)))

    async def _rewrite(self) -> None:
        """Write what could not be written at a job's end, once there is room. A restart would take it for running."""
        while True:
            await trio.sleep(REWRITE_SECONDS)
            with contextlib.suppress(Exception):  # still no room
                for entry in list(self._unwritten.values()):
                    await trio.to_thread.run_sync(self._rows.put, entry.job, entry.resumable)
                    del self._unwritten[entry.job.id]
                    log.info("job %s: its state %s is written now", entry.job.id, entry.job.state)

    async def _prune_daily(self) -> None:
        while True:
            await trio.sleep(24 * 3600)
            self._events.prune()

    def _prepare_folders(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)

    # ---- small things -------------------------------------------------------------------------------------------

    def _started(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("Jobs.run is not running")
        return self._nursery

    def _log_file(self, job_id: str) -> Path:
        return self._logs / f"{job_id}.log"

    def _write_log(self, job_id: str, data: bytes) -> None:
        with contextlib.suppress(OSError):
            files.append(self._log_file(job_id), data, LOG_BYTES)


def _interrupted(job: Job) -> OrchdError:
    return JobInterrupted(f"the daemon stopped while job {job.id} ({job.title}) was {job.state}")
