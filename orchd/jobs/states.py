"""What a job is and which way it may go."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import msgspec

from orchd.errors import OrchdError, from_wire
from orchd.jobs.sandbox.report import Sandbox


class State(enum.StrEnum):
    """Where a job stands. `interrupted`: it ran when the daemon stopped, and can't go on by itself."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    @property
    def ended(self) -> bool:
        return not TRANSITIONS[self]


TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.INTERRUPTED}),
    # Back to queued: the daemon stops, and the job goes on when it is there again.
    State.RUNNING: frozenset(
        {State.QUEUED, State.CANCELLING, State.DONE, State.FAILED, State.CANCELLED, State.INTERRUPTED}
    ),
    # A job may finish, or fail, before it notices that it should stop.
    State.CANCELLING: frozenset({State.DONE, State.FAILED, State.CANCELLED, State.INTERRUPTED}),
    State.DONE: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.INTERRUPTED: frozenset(),
}


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a job is: `done` of `total` `unit`s, the estimated seconds left, and figures such as the loss."""

    done: float
    total: float
    unit: str
    eta_s: float | None = None
    figures: dict[str, float | int | str] = {}


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A numbered error as it is kept and shown. `log` is the end of the job's log."""

    code: int
    name: str
    message: str
    hint: str
    field: str | None = None
    log: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: OrchdError, log: tuple[str, ...] = ()) -> ErrorInfo:
        return cls(
            code=error.code,
            name=error.name,
            message=error.message,
            hint=error.hint,
            field=error.field,
            log=log,
        )

    def exception(self) -> OrchdError:
        return from_wire(self.code, self.message, self.hint, self.field)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job as it stands at one moment. Times are milliseconds since 1970.

    `spec` is what the worker got, `note` what the daemon keeps beside it for the time when the worker is done;
    both are plain JSON. `result` is the final, public result. `seconds` is how long it ran since its last start, by a
    clock that nobody sets: the times of day may jump. `crashes` counts how often the daemon died while it ran.
    `sandbox` is what its last process was confined by.
    """

    id: str
    kind: str
    title: str
    state: State
    created_ms: int
    started_ms: int | None = None
    finished_ms: int | None = None
    seconds: float | None = None
    spec: Any = None
    note: Any = None
    progress: Progress | None = None
    result: Any = None
    error: ErrorInfo | None = None
    crashes: int = 0
    sandbox: Sandbox | None = None


def move(job: Job, state: State, now_ms: int, **changes: Any) -> Job:
    """The job in its next state. Raises ValueError when the table has no such transition."""
    if state not in TRANSITIONS[job.state]:
        raise ValueError(f"job {job.id} can't go from {job.state} to {state}")
    if state is State.RUNNING:
        changes["started_ms"] = now_ms
    if state.ended:
        changes["finished_ms"] = now_ms
    return msgspec.structs.replace(job, state=state, **changes)


def worker_error(message: Mapping[str, Any]) -> OrchdError:
    """What a worker says that it failed of."""
    info = msgspec.convert({"name": "", **message}, ErrorInfo, strict=False)
    return info.exception()
