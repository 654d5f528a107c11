"""Job rows: journalled, and in the node's index as the table `job`."""

from __future__ import annotations

from typing import Any

import msgspec

from orchd.errors import AmbiguousId, JobUnknown
from orchd.jobs.sandbox.report import Sandbox
from orchd.jobs.states import ErrorInfo, Job, State
from orchd.registry.local import Local, put
from orchd.registry.local_rows import JobRow

COLUMNS = "id, kind, state, title, spec, result, error, created, started, finished"
ENDED = tuple(state for state in State if state.ended)


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What column `spec` holds. `resumable`: the job can be started again after a restart of the daemon."""

    spec: Any = None
    note: Any = None
    resumable: bool = False
    crashes: int = 0
    sandbox: Sandbox | None = None
    seconds: float | None = None


class JobRows:
    """Jobs in the journal and the index. Every method reads or writes the disk: for a thread."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._index = local.index

    def put(self, job: Job, resumable: bool) -> None:
        row = JobRow(
            id=job.id,
            kind=job.kind,
            state=job.state.value,
            title=job.title,
            spec=_json(
                Stored(
                    spec=job.spec,
                    note=job.note,
                    resumable=resumable,
                    crashes=job.crashes,
                    sandbox=job.sandbox,
                    seconds=job.seconds,
                )
            ),
            result=None if job.result is None else _json(job.result),
            error=None if job.error is None else _json(job.error),
            created=job.created_ms,
            started=job.started_ms,
            finished=job.finished_ms,
        )
        self._local.act(f"job.{row.state}", put(row), urgent=job.state is not State.QUEUED)

    def get(self, id_or_prefix: str) -> Job:
        """One job by its id or the unique beginning of it. Raises `JobUnknown`, `AmbiguousId`."""
        wanted = id_or_prefix if id_or_prefix.startswith("job_") else "job_" + id_or_prefix
        rows = self._index.read(
            f"SELECT {COLUMNS} FROM job WHERE id >= ? AND id < ? ORDER BY id LIMIT 2", (wanted, wanted + "~")
        )
        if not rows:
            raise JobUnknown(f"no job {id_or_prefix!r}", field="job")
        if len(rows) > 1 and rows[0][0] != wanted:
            raise AmbiguousId(f"several jobs begin with {id_or_prefix!r}", field="job")
        return _job(rows[0])[0]

    def newest(self, state: State | None, limit: int, before: str | None) -> list[Job]:
        """At most `limit` jobs, newest first, older than the job `before`."""
        conditions, params = ["id < ?"], [before or "job_~"]
        if state is not None:
            conditions.append("state = ?")
            params.append(state.value)
        rows = self._index.read(
            f"SELECT {COLUMNS} FROM job WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?",
            (*params, limit),
        )
        return [_job(row)[0] for row in rows]

    def unfinished(self) -> list[tuple[Job, bool]]:
        """Jobs that had not ended, oldest first, each with whether it can be started again."""
        marks = ", ".join("?" * len(ENDED))
        rows = self._index.read(
            f"SELECT {COLUMNS} FROM job WHERE state NOT IN ({marks}) ORDER BY id",
            [state.value for state in ENDED],
        )
        return [_job(row) for row in rows]


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _job(row: tuple[Any, ...]) -> tuple[Job, bool]:
    identifier, kind, state, title, spec, result, error, created, started, finished = row
    stored = msgspec.json.decode(spec, type=Stored)
    job = Job(
        id=identifier,
        kind=kind,
        state=State(state),
        title=title,
        spec=stored.spec,
        note=stored.note,
        result=None if result is None else msgspec.json.decode(result),
        error=None if error is None else msgspec.json.decode(error, type=ErrorInfo),
        created_ms=created,
        started_ms=started,
        finished_ms=finished,
        crashes=stored.crashes,
        sandbox=stored.sandbox,
        seconds=stored.seconds,
    )
    return job, stored.resumable
