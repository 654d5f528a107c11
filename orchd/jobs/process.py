"""The daemon's end of a worker process: start it, talk to it in lines of JSON, end it.

`WorkerProcess` serves jobs (`jobs/jobs.py`) and long conversations (the embedded runtime) alike. Its life is bound
to the nursery that it is started in: when that is cancelled, the worker is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType

import msgspec
import trio

from orchd.errors import WorkerLost

COMMAND = (sys.executable, "-P", "-m", "orchd.worker")
"""`-P`: the daemon's current folder, which may be a home, is not on the worker's path."""
LINE_BYTES = 8 * 1024 * 1024
"""A longer line from a worker is a fault of the worker."""

STOP_SECONDS = 5.0
"""From SIGTERM to SIGKILL."""

TAIL_BYTES = 4096
"""How much of the end of a worker's stderr is kept in memory, for the error when it is lost."""

LAST_WORDS_SECONDS = 1.0
"""For what a process that has ended left in its stderr pipe."""

SEND_SECONDS = 10.0
"""A worker reads all the time; one that doesn't take a message in this time is stuck, and is killed."""

POLL_SECONDS = 0.05
"""How often the end of a process is looked for where the kernel can't tell (macOS)."""

READ_BYTES = 65_536

LogSink = Callable[[bytes], None]


