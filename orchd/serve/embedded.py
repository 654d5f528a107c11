"""The embedded runtime, daemon side: models in llama.cpp in one worker process, started when somebody asks.

Loads no llama.cpp itself. The worker is started on the first request, started again when it died, and stopped when
nothing was asked for `idle_seconds`. A request that a dying worker held is asked once more if none of its answer was
out yet; otherwise it ends with AnswerInterrupted.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import msgspec
import trio

from orchd.errors import AnswerInterrupted, DeploymentUnknown, ModelNotLoaded, OrchdError, WorkerLost, from_wire
from orchd.importers.conversation import Message
from orchd.jobs.process import WorkerProcess
from orchd.serve.specs import ChatSpec
from orchd.serve.wire import (
    DEFAULTS,
    Ask,
    Broken,
    Command,
    Confined,
    Event,
    Failure,
    Load,
    Reply,
    Sampling,
    Stop,
    Text,
    Unload,
)

IDLE_SECONDS = 600.0
"""A worker that nobody asked for this long is stopped; starting it again costs under a second."""

GOODBYE_SECONDS = 3.0
"""For a worker to leave by itself after its input was closed; then it is signalled."""

TRIES = 2


StartWorker = Callable[[trio.Nursery], Awaitable[WorkerProcess]]
log = logging.getLogger(__name__)


class EmbeddedRuntime:
    """Answers with GGUF files by name. `run` it in a nursery; everything else may then be called from any task.

    `folder` is where the worker lives (its current folder; nothing stays in it). `start` makes the worker process.
    `sandbox` is the setting of this name; files outside the spec's `models` can't be served in it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 1,
        spec: ChatSpec | None = None,
        sandbox: str = "auto",
        idle_seconds: float = IDLE_SECONDS,
        start: StartWorker | None = None,
    ) -> None:
        self._folder = folder
        self._threads = threads
        self._spec = spec or ChatSpec()
        self._sandbox = sandbox
        self._idle_seconds = idle_seconds
        self._start = start or self._start_process
        self._paths: dict[str, Path] = {}
        self._numbers = itertools.count(1)
        self._starting = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._session: _Session | None = None

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the worker's tasks until cancelled. Cancelling kills the worker; `stop` first lets it leave."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._paths))

    def path(self, name: str) -> Path:
        """The file behind `name`. Raises DeploymentUnknown."""
        try:
            return self._paths[name]
        except KeyError:
            raise DeploymentUnknown(f"no deployment {name!r} here", field="name") from None

    @property
    def worker_pid(self) -> int | None:
        """The process id of the worker, if one runs."""
        return self._session.worker.pid if self._session and self._session.usable else None

    def restore(self, name: str, gguf: Path) -> None:
        """Serve `gguf` as `name` without loading it now: for deployments known from an earlier life."""
        self._paths[name] = gguf

    async def put(self, name: str, gguf: Path) -> None:
        """Serve `gguf` as `name` from now on. A file may not change while it is served.

        Raises ModelNotLoaded when llama.cpp doesn't take it; what `name` stood for before is then still served.
        """
        request = _Request(self, lambda number: Load(request=number, path=str(gguf)))
        async with request:
            try:
                await request.finish()
            except AnswerInterrupted as error:  # llama.cpp took the whole process with it
                raise ModelNotLoaded(f"{gguf.name}: {error}") from error
        before, self._paths[name] = self._paths.get(name), gguf
        if before is not None:
            await self._forget(before)

    async def remove(self, name: str) -> None:
        """Serve `name` no longer; answers that are being made are finished. Raises DeploymentUnknown."""
        path = self.path(name)
        del self._paths[name]
        await self._forget(path)

    def complete(
        self,
        name: str,
        messages: Sequence[Message],
        *,
        max_tokens: int = 64,
        temperature: float = 0.0,
        sampling: Sampling = DEFAULTS,
    ) -> Completion:
        """The answer of `name`, greedy at temperature 0. Nothing happens before it is iterated over.

        Raises DeploymentUnknown at once; iterating raises PromptRefused, ModelNotLoaded, AnswerInterrupted.
        """
        path, conversation = str(self.path(name)), tuple(messages)

        def ask(number: int) -> Ask:
            return Ask(
                request=number,
                path=path,
                messages=conversation,
                max_tokens=max_tokens,
                temperature=temperature,
                sampling=sampling,
            )

        return Completion(_Request(self, ask))

    async def stop(self) -> None:
        """End the worker; answers that are being made end with AnswerInterrupted. The next request starts it anew."""
        async with self._starting:
            if self._session is not None:
                await self._session.stop()

    async def _forget(self, path: Path) -> None:
        """Let the worker free a file that no name stands for any more."""
        session = self._session
        if path in self._paths.values() or session is None or not session.usable:
            return
        try:
            await session.send(Unload(path=str(path)))
        except WorkerLost:
            log.info("the worker that held %s has ended", path.name)

    async def open_request(self, request: _Request) -> _Opened:
        """Send `request` to a worker that runs. Raises WorkerLost when it dies at once."""
        session = await self._usable_session()
        number = next(self._numbers)
        events = session.open(number)
        try:
            await session.send(request.command(number))
        except BaseException:
            session.close(number)
            raise
        return _Opened(session, number, events)

    def close_request(self, opened: _Opened) -> None:
        """Nobody waits for this request any more."""
        if opened.session.close(opened.number) and self._nursery is not None:
            self._nursery.start_soon(opened.session.send_quietly, Stop(request=opened.number))

    async def _usable_session(self) -> _Session:
        async with self._starting:
            if self._session is not None and self._session.usable:
                return self._session
            if self._nursery is None:
                raise AnswerInterrupted("the embedded runtime is not running")
            with trio.CancelScope(shield=True):  # a worker that was started always gets its reader
                worker = await self._start(self._nursery)
                self._session = _Session(worker, self._idle_seconds)
                self._nursery.start_soon(self._session.attend)
                await worker.send(self._assignment())
            return self._session

    def _assignment(self) -> dict[str, object]:
        return {
            "kind": "chat",
            "spec": msgspec.to_builtins(self._spec),
            "workdir": str(self._folder),
            "threads": self._threads,
            "sandbox": self._sandbox,
        }

    async def _start_process(self, nursery: trio.Nursery) -> WorkerProcess:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return await WorkerProcess.start(nursery, threads=self._threads, on_stderr=_log_stderr)


