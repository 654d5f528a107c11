"""The queue, its states, and what survives a restart. Workers are real processes, the index is the real one."""

from __future__ import annotations

import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from orchd.cli.nouns.job import human_row
from orchd.cli.progress import waiting
from orchd.cli.text import duration
from orchd.config import JobsConfig
from orchd.errors import AdapterConfigRefused, AmbiguousId, DiskFull, JobFailed, JobNotRunning, JobUnknown, WorkerLost
from orchd.jobs.entry import LocalContext, new_id
from orchd.jobs.eta import Estimate
from orchd.jobs.events import EventLog, Subscription
from orchd.jobs.jobs import Jobs
from orchd.jobs.states import TRANSITIONS, Job, State, move
from orchd.net import Transferred
from orchd.node import Node
from orchd.registry.index import Index
from orchd.registry.journal import Journal
from orchd.registry.local import Local
from orchd.rpc.methods_adapters import start_fetch
from tests.jobs import fake_worker
from tests.jobs.fake_worker import CountResult, CountSpec

SECONDS = 30


class Ticking:
    """A clock that moves a millisecond each time it is looked at."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def __call__(self) -> int:
        self.ms += 1
        return self.ms


class House:
    """A node's state on disk and the parts that jobs need; `running` is one life of a daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Ticking()
        self.index = Index(folder / "index.duckdb")
        self.local = Local(Journal(folder / "journal.log", self.clock()), self.index, self.clock)
        self.prepare: Callable[[Jobs], None] = lambda jobs: None
        self.config = JobsConfig(parallel=1, warm_seconds=0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[Jobs, EventLog]]:
        events = EventLog(self.folder / "state", self.clock)
        jobs = Jobs(
            self.local,
            self.folder / "state",
            self.config,
            events,
            work=self.folder / "work",
            kinds=fake_worker.KINDS,
            command=fake_worker.COMMAND,
            rng=random.Random(7),
        )
        self.prepare(jobs)
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(jobs.run)
                yield jobs, events
                nursery.cancel_scope.cancel()
        events.close()


@pytest.fixture
def house(tmp_path: Path) -> Any:
    made = House(tmp_path)
    yield made
    made.local.close()
    made.index.close()


async def until(subscription: Subscription, kind: str, job: str | None = None) -> None:
    async for event in subscription:
        if event.kind == kind and job in {None, event.job}:
            return


async def started(jobs: Jobs, events: EventLog, kind: str, **spec: Any) -> Job:
    """A job that runs and has told progress."""
    subscription = events.subscribe()
    job = await jobs.submit(kind, CountSpec(**spec), title=f"a {kind} job")
    await until(subscription, "job.progress", job.id)
    subscription.close()
    return job


async def test_a_job_from_queue_to_result(house: House) -> None:
    seen: list[Path] = []

    async def publish(result: CountResult, workdir: Path) -> msgspec.Struct:
        seen.append(workdir)
        assert (await trio.Path(workdir / result.file).read_text()) == "done"
        return CountResult(steps=result.steps * 100)

    async with house.running() as (jobs, events):
        subscription = events.subscribe()
        job = await jobs.submit("count", CountSpec(steps=4), title="counting", on_result=publish)
        assert job.state is State.QUEUED
        done = await jobs.wait(job.id)
        assert done.state is State.DONE
        assert done.result["steps"] == 400
        assert done.started_ms is not None
        assert done.finished_ms is not None
        assert done.created_ms < done.started_ms < done.finished_ms
        subscription.close()
        told = [event async for event in subscription]
        assert [e.kind for e in told if e.kind != "job.progress"] == ["job.queued", "job.started", "job.done"]
        progress = [e.data for e in told if e.kind == "job.progress"]
        assert progress[-1] == {
            "done": 4,
            "total": 4,
            "unit": "steps",
            "eta_s": 0.0,
            "figures": {"loss": 0.25},
        }
        log = await jobs.logs(job.id)
        assert "counted" in log
        assert "a library says hello on stdout" in log
        assert await jobs.get(job.id[:12]) == done
        assert not await trio.Path(seen[0]).exists()


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("refuse", AdapterConfigRefused, "auto_map"),
        ("crash", JobFailed, "the seventh row is odd"),
        ("die", WorkerLost, "SIGKILL"),
        ("garbage", WorkerLost, "no JSON object"),
        ("wrong_shape", JobFailed, "steps"),
    ],
)
async def test_failures_have_numbers_and_the_end_of_the_log(
    house: House, kind: str, error: type[Any], text: str
) -> None:
    async with house.running() as (jobs, _):
        job = await jobs.submit(kind, CountSpec(), title="will fail")
        failed = await jobs.wait(job.id)
        assert failed.state is State.FAILED
        assert failed.error is not None
        assert failed.error.code == error.code
        assert text in failed.error.message
        assert isinstance(failed.error.exception(), error)
        if kind == "die":
            assert "about to be killed" in failed.error.log
        if kind == "crash":
            assert any("Traceback" in line for line in failed.error.log)
        next_one = await jobs.submit("count", CountSpec(), title="the queue goes on")
        assert (await jobs.wait(next_one.id)).state is State.DONE


