"""The `chat` worker: holds several models in llama.cpp and answers what the embedded runtime asks over the pipe.

One thread an answer; at most `parallel` answers of one model are made together, the others wait inside llama.cpp.
Models are loaded on first use and the least recently used idle one is freed beyond MAX_MODELS.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from orchd.errors import JobFailed, OrchdError
from orchd.jobs.context import JobContext
from orchd.serve.engine import CONTEXT_TOKENS, Engine
from orchd.serve.specs import ChatEnd, ChatSpec
from orchd.serve.wire import Ask, Command, Failure, Load, Reply, Stop, Text, Unload

MAX_MODELS = 4  # held in memory at once, unless more are answering
MAX_ANSWERS = 16  # made at once, over all models; more wait in line


def run(spec: ChatSpec, job: JobContext) -> ChatEnd:
    """Serve until the daemon closes the pipe or asks for the end (`JobCancelled`)."""
    models = Models(spec, job.threads)
    desk = Desk(models, job)
    try:
        while (message := job.receive()) is not None:
            desk.take(msgspec.convert(message, Command))
    finally:
        desk.close()
    return ChatEnd(answers=desk.answers)


class Models:
    """The loaded models by path, and how many answers each is making now. Safe to use from several threads."""

    def __init__(self, spec: ChatSpec, threads: int) -> None:
        self._spec = spec
        self._threads = threads
        self._lock = threading.Lock()
        self._engines: dict[str, Engine] = {}  # least recently used first
        self._busy: dict[str, int] = {}
        self._unwanted: set[str] = set()

    def borrow(self, path: str) -> Engine:
        """The model at `path`, loaded if need be; give it back with `give_back`. Raises ModelNotLoaded."""
        with self._lock:
            engine = self._engines.pop(path, None) or self._load(path)
            self._engines[path] = engine
            self._busy[path] = self._busy.get(path, 0) + 1
            self._unwanted.discard(path)
            self._free_idle(MAX_MODELS)
            return engine

    def give_back(self, path: str) -> None:
        with self._lock:
            self._busy[path] -= 1
            self._free_idle(MAX_MODELS)

    def forget(self, path: str) -> None:
        """Free the model at `path` as soon as it makes no answer."""
        with self._lock:
            self._unwanted.add(path)
            self._free_idle(MAX_MODELS)

    def _load(self, path: str) -> Engine:
        return Engine(
            Path(path),
            threads=self._threads,
            parallel=self._spec.parallel,
            context=self._spec.context or CONTEXT_TOKENS,
        )

    def _free_idle(self, limit: int) -> None:
        for path in list(self._engines):
            if not self._busy.get(path) and (path in self._unwanted or len(self._engines) > limit):
                self._engines.pop(path).close()
                self._unwanted.discard(path)
                self._busy.pop(path, None)


class Desk:
    """Takes commands, runs each request in a thread, sends its events."""

    def __init__(self, models: Models, job: JobContext) -> None:
        self.answers = 0
        self._models = models
        self._job = job
        self._threads = ThreadPoolExecutor(MAX_ANSWERS, thread_name_prefix="answer")
        self._stopped: set[int] = set()
        self._open: set[int] = set()
        self._closing = False

    def take(self, command: Command) -> None:
        match command:
            case Stop():
                self._stopped |= {command.request} & self._open
            case Unload():
                self._models.forget(command.path)
            case Ask() | Load():
                self._open.add(command.request)
                self._threads.submit(self._serve, command)

    def close(self) -> None:
        """Cut the answers that are being made and wait for their threads."""
        self._closing = True
        self._threads.shutdown(cancel_futures=True)

    def _serve(self, command: Ask | Load) -> None:
        try:
            self._send(self._answer(command))
        except OrchdError as error:
            self._send(_failure(command.request, error))
        except Exception as error:
            self._send(_failure(command.request, JobFailed(f"{type(error).__name__}: {error}")))
        finally:
            self._open.discard(command.request)
            self._stopped.discard(command.request)

    def _answer(self, command: Ask | Load) -> Reply:
        engine = self._models.borrow(command.path)
        try:
            if isinstance(command, Load):
                return Reply(request=command.request, tokens=0, finish="loaded")
            answer = engine.chat(
                command.messages,
                max_tokens=command.max_tokens,
                temperature=command.temperature,
                on_text=lambda text: self._pass_on(command.request, text),
                sampling=command.sampling,
            )
            self.answers += 1
            return Reply(request=command.request, tokens=answer.tokens, finish=answer.finish, prompt=answer.prompt)
        finally:
            self._models.give_back(command.path)

    def _pass_on(self, request: int, text: str) -> bool:
        self._send(Text(request=request, text=text))
        return not self._closing and request not in self._stopped

    def _send(self, event: msgspec.Struct) -> None:
        self._job.send(msgspec.to_builtins(event))


def _failure(request: int, error: OrchdError) -> Failure:
    return Failure(request=request, code=error.code, message=error.message, hint=error.hint, field=error.field)