class WorkerProcess:
    """One worker process. Make it with `start`.

    `send` a message, iterate over `messages()`, `terminate` (SIGTERM: cancel), `kill`, `wait`, or `stop` (SIGTERM,
    then SIGKILL after 5 s). `on_stderr` gets the lines that the process writes to stderr and may be set later.
    """

    def __init__(self, popen: subprocess.Popen[bytes], on_stderr: LogSink | None) -> None:
        if popen.stdin is None or popen.stdout is None or popen.stderr is None:
            raise ValueError("a worker needs all three pipes")
        self._popen = popen
        self.command: tuple[str, ...] = ()
        self._to = trio.lowlevel.FdStream(os.dup(popen.stdin.fileno()))
        self._from = trio.lowlevel.FdStream(os.dup(popen.stdout.fileno()))
        self._errors = trio.lowlevel.FdStream(os.dup(popen.stderr.fileno()))
        for pipe in (popen.stdin, popen.stdout, popen.stderr):
            pipe.close()
        self._lines: deque[bytes] = deque()
        self._unfinished = bytearray()
        self._sending = trio.Lock()
        self._ended = trio.Event()
        self._tail = bytearray()
        self._early: list[bytes] = []
        self._on_stderr: LogSink | None = None
        if on_stderr is not None:
            self.on_stderr = on_stderr

    @classmethod
    async def start(
        cls,
        nursery: trio.Nursery,
        *,
        threads: int = 1,
        warm: bool = False,
        on_stderr: LogSink | None = None,
        command: Sequence[str] = COMMAND,
    ) -> WorkerProcess:
        """Start a worker in `nursery`. With `warm` it loads torch at once, before its job is known.

        Call it from trio's thread, which has to be the daemon's main one: Linux kills a worker when the thread that
        started it ends (see `orchd.worker.die_with_parent`), so `trio.run_process` with its helper threads is out.
        """
        arguments = [*command, "--threads", str(threads), "--parent", str(os.getpid())]
        popen = subprocess.Popen(  # noqa: ASYNC220 - a few ms, and on purpose in this thread
            [*arguments, "--warm"] if warm else arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,  # Ctrl-C in the terminal is the daemon's to handle
        )
        worker = cls(popen, on_stderr)
        worker.command = tuple(command)
        nursery.start_soon(worker._attend, name=f"worker {popen.pid}")
        await trio.lowlevel.checkpoint()
        return worker

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    @property
    def stderr_tail(self) -> str:
        """The last lines that the process wrote to stderr."""
        return self._tail.decode(errors="replace")

    @property
    def on_stderr(self) -> LogSink | None:
        return self._on_stderr

    @on_stderr.setter
    def on_stderr(self, sink: LogSink) -> None:
        self._on_stderr = sink
        early, self._early = self._early, []
        for chunk in early:
            sink(chunk)

    async def send(self, message: Mapping[str, object] | msgspec.Struct) -> None:
        """Send one message. Raises `WorkerLost` when the process is gone."""
        data = msgspec.json.encode(message) + b"\n"
        async with self._sending:
            deadline = trio.current_time() + SEND_SECONDS
            with trio.CancelScope(deadline=deadline, shield=True) as scope:  # half a line would break the wire
                try:
                    await self._to.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    raise self._lost("it doesn't listen any more") from None
            if scope.cancelled_caught:
                self.kill()
                raise self._lost("it took no message in time")

    async def messages(self) -> AsyncIterator[dict[str, object]]:
        """What the worker says, in order, until it closes its side. One reader at a time; it may stop and go on later.

        Raises `WorkerLost` when a line is no JSON object or too long. The end of the worker is the end of the
        iteration, not an error: whoever waits for a result decides (`wait` gives the exit status).
        """
        while True:
            while self._lines:
                yield self._decode(self._lines.popleft())
            chunk = await self._receive(self._from)
            if not chunk:
                break
            *lines, rest = chunk.split(b"\n")
            if lines:
                self._lines.extend([bytes(self._unfinished) + lines[0], *lines[1:]])
                self._unfinished.clear()
            self._unfinished += rest
            if len(self._unfinished) > LINE_BYTES:
                raise self._lost(f"it wrote a line of more than {LINE_BYTES} bytes")
        await self._from.aclose()

    async def close_input(self) -> None:
        """Tell a conversation that there is nothing more to come; a good worker then leaves by itself."""
        async with self._sending:
            await self._to.aclose()

    def terminate(self) -> None:
        """SIGTERM: the worker's function gets `JobCancelled`."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, for the worker and whatever it started."""
        self._signal(signal.SIGKILL)

    async def wait(self) -> int:
        """The exit status, once the process has ended; -N for a signal N."""
        await self._ended.wait()
        return int(self._popen.returncode)

    async def stop(self, grace: float | None = None) -> int:
        """SIGTERM, after `grace` (5 s) SIGKILL. Returns the exit status. The process is gone even when cancelled."""
        self.terminate()
        try:
            with trio.move_on_after(STOP_SECONDS if grace is None else grace):
                return await self.wait()
        finally:
            self.kill()
            with trio.CancelScope(shield=True):
                await self._ended.wait()
        return int(self._popen.returncode)

    def lost(self, status: int | None = None) -> WorkerLost:
        """The error for a worker that ended without a result; `status` is that of a warm worker's child."""
        return self._lost("it ended without a result", status)

    async def __aenter__(self) -> WorkerProcess:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    def _signal(self, number: int) -> None:
        if self._popen.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)

    def _decode(self, line: bytes) -> dict[str, object]:
        try:
            return msgspec.json.decode(line, type=dict[str, object])
        except msgspec.DecodeError:
            raise self._lost(f"it wrote a line that is no JSON object: {line[:80]!r}") from None

    def _lost(self, why: str, status: int | None = None) -> WorkerLost:
        status = self._popen.returncode if status is None else status
        end = f", {describe_status(status)}" if status is not None else ""
        last = self.stderr_tail.strip().rpartition("\n")[2][:300]
        said = f"; its last words: {last}" if last else ""
        return WorkerLost(f"worker process {self.pid} was lost: {why}{end}{said}")

    async def _attend(self) -> None:
        """Carry stderr to the log and notice the end; on cancellation end the process."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_errors)
                await _wait_process(self._popen)
                # A grandchild may hold the pipe open for ever.
                nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS_SECONDS
        finally:
            self.kill()
            with trio.CancelScope(shield=True):
                await _wait_process(self._popen)
            self._ended.set()
            for stream in (self._to, self._errors):
                with trio.move_on_after(0):
                    await stream.aclose()

    async def _read_errors(self) -> None:
        pending = b""
        while chunk := await self._receive(self._errors):
            self._tail += chunk
            del self._tail[:-TAIL_BYTES]
            whole, newline, pending = (pending + chunk).rpartition(b"\n")
            if len(pending) > READ_BYTES:
                whole, newline, pending = whole + newline + pending, b"\n", b""
            self._tell_errors(whole + newline)
        self._tell_errors(pending and pending + b"\n")

    def _tell_errors(self, lines: bytes) -> None:
        """Whole lines only: others write to the same log."""
        if not lines:
            return
        if self._on_stderr is not None:
            self._on_stderr(lines)
        elif sum(map(len, self._early)) < READ_BYTES:
            self._early.append(lines)

    @staticmethod
    async def _receive(stream: trio.lowlevel.FdStream) -> bytes:
        try:
            return bytes(await stream.receive_some(READ_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""


def describe_status(status: int) -> str:
    """An exit status in words: "killed by SIGKILL" or "exit status 1"."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


async def _wait_process(popen: subprocess.Popen[bytes]) -> None:
    """Wait for the end of the process and reap it, without a thread where the kernel can tell."""
    if popen.poll() is not None:
        return
    try:
        descriptor = os.pidfd_open(popen.pid)
    except (AttributeError, OSError):
        while popen.poll() is None:  # noqa: ASYNC110 - the kernel gives no event here
            await trio.sleep(POLL_SECONDS)
        return
    try:
        while popen.poll() is None:
            await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


async def job_ended(worker: WorkerProcess) -> bool:
    """Wait for the end of the process that ran the job: the worker itself, or the child of a warm one."""
    async for message in worker.messages():
        if message.get("event") == "ended":
            return True
    await worker.wait()
    return True