async def test_a_failing_on_result_fails_the_job(house: House) -> None:
    async def publish(result: Any, workdir: Path) -> msgspec.Struct:
        async with trio.open_nursery() as nursery:  # errors out of nurseries come in groups
            nursery.start_soon(refuse)
        raise AssertionError

    async def refuse() -> None:
        raise AdapterConfigRefused("not this one")

    async with house.running() as (jobs, _):
        job = await jobs.submit("count", CountSpec(), title="t", on_result=publish)
        failed = await jobs.wait(job.id)
        assert failed.error is not None
        assert failed.error.code == AdapterConfigRefused.code


async def test_cancel_a_running_a_queued_and_an_ended_job(house: House) -> None:
    async with house.running() as (jobs, events):
        running = await started(jobs, events, "until_cancelled")
        queued = await jobs.submit("count", CountSpec(), title="waits")
        assert jobs.counts().queued == 1
        assert jobs.counts().running == 1
        assert (await jobs.cancel(queued.id)).state is State.CANCELLED
        assert (await jobs.cancel(running.id)).state is State.CANCELLING
        assert (await jobs.cancel(running.id)).state in {State.CANCELLING, State.CANCELLED}
        assert (await jobs.wait(running.id)).state is State.CANCELLED
        with pytest.raises(JobNotRunning):
            await jobs.cancel(running.id)
        with pytest.raises(JobUnknown):
            await jobs.cancel("job_0000000000000000")
        assert jobs.counts().running == 0


async def test_cancel_at_the_very_start(house: House) -> None:
    async with house.running() as (jobs, _):
        for _attempt in range(5):
            job = await jobs.submit("until_cancelled", CountSpec(), title="short life")
            await jobs.cancel(job.id)
            assert (await jobs.wait(job.id)).state is State.CANCELLED


async def test_a_deaf_worker_is_killed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchd.jobs.jobs.STOP_SECONDS", 0.05)
    async with house.running() as (jobs, events):
        job = await started(jobs, events, "deaf")
        await jobs.cancel(job.id)
        assert (await jobs.wait(job.id)).state is State.CANCELLED


async def test_how_long_it_took_is_not_told_by_a_clock_that_is_set(house: House, tmp_path: Path) -> None:
    async with house.running() as (jobs, events):
        job = await started(jobs, events, "gated", marker=str(tmp_path / "go"))
        house.clock.ms -= 3_600_000
        (tmp_path / "go").touch()
        ended = await jobs.wait(job.id)
        assert ended.seconds is not None
        assert 0 < ended.seconds < SECONDS
        assert jobs._rows.get(job.id).seconds == ended.seconds
        shown = human_row(msgspec.to_builtins(ended))
        assert f"took       {duration(ended.seconds)}" in shown


async def test_a_worker_killed_from_outside_is_lost(house: House) -> None:
    async with house.running() as (jobs, events):
        job = await started(jobs, events, "deaf")
        worker = jobs._live[job.id].worker
        assert worker is not None
        worker._signal(signal.SIGKILL)
        failed = await jobs.wait(job.id)
        assert failed.error is not None
        assert failed.error.code == WorkerLost.code


