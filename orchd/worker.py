"""`python -m orchd.worker`: one process, one job.

The daemon talks to it in newline-delimited JSON over stdin and stdout (`jobs/process.py` is the other end).
First line in: `{"kind", "spec", "workdir", "threads"}`. Lines out: `ready`, `progress`, `log`, and in the end
`result` or `error`. SIGTERM asks for the end of the job. The process never outlives the daemon: the kernel kills
it on Linux, and everywhere it leaves when its stdin closes. It reads the assignment and goes into its sandbox
(`jobs/sandbox`): no network, only the files that the spec names.

With `--warm` the process loads torch first and then, on Linux, forks for each assignment: the child runs that one job
and exits, the parent never computes anything and says `ended` with the child's status. Elsewhere (a forked process
may not use Metal) it runs one job itself, like a plain one.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import importlib
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from types import FrameType
from typing import Literal, NamedTuple, NoReturn

import msgspec

from orchd.errors import DiskFull, JobFailed, MemoryShort, NotAvailable, OrchdError, ParamsInvalid
from orchd.jobs.context import JobContext
from orchd.jobs.kinds import KINDS, Kind, Kinds, load, struct
from orchd.jobs.sandbox import limits
from orchd.jobs.sandbox.access import granted
from orchd.jobs.sandbox.confine import Plan, confine
from orchd.paths import Paths

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


WARM_MODULES = ("torch", "transformers", "peft", "orchd.train.loop", "orchd.train.evaluate", "orchd.serve.build")
"""What a warm process has loaded before its job arrives: 4-10 s of imports, none of which reads anyone's data."""

ORPHAN_SECONDS = 2.0
"""A job that hasn't ended this long after the daemon closed the pipe is ended."""

EXIT_ORPHANED = 70
PR_SET_PDEATHSIG = 1

FORKS = sys.platform == "linux"
"""Whether a warm process forks for its jobs."""


def prepare_environment(threads: int) -> None:
    """Set what libraries read once, when they are imported later: thread counts, no network, no telemetry.

    Importing peft makes torch's folder for compiled code, which else is `torchinductor_USER` in TMPDIR.
    """
    os.environ.update(OFFLINE)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Paths.from_env().cache / "torchinductor"))
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """The first line that a worker gets."""

    kind: str
    spec: msgspec.Raw
    workdir: str
    threads: int = 1
    sandbox: Literal["auto", "required", "off"] = "auto"
    memory_mb: int = 0


class Ends(NamedTuple):
    """Private copies of stdin and stdout."""

    incoming: BufferedReader
    outgoing: int


def claim_ends() -> Ends:
    """Take stdin and stdout for the wire.

    File descriptor 1 is pointed at stderr and 0 at nothing, so that a library that prints or reads can't break it.
    """
    ends = Ends(os.fdopen(os.dup(0), "rb"), os.dup(1))
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return ends


def write_message(outgoing: int, message: Mapping[str, object]) -> None:
    data = memoryview(msgspec.json.encode(message) + b"\n")
    while data:
        data = data[os.write(outgoing, data) :]


class Pipe:
    """The wire to the daemon. A thread reads, so that the end of the pipe is seen while the job computes."""

    def __init__(self, ends: Ends) -> None:
        self._incoming, self._outgoing = ends
        self._lock = threading.Lock()
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._finished = threading.Event()
        threading.Thread(target=self._read, name="wire", daemon=True).start()

    def send(self, message: Mapping[str, object]) -> None:
        with self._lock:
            write_message(self._outgoing, message)

    def receive(self) -> dict[str, object] | None:
        line = self.receive_line()
        return None if line is None else msgspec.json.decode(line, type=dict[str, object])

    def receive_line(self) -> bytes | None:
        line = self._messages.get()
        if line is None:
            self._messages.put(None)  # the end stays the end for whoever asks again
        return line

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            for line in self._incoming:
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


def run_job(ends: Ends, parent: int, line: bytes, kinds: Kinds) -> int:
    """Run the job that `line` assigns, in its sandbox, and send its result or its error. Returns the exit status."""
    pipe: Pipe | None = None
    try:
        work = _confined(ends, parent, line, kinds)
        pipe = Pipe(ends)
        last: Mapping[str, object] = {"event": "result", "result": _result(pipe, work)}
    except Exception as error:
        if not isinstance(error, OrchdError):
            traceback.print_exc()
        last = _error_message(_numbered(error))
    if pipe is None:
        write_message(ends.outgoing, last)
    else:
        pipe.send(last)
        pipe.finish()
    return 0 if last["event"] == "result" else 1


