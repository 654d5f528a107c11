"""`python -m orchd.worker`: one process, one job.

The daemon talks to it in newline-delimited JSON over stdin and stdout (`jobs/process.py` is the other end).
First line in: `{"kind", "spec", "workdir", "threads"}`. Lines out: `ready`, `progress`, `log`, and in the end
`result` or `error`. SIGTERM asks for the end of the job. The process never outlives the daemon: the kernel kills
it on Linux, and everywhere it leaves when its stdin closes. It reaches no network and calls no one home.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import msgspec

from orchd.errors import JobFailed, NotAvailable, OrchdError, ParamsInvalid
from orchd.jobs.context import JobContext
from orchd.jobs.kinds import KINDS, Kinds, load, struct

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


WARM_MODULES = ("torch", "transformers", "peft")
"""What a warm process has loaded before its job arrives: 4-10 s of imports."""

ORPHAN_SECONDS = 2.0
"""A job that hasn't ended this long after the daemon closed the pipe is ended."""

EXIT_ORPHANED = 70
PR_SET_PDEATHSIG = 1


def prepare_environment(threads: int) -> None:
    """Set what libraries read once, when they are imported later: thread counts, no network, no telemetry."""
    os.environ.update(OFFLINE)
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """The first line that a worker gets."""

    kind: str
    spec: msgspec.Raw
    workdir: str
    threads: int = 1


class Pipe:
    """The wire to the daemon on private copies of stdin and stdout.

    File descriptor 1 is pointed at stderr and 0 at nothing, so that a library that prints or reads can't break
    the wire. A thread reads, so that the end of the pipe is seen while the job computes.
    """

    def __init__(self) -> None:
        self._incoming = os.fdopen(os.dup(0), "rb", buffering=0)
        self._outgoing = os.dup(1)
        os.dup2(2, 1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        self._lock = threading.Lock()
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._finished = threading.Event()
        threading.Thread(target=self._read, name="wire", daemon=True).start()

    def send(self, message: Mapping[str, object]) -> None:
        data = memoryview(msgspec.json.encode(message) + b"\n")
        with self._lock:
            while data:
                data = data[os.write(self._outgoing, data) :]

    def receive(self) -> dict[str, object] | None:
        line = self.receive_line()
        return None if line is None else msgspec.json.decode(line, type=dict[str, object])

    def receive_line(self) -> bytes | None:
        line = self._messages.get()
        if line is None:
            self._messages.put(None)  # the end stays the end for whoever asks again
        return line

    def _read(self) -> None:
        with contextlib.suppress(OSError), os.fdopen(os.dup(self._incoming.fileno()), "rb") as lines:
            for line in lines:
                self._messages.put(line)
        self._messages.put(None)
        if not self._finished.wait(ORPHAN_SECONDS):
            os._exit(EXIT_ORPHANED)

    def finish(self) -> None:
        self._finished.set()


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when the daemon dies. Linux only; elsewhere the closed pipe does it.

    The signal comes when the *thread* ends that started this process, so `jobs/process.py` starts workers from
    the daemon's main thread (`tests/jobs/test_worker.py::test_dies_with_the_daemon`).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent and os.getppid() != parent:
        os._exit(EXIT_ORPHANED)


def run_job(pipe: Pipe, line: bytes, kinds: Kinds) -> int:
    """Run the job that `line` assigns and send its result or its error. Returns the exit status."""
    try:
        pipe.send({"event": "result", "result": _result(pipe, line, kinds)})
    except OrchdError as error:
        pipe.send(_error_message(error))
        return 1
    except ModuleNotFoundError as error:
        traceback.print_exc()
        missing = NotAvailable(f"this job needs the Python package {error.name}, which isn't installed")
        pipe.send(_error_message(missing))
        return 1
    except Exception as error:
        traceback.print_exc()
        pipe.send(_error_message(JobFailed(f"{type(error).__name__}: {error}")))
        return 1
    return 0


def _result(pipe: Pipe, line: bytes, kinds: Kinds) -> object:
    assignment = msgspec.json.decode(line, type=Assignment)
    kind = kinds.get(assignment.kind)
    if kind is None:
        raise ParamsInvalid(f"no job kind {assignment.kind!r}", field="kind")
    context = JobContext(Path(assignment.workdir), assignment.threads, pipe)

    def cancel(signum: int, frame: FrameType | None) -> None:
        context.cancel()

    signal.signal(signal.SIGTERM, cancel)
    try:
        spec = msgspec.json.decode(assignment.spec, type=struct(kind.spec))
    except msgspec.ValidationError as error:
        raise ParamsInvalid(f"the {assignment.kind} job can't read its spec: {error}") from error
    os.chdir(context.workdir)
    function = load(kind.function)
    context.check()
    return function(spec, context)


def _error_message(error: OrchdError) -> dict[str, object]:
    return {
        "event": "error",
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "field": error.field,
    }


def main(arguments: list[str] | None = None, kinds: Kinds = KINDS) -> int:
    parser = argparse.ArgumentParser(prog="python -m orchd.worker", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parent", type=int, default=0, help="process id of the daemon")
    parser.add_argument("--warm", action="store_true", help="load torch before the job arrives")
    options = parser.parse_args(arguments)
    prepare_environment(options.threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which then ends its workers
    pipe = Pipe()
    die_with_parent(options.parent)
    try:
        if options.warm:
            _load_warm_modules()
        pipe.send({"event": "ready"})
        line = pipe.receive_line()
        return 0 if line is None else run_job(pipe, line, kinds)
    except BrokenPipeError:
        return EXIT_ORPHANED
    finally:
        pipe.finish()


def _load_warm_modules() -> None:
    """Missing ones are left to the job, which says which extra to install."""
    for name in WARM_MODULES:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # no atexit work of libraries: the result is out, and the process holds nothing else