async def test_parallel_limit_and_order(house: House, tmp_path: Path) -> None:
    house.config = JobsConfig(parallel=2, warm_seconds=0)
    marker = tmp_path / "go"
    async with house.running() as (jobs, events):
        first = await started(jobs, events, "gated", marker=str(marker))
        second = await started(jobs, events, "gated", marker=str(marker))
        rest = [await jobs.submit("count", CountSpec(), title=f"no. {n}") for n in range(3)]
        assert [(await jobs.get(job.id)).state for job in rest] == [State.QUEUED] * 3
        await trio.Path(marker).touch()
        for job in (first, second, *rest):
            assert (await jobs.wait(job.id)).state is State.DONE
        begun = [(await jobs.get(job.id)).started_ms for job in rest]
        assert begun == sorted(begun, key=lambda ms: ms or 0)


async def test_a_short_job_goes_beside_a_long_one_and_waits_for_its_like(house: House, tmp_path: Path) -> None:
    marker = tmp_path / "go"
    async with house.running() as (jobs, events):
        long = await started(jobs, events, "gated", marker=str(marker))
        assert (await jobs.wait((await jobs.submit("short", CountSpec(), title="an import")).id)).state is State.DONE
        assert (await jobs.get(long.id)).state is State.RUNNING
        await started(jobs, events, "short_gated", marker=str(marker))
        second = await jobs.submit("short", CountSpec(), title="a preview")
        assert waiting(msgspec.to_builtins(second.progress)) == "waits for a short_gated job"
        await trio.Path(marker).touch()
        done = await jobs.wait(second.id)
        assert (done.state, done.progress) == (State.DONE, None)


async def test_who_waits_says_for_what_and_how_long(house: House, tmp_path: Path) -> None:
    marker = tmp_path / "go"
    async with house.running() as (jobs, events):
        await started(jobs, events, "timed", marker=str(marker))
        first, second = [await jobs.submit("count", CountSpec(), title=f"no. {n}") for n in range(2)]
        told = [waiting(msgspec.to_builtins((await jobs.get(job.id)).progress)) for job in (first, second)]
        assert told == [
            "waits for a timed job, 1 min 30 s left",
            "waits for a timed job and 1 more, 1 min 30 s left",
        ]
        await jobs.cancel(first.id)
        assert "and" not in waiting(msgspec.to_builtins((await jobs.get(second.id)).progress))
        await trio.Path(marker).touch()
        assert (await jobs.wait(second.id)).state is State.DONE


async def test_restart_interrupts_what_ran_and_requeues_what_waited(house: House, tmp_path: Path) -> None:
    async def finish(job: Job, result: CountResult, workdir: Path) -> msgspec.Struct:
        return CountResult(steps=result.steps + job.note["add"])

    async def closure(result: Any, workdir: Path) -> msgspec.Struct:
        raise AssertionError

    house.prepare = lambda jobs: jobs.finisher("count", finish)
    async with house.running() as (jobs, events):
        running = await started(jobs, events, "until_cancelled")
        waiting = await jobs.submit("count", CountSpec(steps=2), title="waits", note={"add": 40})
        lost = await jobs.submit("count", CountSpec(), title="can't come back", on_result=closure)
    async with house.running() as (jobs, events):
        subscription = events.subscribe(after=0, kinds=["job.interrupted"])
        assert (await jobs.get(running.id)).state is State.INTERRUPTED
        done = await jobs.wait(waiting.id)
        assert done.state is State.DONE
        assert done.result["steps"] == 42
        gone = await jobs.get(lost.id)
        assert gone.state is State.INTERRUPTED
        assert gone.error is not None
        assert gone.error.name == "JobInterrupted"
        assert {(await anext(subscription)).job for _ in range(2)} == {running.id, lost.id}