def _numbered(error: Exception) -> OrchdError:
    """The numbered error that an unforeseen one comes down to, also one that was taken for a fault of the base."""
    if isinstance(error, OrchdError):
        lacking = limits.shortage(error.__cause__) if isinstance(error.__cause__, Exception) else None
        return error if lacking is None or isinstance(error, MemoryShort) else MemoryShort(lacking)
    if isinstance(error, ModuleNotFoundError):
        return NotAvailable(f"this job needs the Python package {error.name}, which isn't installed")
    if isinstance(error, PermissionError) and error.filename:
        hint = (
            "Check who may read it. A job's sandbox also refuses what the job wasn't given; `orchctl job show` has it."
        )
        return JobFailed(f"the job may not open {error.filename}: {error.strerror}", hint=hint)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("the disk is full: the job could not write its result")
    if (lacking := limits.shortage(error)) is not None:
        return MemoryShort(lacking)
    return JobFailed(f"{type(error).__name__}: {error}")


class Work(NamedTuple):
    """A job that can begin: what it is, what it was given, and where."""

    kind: Kind
    spec: msgspec.Struct
    assignment: Assignment


def _confined(ends: Ends, parent: int, line: bytes, kinds: Kinds) -> Work:
    """Read the assignment and go into the sandbox that it needs; tell the daemon what is in force."""
    assignment = msgspec.json.decode(line, type=Assignment)
    kind = kinds.get(assignment.kind)
    if kind is None:
        hint = "The daemon is of another version than its workers: restart it."
        raise ParamsInvalid(f"no job kind {assignment.kind!r}", hint=hint, field="kind")
    try:
        spec = msgspec.json.decode(assignment.spec, type=struct(kind.spec))
    except msgspec.ValidationError as error:
        raise ParamsInvalid(f"the {assignment.kind} job can't read its spec: {error}") from error
    plan = Plan(
        workdir=Path(assignment.workdir),
        granted=granted(spec),
        sockets=kind.sockets,
        memory_bytes=assignment.memory_mb * 1_000_000,
        nice=kind.nice,
        policy=assignment.sandbox,
    )
    found = confine(plan)
    die_with_parent(parent)  # changed rights can undo it
    write_message(ends.outgoing, {"event": "sandbox", "sandbox": msgspec.to_builtins(found)})
    return Work(kind, spec, assignment)


def _result(pipe: Pipe, work: Work) -> object:
    context = JobContext(Path(work.assignment.workdir), work.assignment.threads, pipe)

    def cancel(signum: int, frame: FrameType | None) -> None:
        context.cancel()

    signal.signal(signal.SIGTERM, cancel)
    os.chdir(context.workdir)
    function = load(work.kind.function)
    context.check()
    return function(work.spec, context)


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
    ends = claim_ends()
    die_with_parent(options.parent)
    try:
        if options.warm:
            _load_warm_modules()
            if FORKS:
                return serve_by_forking(ends, kinds)
        return serve_once(ends, options.parent, kinds)
    except BrokenPipeError:
        return EXIT_ORPHANED


def serve_once(ends: Ends, parent: int, kinds: Kinds) -> int:
    """Run the one job that comes. Returns the exit status. No thread runs before the sandbox is in force."""
    write_message(ends.outgoing, {"event": "ready"})
    line = ends.incoming.readline()
    return run_job(ends, parent, line, kinds) if line else 0


def serve_by_forking(ends: Ends, kinds: Kinds) -> int:
    """A child for each assignment, one at a time, until stdin closes. No thread runs here, so that forking is safe."""
    template = os.getpid()
    while True:
        write_message(ends.outgoing, {"event": "ready"})
        line = ends.incoming.readline()  # the daemon sends nothing after it until the job has ended
        if not line:
            return 0
        held = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # meant for the child, which is in the same group
        child = os.fork()
        if child == 0:
            status = EXIT_ORPHANED
            try:
                signal.signal(signal.SIGTERM, held)
                die_with_parent(template)
                status = run_job(ends, template, line, kinds)
            finally:
                leave(status)
        _, waited = os.waitpid(child, 0)
        signal.signal(signal.SIGTERM, held)
        write_message(ends.outgoing, {"event": "ended", "status": os.waitstatus_to_exitcode(waited)})


def leave(status: int) -> NoReturn:
    """Exit without the atexit work of libraries: the result is out, and the process holds nothing else."""
    sys.stdout.flush()  # what a library printed, on its way to the log
    sys.stderr.flush()
    os._exit(status)


def _load_warm_modules() -> None:
    """Missing ones are left to the job, which says which extra to install."""
    for name in WARM_MODULES:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)


if __name__ == "__main__":
    leave(main())