class Completion:
    """Pieces of an answer as they come. `tokens`, `prompt_tokens` and `finish` ("stop", "length" or "failed") are set
    when it has ended.

    Leave an answer early with `aclose` or by using it as `async with`; the worker then stops making it.
    """

    def __init__(self, request: _Request) -> None:
        self._request = request
        self.tokens = self.prompt_tokens = 0
        self.finish = ""

    def __aiter__(self) -> Completion:
        return self

    async def __anext__(self) -> str:
        if self.finish:
            raise StopAsyncIteration
        try:
            event = await self._request.next_event()
        except OrchdError:
            self.finish = "failed"
            raise
        if isinstance(event, Text):
            return event.text
        self.tokens, self.prompt_tokens, self.finish = event.tokens, event.prompt, event.finish
        raise StopAsyncIteration

    async def text(self) -> str:
        """The rest of the answer in one piece."""
        async with self:
            return "".join([piece async for piece in self])

    async def aclose(self) -> None:
        self._request.close()

    async def __aenter__(self) -> Completion:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._request.close()


class _Opened(NamedTuple):
    session: _Session
    number: int
    events: trio.MemoryReceiveChannel[_Item]


class _Request:
    """One request, sent again once if the worker died before any of the answer was out."""

    def __init__(self, runtime: EmbeddedRuntime, command: Callable[[int], Ask | Load]) -> None:
        self.command = command
        self._runtime = runtime
        self._opened: _Opened | None = None
        self._tries = 0
        self._streamed = False

    async def next_event(self) -> Text | Reply:
        """The next piece, or the end. Raises the request's error."""
        while True:
            item = await self._next_item()
            if isinstance(item, Text):
                self._streamed = True
                return item
            self._opened = None
            if isinstance(item, Reply):
                return item
            if not isinstance(item, _Lost):
                raise item
            if not item.again or self._streamed or self._tries >= TRIES:
                raise AnswerInterrupted(item.message)

    async def finish(self) -> Reply:
        """Wait for the end."""
        while not isinstance(event := await self.next_event(), Reply):
            pass
        return event

    def close(self) -> None:
        if self._opened is not None:
            opened, self._opened = self._opened, None
            self._runtime.close_request(opened)

    async def _next_item(self) -> _Item:
        try:
            if self._opened is None:
                self._tries += 1
                self._opened = await self._runtime.open_request(self)
        except WorkerLost as error:
            return _Lost(error.message, again=True)
        return await self._opened.events.receive()

    async def __aenter__(self) -> _Request:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Lost(NamedTuple):
    """The worker ended with the request open; `again`: the runtime is to ask another one."""

    message: str
    again: bool