async def test_what_comes_after_the_worker_is_told_and_can_be_cancelled(house: House) -> None:
    began, left = trio.Event(), trio.Event()

    async def after(context: LocalContext) -> None:
        try:
            context.progress(3, 4, "bytes")
            began.set()
            await trio.sleep_forever()
        finally:
            left.set()

    def prepare(jobs: Jobs) -> None:
        async def finish(job: Job, result: CountResult, workdir: Path) -> msgspec.Struct:
            await jobs.told(job.id, after)
            return result

        jobs.finisher("count", finish)

    house.prepare = prepare
    async with house.running() as (jobs, _):
        job = await jobs.submit("count", CountSpec(steps=2), title="uploads")
        await began.wait()
        shown = (await jobs.get(job.id)).progress
        assert shown is not None
        assert (shown.done, shown.total, shown.unit) == (3, 4, "bytes")
        assert [one.id for one in jobs.going("count")] == [job.id]
        await jobs.cancel(job.id)
        assert (await jobs.wait(job.id)).state is State.CANCELLED
        assert left.is_set()
        assert jobs.going("count") == []


async def test_a_crash_of_the_daemon_leaves_running_rows_that_become_interrupted(house: House) -> None:
    row = Job(id="job_0000000000000001", kind="count", title="t", state=State.RUNNING, created_ms=1)
    async with house.running() as (jobs, _):
        await trio.to_thread.run_sync(jobs._rows.put, row, True)
    async with house.running() as (jobs, _):
        assert (await jobs.wait(row.id)).state is State.INTERRUPTED


async def test_what_can_go_on_does_so_after_a_restart(house: House, tmp_path: Path) -> None:
    marker = tmp_path / "go"
    async with house.running() as (jobs, events):
        job = await started(jobs, events, "going_on", marker=str(marker), steps=7)
    marker.touch()
    async with house.running() as (jobs, events):
        assert (await jobs.get(job.id)).state in {State.QUEUED, State.RUNNING}
        done = await jobs.wait(job.id)
        assert (done.state, done.result["steps"], done.crashes) == (State.DONE, 7, 0)
        kinds = [event.kind async for event in first(3, events.subscribe(after=0, job=job.id))]
    assert kinds == ["job.queued", "job.started", "job.progress"]


async def first(count: int, subscription: Subscription) -> AsyncIterator[Any]:
    async for event in subscription:
        yield event
        count -= 1
        if not count:
            return


async def test_paused_it_waits_and_its_worker_is_gone(house: House, tmp_path: Path) -> None:
    async with house.running() as (jobs, events):
        job = await started(jobs, events, "going_on", marker=str(tmp_path / "go"))
        other = await jobs.submit("count", CountSpec(), title="waits behind it")
        worker = jobs._live[job.id].worker
        assert worker is not None
        subscription = events.subscribe()
        await jobs.pause()
        assert await worker.wait() == 1, "it heard JobCancelled: nobody killed it"
        await until(subscription, "job.queued", job.id)
        assert (await jobs.get(job.id)).state is State.QUEUED
        assert (await jobs.get(other.id)).state is State.QUEUED
        assert jobs.counts().queued == 1


@pytest.mark.parametrize(("crashes", "state"), [(4, State.DONE), (5, State.INTERRUPTED)])
async def test_what_was_there_at_too_many_crashes_stays_down(house: House, crashes: int, state: State) -> None:
    spec = {"steps": 1, "marker": str(house.folder)}
    row = Job(id="job_01", kind="going_on", title="t", state=State.RUNNING, created_ms=1, spec=spec, crashes=crashes)
    async with house.running() as (jobs, _):
        await trio.to_thread.run_sync(jobs._rows.put, row, True)
    async with house.running() as (jobs, _):
        ended = await jobs.wait(row.id)
        assert (ended.state, ended.crashes) == (state, 5)


async def test_a_warm_worker_that_heard_the_cancel_is_left_alone(house: House, tmp_path: Path) -> None:
    """It may be on its next job when the time to kill it would come."""
    house.config = JobsConfig(parallel=1, warm_seconds=60)
    async with house.running() as (jobs, events):
        job = await started(jobs, events, "warm_gated", marker=str(tmp_path / "go"))
        await jobs.cancel(job.id)
        assert (await jobs.wait(job.id)).state is State.CANCELLED
        await trio.testing.wait_all_tasks_blocked()
        assert [task for task in jobs._started().child_tasks if "_end_worker" in task.name] == []


