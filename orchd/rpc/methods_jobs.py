"""The methods of jobs and events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from orchd.errors import ParamsInvalid, did_you_mean
from orchd.jobs.events import KINDS, Event, EventLog
from orchd.jobs.jobs import Jobs
from orchd.jobs.sandbox.report import Sandbox
from orchd.jobs.states import ErrorInfo, Job, Progress, State
from orchd.rpc.connection import Session
from orchd.rpc.table import Params, Result, method

PAGE = 1_000
"""The most rows or log lines that one call gives."""


class Node(Protocol):
    """What these methods need of the daemon's node."""

    @property
    def jobs(self) -> Jobs: ...

    @property
    def events(self) -> EventLog: ...


class JobRow(Result, frozen=True, kw_only=True):
    """A job as clients see it. `seconds` is how long it ran, whatever was done to the clock meanwhile. `sandbox` is
    what its process found closed when it began; None before that."""

    id: str
    kind: str
    title: str
    state: State
    created_ms: int
    started_ms: int | None
    finished_ms: int | None
    seconds: float | None
    progress: Progress | None
    result: Any
    error: ErrorInfo | None
    sandbox: Sandbox | None

    @classmethod
    def of(cls, job: Job) -> JobRow:
        return cls(
            id=job.id,
            kind=job.kind,
            title=job.title,
            state=job.state,
            created_ms=job.created_ms,
            started_ms=job.started_ms,
            finished_ms=job.finished_ms,
            seconds=job.seconds,
            progress=job.progress,
            result=job.result,
            error=job.error,
            sandbox=job.sandbox,
        )


class JobStarted(Result, frozen=True, kw_only=True):
    """What long work answers at once; `job.wait` or the events tell the rest."""

    job: str


class JobParams(Params, frozen=True, kw_only=True):
    """`job` is an id or the beginning of one."""

    job: str


class ListParams(Params, frozen=True, kw_only=True):
    state: State | None = None
    limit: int = 50
    cursor: str | None = None


class JobPage(Result, frozen=True, kw_only=True):
    """`cursor` is for the next page, None when this is the last."""

    jobs: list[JobRow]
    cursor: str | None


class LogParams(Params, frozen=True, kw_only=True):
    job: str
    limit: int = 200


class LogLines(Result, frozen=True, kw_only=True):
    lines: list[str]


class SubscribeParams(Params, frozen=True, kw_only=True):
    """`after`: give first what is kept after this event's number. `job`, `kinds`: only of these."""

    after: int | None = None
    job: str | None = None
    kinds: tuple[str, ...] = ()


class Subscribed(Result, frozen=True, kw_only=True):
    """`last` is the number of the newest event when the subscription began."""

    subscription: str
    last: int


class UnsubscribeParams(Params, frozen=True, kw_only=True):
    subscription: str


class Unsubscribed(Result, frozen=True, kw_only=True):
    ended: bool


class EventNotice(Result, frozen=True, kw_only=True):
    """The params of the notification `events.event`."""

    subscription: str
    event: Event


@method("job.list", ListParams, JobPage, "Jobs of this node, newest first")
async def list_jobs(node: Node, params: ListParams) -> JobPage:
    jobs, cursor = await node.jobs.list(params.state, _limit(params.limit), params.cursor)
    return JobPage(jobs=[JobRow.of(job) for job in jobs], cursor=cursor)


@method("job.show", JobParams, JobRow, "One job: its state, progress, result or error")
async def show_job(node: Node, params: JobParams) -> JobRow:
    return JobRow.of(await node.jobs.get(params.job))


@method("job.wait", JobParams, JobRow, "One job, answered when it has ended")
async def wait_for_job(node: Node, params: JobParams) -> JobRow:
    job = await node.jobs.get(params.job)
    return JobRow.of(await node.jobs.wait(job.id))


@method("job.cancel", JobParams, JobRow, "Ask a queued or running job to stop")
async def cancel_job(node: Node, params: JobParams) -> JobRow:
    return JobRow.of(await node.jobs.cancel(params.job))


@method("job.logs", LogParams, LogLines, "The last lines of a job's log")
async def job_logs(node: Node, params: LogParams) -> LogLines:
    return LogLines(lines=await node.jobs.logs(params.job, _limit(params.limit)))


@method("events.subscribe", SubscribeParams, Subscribed, "Stream events as `events.event` notifications")
async def subscribe(node: Node, params: SubscribeParams, session: Session) -> Subscribed:
    _check_kinds(params.kinds)
    job = None if params.job is None else (await node.jobs.get(params.job)).id
    name = session.free_name("sub_")
    last = node.events.last
    subscription = node.events.subscribe(params.after, job=job, kinds=params.kinds)

    async def forward() -> None:
        try:
            async for event in subscription:
                await session.notify("events.event", EventNotice(subscription=name, event=event))
        finally:
            subscription.close()

    try:
        session.afterwards(name, forward)
    except BaseException:
        subscription.close()
        raise
    return Subscribed(subscription=name, last=last)


@method("events.unsubscribe", UnsubscribeParams, Unsubscribed, "End a stream of events")
async def unsubscribe(node: Node, params: UnsubscribeParams, session: Session) -> Unsubscribed:
    return Unsubscribed(ended=session.end(params.subscription))


def _check_kinds(kinds: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in KINDS:
            message = f"no event is of kind {kind[:80]!r}; there is {', '.join(KINDS)}"
            raise ParamsInvalid(message, hint=did_you_mean(kind, KINDS) or "Choose from these.", field="kinds")


def _limit(limit: int) -> int:
    if not 1 <= limit <= PAGE:
        raise ParamsInvalid(f"limit must be from 1 to {PAGE}, not {limit}", field="limit")
    return limit