_Item = Text | Reply | OrchdError | _Lost


class _Session:
    """One worker process and the requests that are open in it."""

    def __init__(self, worker: WorkerProcess, idle_seconds: float) -> None:
        self.worker = worker
        self._idle_seconds = idle_seconds
        self._open: dict[int, trio.MemorySendChannel[_Item]] = {}
        self._reading = trio.CancelScope()
        self._ended = trio.Event()
        self._stopping = False

    @property
    def usable(self) -> bool:
        return self.worker.running and not self._stopping and not self._reading.cancel_called

    def open(self, number: int) -> trio.MemoryReceiveChannel[_Item]:
        sender, receiver = trio.open_memory_channel[_Item](math.inf)  # bounded by max_tokens
        self._open[number] = sender
        self._rearm()
        return receiver

    def close(self, number: int) -> bool:
        """Forget a request. Returns whether the worker was still at it."""
        found = self._open.pop(number, None) is not None
        self._rearm()
        return found

    async def send(self, command: Command) -> None:
        await self.worker.send(msgspec.to_builtins(command))

    async def send_quietly(self, command: Command) -> None:
        try:
            await self.send(command)
        except WorkerLost:
            log.debug("a worker was gone before it was told to stop an answer")

    async def attend(self) -> None:
        """Read what the worker says until it ends, is idle for too long, or is to stop; then end it."""
        why = "the model's process ended unexpectedly"
        try:
            with self._reading:
                async for message in self.worker.messages():
                    self._dispatch(msgspec.convert(message, Event))
        except (WorkerLost, msgspec.ValidationError) as error:
            why = str(error)
        finally:
            again, self._stopping = not self._stopping, True
            if not again:
                why = "the embedded runtime was stopped"
            elif self.worker.stderr_tail:
                why += f": {self.worker.stderr_tail.strip().splitlines()[-1][:300]}"
            for number in list(self._open):
                self._deliver(number, _Lost(why, again=again))
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
        with trio.move_on_after(GOODBYE_SECONDS):
            await self.worker.wait()
            return
        await self.worker.stop()

    def _dispatch(self, event: Event) -> None:
        match event:
            case Text():
                self._deliver(event.request, event, last=False)
            case Reply():
                self._deliver(event.request, event)
            case Failure():
                self._deliver(event.request, _error(event))
            case Broken():
                for number in list(self._open):
                    self._deliver(number, _error(event))
            case Confined():
                level = logging.WARNING if event.sandbox.open else logging.DEBUG
                log.log(level, "chat worker: %s", event.sandbox.words)
            case _:
                pass

    def _deliver(self, number: int, item: _Item, *, last: bool = True) -> None:
        """Hand `item` to whoever waits for request `number`; late words to a closed one are dropped."""
        channel = self._open.get(number)
        if channel is None:
            return
        channel.send_nowait(item)
        if last:
            self.close(number)

    def _rearm(self) -> None:
        """The clock of idleness stands still while a request is open."""
        idle = not self._open
        self._reading.deadline = trio.current_time() + self._idle_seconds if idle else math.inf


def _error(event: Failure | Broken) -> OrchdError:
    return from_wire(event.code, event.message, event.hint, event.field)


def _log_stderr(chunk: bytes) -> None:
    for line in chunk.decode(errors="replace").splitlines():
        log.info("chat worker: %s", line)