async def test_local_jobs(house: House) -> None:
    async def good(context: LocalContext) -> msgspec.Struct:
        for done in range(1, 4):
            context.progress(done, 3, "bytes")
        context.log("fetched")
        return CountResult(steps=3)

    async def bad(context: LocalContext) -> msgspec.Struct:
        raise ValueError("odd")

    async def endless(context: LocalContext) -> msgspec.Struct:
        await trio.sleep_forever()
        raise AssertionError

    async with house.running() as (jobs, events):
        blocker = await started(jobs, events, "until_cancelled")
        job = await jobs.submit_local("fetch", "fetching", good)
        done = await jobs.wait(job.id)
        assert done.state is State.DONE
        assert done.result["steps"] == 3
        assert await jobs.logs(job.id) == ["fetched"]
        failed = await jobs.wait((await jobs.submit_local("fetch", "fetching", bad)).id)
        assert failed.error is not None
        assert failed.error.message == "ValueError: odd"
        waiting = await jobs.submit_local("fetch", "fetching", endless)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await jobs.cancel(waiting.id)
        assert (await jobs.wait(waiting.id)).state is State.CANCELLED
        await jobs.cancel(blocker.id)


async def test_an_adapter_is_fetched_by_one_job_which_says_what_it_waits_for(house: House) -> None:
    told = trio.Event()

    async def fetch(adapter: str, *, progress: Callable[[Transferred], None], **how: Any) -> None:
        for _ in range(2):
            progress(Transferred(1_500_000, 4_000_000, waits="p has given its share"))
        told.set()
        await trio.sleep_forever()

    async with house.running() as (jobs, _):
        node = cast(Node, SimpleNamespace(jobs=jobs, network=SimpleNamespace(fetch=fetch)))
        first = await start_fetch(node, "adp_x")
        await told.wait()
        assert (await start_fetch(node, "adp_x")).id == first.id
        others = [await start_fetch(node, "adp_x", ("peer",)), await start_fetch(node, "adp_y")]
        assert len({first.id, *(job.id for job in others)}) == 3, "other peers are asked, or for another one"
        assert await jobs.logs(first.id) == ["p has given its share"]
        shown = human_row(msgspec.to_builtins(await jobs.get(first.id)))
        assert "p has given its share" in shown
        assert "1.5 MB of 4.0 MB" in shown
        await jobs.cancel(first.id)
        again = await start_fetch(node, "adp_x")
        assert again.id != first.id, "one that was told to stop is no help"
        for job in (*others, again):
            await jobs.cancel(job.id)


async def test_list_pages_filters_and_prefixes(house: House) -> None:
    async def quick(context: LocalContext) -> msgspec.Struct:
        return CountResult(steps=0)

    async with house.running() as (jobs, events):
        made = [await jobs.submit_local("fetch", f"no. {n}", quick) for n in range(5)]
        for job in made:
            await jobs.wait(job.id)
        running = await started(jobs, events, "until_cancelled")
        newest_first = [job.id for job in reversed([*made, running])]
        page, cursor = await jobs.list(limit=4)
        assert [job.id for job in page] == newest_first[:4]
        assert page[0].progress is not None
        rest, end = await jobs.list(limit=4, cursor=cursor)
        assert [job.id for job in rest] == newest_first[4:]
        assert end is None
        assert [job.id for job in (await jobs.list(state=State.RUNNING))[0]] == [running.id]
        with pytest.raises(AmbiguousId):
            await jobs.get("job_0")
        with pytest.raises(JobUnknown):
            await jobs.get("job_zzz")
        assert (await jobs.get(made[0].id.removeprefix("job_"))).id == made[0].id


