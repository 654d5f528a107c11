"""A worker that stops answering: when that is so, and what becomes of its job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from orchd.cli.nouns.job import human_row
from orchd.config import JobsConfig
from orchd.errors import WorkerSilent
from orchd.jobs import silence
from orchd.jobs.context import ALIVE_SECONDS, JobContext
from orchd.jobs.silence import GAP_SECONDS, TICK_SECONDS, TOLD_SHARE, Silence, phase_of, processor_seconds
from orchd.jobs.states import State
from tests.jobs.test_jobs import House, started, until

LIMIT = 300.0


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.local.close()
    made.index.close()


def training(step_s: float = 0.1, limit_s: float = LIMIT) -> tuple[Silence, float]:
    """One that trains, whose longest step took so long; and what time it is."""
    found = Silence(limit_s, 0.0)
    found.heard(0.0, "training")
    now = 0.0
    while now < step_s:
        now = min(step_s, now + TICK_SECONDS)
        found.tick(now, now)
    found.heard(now)
    return found, now


def silent(found: Silence, now: float, seconds: float, cpu_share: float = 0.0) -> float:
    """So many seconds of ticks in which it says nothing."""
    end = now + seconds
    while now < end:
        now = min(end, now + TICK_SECONDS)
        found.tick(now, cpu_share * now)
    return now


def test_one_that_stands_still_is_told_after_a_minute_and_ended_after_five() -> None:
    found, now = training()
    now = silent(found, now, TICK_SECONDS + TOLD_SHARE * LIMIT - 1)  # the first tick has nothing to compare with
    assert found.share < TOLD_SHARE
    now = silent(found, now, 2)
    assert TOLD_SHARE <= found.share < 1
    now = silent(found, now, LIMIT - TOLD_SHARE * LIMIT - 2)
    assert found.share < 1
    silent(found, now, 2)
    assert found.share >= 1
    assert "said nothing for 306 s while training, and computed nothing for 301 s" in found.error(7).message


def test_a_slow_step_is_no_silence() -> None:
    busy, now = training()
    now = silent(busy, now, 5 * LIMIT, cpu_share=0.002)
    assert busy.share < 1, "hardly any processor time, on a machine that is busy elsewhere"
    silent(busy, now, 6 * LIMIT, cpu_share=0.002)
    assert busy.share >= 1, "for ever is no step"
    assert "goes on computing" in busy.words
    slow, now = training(step_s=60.0)
    silent(slow, now, 19 * 60.0)
    assert slow.share < 1, "its steps take a minute"


def test_the_limit_is_that_of_the_phase() -> None:
    found = Silence(LIMIT, 0.0)
    loading = silent(found, 0.0, 2 * LIMIT)
    assert found.share < 1
    found.heard(loading, "preparing")
    now = silent(found, loading, 2 * LIMIT)
    assert found.share < 1
    found.heard(now, "validating")
    silent(found, now, 2 * LIMIT)
    assert found.share >= 1
    off, now = training(limit_s=0)
    silent(off, now, 100 * LIMIT)
    assert off.share == 0


def test_a_suspended_machine_is_no_silence() -> None:
    found, now = training()
    now = silent(found, now, LIMIT - 1)
    assert found.tick(now + 3600, 0.0), "the daemon's own tick came an hour late"
    assert found.share == 0
    now = silent(found, now + 3600, LIMIT - TICK_SECONDS)
    assert found.share < 1
    found.heard(now + GAP_SECONDS + 1)
    silent(found, now + GAP_SECONDS + 1, LIMIT + TICK_SECONDS)
    assert found.share >= 1, "an hour of standing still is not how long a step takes here"


def test_a_stop_that_is_over_does_not_count_as_a_step() -> None:
    found, now = training()
    now = silent(found, now, 0.9 * LIMIT)
    found.heard(now)
    assert found.end_s == LIMIT


def test_the_phase_is_what_progress_names() -> None:
    assert phase_of({"event": "progress", "figures": {"phase": "scoring"}}) == "scoring"
    assert phase_of({"event": "progress", "figures": {}}) is None
    assert phase_of({"event": "alive"}) is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_processor_time_counts_children_and_stands_still_with_them() -> None:
    spinning = "import os\nif not os.fork():\n while 1: pass\nos.wait()"
    with subprocess.Popen([sys.executable, "-c", spinning], process_group=0) as process:
        try:
            while (processor_seconds(process.pid) or 0) < 0.2:
                os.sched_yield()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert processor_seconds(process.pid) is None


class Wire:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message["event"])

    def receive(self) -> None:
        return None


def test_checking_says_now_and_then_that_it_is_alive(tmp_path: Path) -> None:
    now, wire = [0.0], Wire()
    job = JobContext(tmp_path, 1, wire, lambda: now[0])
    job.check()
    assert wire.sent == []
    now[0] += ALIVE_SECONDS
    job.check()
    job.check()
    assert wire.sent == ["alive"]
    now[0] += ALIVE_SECONDS - 1
    job.progress(1, 9, "steps")
    now[0] += ALIVE_SECONDS - 1
    job.check()
    assert wire.sent == ["alive", "progress"]
    job.receive()
    now[0] += ALIVE_SECONDS
    job.check()
    assert wire.sent == ["alive", "progress"], "a conversation has words of its own"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, house: House) -> None:
    monkeypatch.setattr(silence, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(silence, "OTHER_TIMES", 1)
    monkeypatch.setattr(silence, "LONGEST_TIMES", 0)
    monkeypatch.setattr(silence, "TOLD_SHARE", 0.01)
    house.config = JobsConfig(parallel=1, warm_seconds=0, silent_seconds=1)


@pytest.mark.usefixtures("quick")
async def test_a_job_whose_worker_hangs_goes_on_once_and_then_fails(house: House, tmp_path: Path) -> None:
    async with house.running() as (jobs, events):
        waiting = events.subscribe(kinds=("job.progress",))
        job = await started(jobs, events, "going_on", marker=str(tmp_path / "never"))
        first = jobs._live[job.id].worker
        assert first is not None
        os.killpg(first.pid, signal.SIGSTOP)
        async for event in waiting:
            if "waits" in event.data["figures"]:
                break
        shown = human_row(msgspec.to_builtins(await jobs.get(job.id)))
        assert "the worker has said nothing" in shown
        assert "silent since" in shown
        await until(waiting, "job.progress", job.id)
        while (second := jobs._live[job.id].worker) in (None, first):
            await trio.lowlevel.checkpoint()
        assert second is not None
        assert (await jobs.get(job.id)).state is State.RUNNING
        os.killpg(second.pid, signal.SIGSTOP)
        ended = await jobs.wait(job.id)
        assert ended.state is State.FAILED
        assert ended.error is not None
        assert ended.error.code == WorkerSilent.code
        assert f"orchctl count on {job.id}" in ended.error.hint
        told = await jobs.logs(job.id)
        assert any("another goes on from the last checkpoint" in line for line in told)


@pytest.mark.usefixtures("quick")
async def test_what_can_not_go_on_ends_with_a_number(house: House) -> None:
    async with house.running() as (jobs, events):
        job = await started(jobs, events, "deaf")
        ended = await jobs.wait(job.id)
        assert ended.error is not None
        assert ended.error.code == WorkerSilent.code


@pytest.mark.usefixtures("quick")
async def test_one_that_answers_again_goes_on(house: House, tmp_path: Path) -> None:
    house.config = JobsConfig(parallel=1, warm_seconds=0, silent_seconds=100)
    async with house.running() as (jobs, events):
        waiting = events.subscribe(kinds=("job.progress",))
        job = await started(jobs, events, "gated", marker=str(tmp_path / "go"))
        worker = jobs._live[job.id].worker
        assert worker is not None
        os.killpg(worker.pid, signal.SIGSTOP)
        await until(waiting, "job.progress", job.id)
        await until(waiting, "job.progress", job.id)  # the second is of its silence
        (tmp_path / "go").touch()
        os.killpg(worker.pid, signal.SIGCONT)
        assert (await jobs.wait(job.id)).state is State.DONE
        assert any(line.startswith("it answers again") for line in await jobs.logs(job.id))