async def test_an_end_that_the_disk_had_no_room_for_is_seen_at_once_and_written_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchd.jobs.jobs.REWRITE_SECONDS", 0.01)
    act, full = house.local.act, True
    tried, written = trio.Event(), trio.Event()

    def on_a_full_disk(name: str, *changes: Any, **more: Any) -> Any:
        if name == "job.failed" and full:
            trio.from_thread.run_sync(tried.set)
            raise DiskFull("only 0 MB are free")
        answer = act(name, *changes, **more)
        if name == "job.failed":
            trio.from_thread.run_sync(written.set)
        return answer

    monkeypatch.setattr(house.local, "act", on_a_full_disk)
    async with house.running() as (jobs, _):
        job = await jobs.submit("refuse", CountSpec(), title="refused")
        assert (await jobs.wait(job.id)).state is State.FAILED
        assert jobs._rows.get(job.id).state is State.RUNNING
        assert (await jobs.get(job.id)).state is State.FAILED
        assert (await jobs.list(state=State.RUNNING))[0] == []
        assert [one.id for one in (await jobs.list(state=State.FAILED))[0]] == [job.id]
        assert [one.state for one in (await jobs.list())[0]] == [State.FAILED]
        with pytest.raises(JobNotRunning):
            await jobs.cancel(job.id)
        tried = trio.Event()
        await tried.wait()  # and it is tried again, while there is no room
        full = False
        await written.wait()
        assert jobs._rows.get(job.id) == await jobs.get(job.id)
    async with house.running() as (jobs, _):
        assert (await jobs.get(job.id)).error is not None


async def test_warm_jobs_use_the_waiting_process(house: House) -> None:
    house.config = JobsConfig(parallel=1, warm_seconds=60)
    async with house.running() as (jobs, _):
        pids = []
        for _round in range(3):
            job = await jobs.submit("warm", CountSpec(), title="torch")
            assert (await jobs.wait(job.id)).state is State.DONE
            assert jobs._pool is not None
            while jobs._pool.waiting is None:
                await trio.lowlevel.checkpoint()
            pids.append(jobs._pool.waiting.pid)
        assert len(set(pids)) == 1


async def test_a_log_is_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchd.jobs.jobs.LOG_BYTES", 10_000)
    async with house.running() as (jobs, _):
        job = await jobs.submit("chatty", CountSpec(steps=2_000), title="talks")
        await jobs.wait(job.id)
        lines = await jobs.logs(job.id, limit=10_000)
        assert lines[-1].startswith("line 1999 ")
        size = sum(p.stat().st_size for p in (house.folder / "state" / "jobs").iterdir())
        assert size <= 10_000


async def test_lines_of_the_log_stay_whole(house: House) -> None:
    async with house.running() as (jobs, _):
        job = await jobs.submit("stutter", CountSpec(steps=20), title="stutters")
        await jobs.wait(job.id)
        lines = await jobs.logs(job.id)
        assert sorted(lines) == sorted(["first half, second half", "in between"] * 20 + ["and no newline"])


def test_only_the_tables_transitions_are_possible() -> None:
    for before in State:
        for after in State:
            job = Job(id="job_1", kind="k", title="t", state=before, created_ms=1)
            if after in TRANSITIONS[before]:
                assert move(job, after, 5).state is after
            else:
                with pytest.raises(ValueError, match="can't go from"):
                    move(job, after, 5)


def test_ids_sort_by_time() -> None:
    rng = random.Random(1)
    ids = [new_id(ms, rng) for ms in (0, 1, 31, 32, 1023, 1024, 1_700_000_000_000, 1_700_000_000_001)]
    assert ids == sorted(ids)
    assert all(len(i) == 20 for i in ids)


def test_estimate() -> None:
    estimate = Estimate()
    assert estimate.seconds_left(0.0, 0, 100, "steps") is None
    assert estimate.seconds_left(1.0, 10, 100, "steps") == 9.0
    assert estimate.seconds_left(2.0, 20, 100, "steps") == 8.0
    assert estimate.seconds_left(3.0, 0, 50, "rows") is None  # a new stage
    assert estimate.seconds_left(4.0, 50, 50, "rows") == 0.0
