"""The event log: order, replay, restarts, slow subscribers, bounds on disk."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import trio
import trio.testing

from orchd.jobs import eventfiles, events
from orchd.jobs.events import Event, EventLog, Subscription


class Clock:
    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def take(subscription: Subscription, count: int) -> list[Event]:
    with trio.fail_after(10):
        return [await subscription.__anext__() for _ in range(count)]


async def nothing_more(subscription: Subscription) -> bool:
    with trio.move_on_after(0.05):
        await subscription.__anext__()
        return False
    return True


async def test_live_events_arrive_in_order(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path, clock)
    log.emit("topic.joined", {"topic": "before"})
    subscription = log.subscribe()
    first = log.emit("topic.joined", {"topic": "a"})
    second = log.emit("job.queued", {}, job="job_1")
    assert await take(subscription, 2) == [first, second]
    assert second.seq == first.seq + 1
    assert await nothing_more(subscription)


async def test_replay_then_live_without_gap_or_repetition(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path, clock)
    owners = [None, "job_1", "job_2", "job_3"]
    emitted = [log.emit("x.y", {"n": n}, job=owners[n % 4]) for n in range(1000)]
    subscription = log.subscribe(after=emitted[99].seq)
    head = await take(subscription, 300)
    emitted += [log.emit("x.y", {"n": n}, job=owners[n % 4]) for n in range(1000, 1500)]
    tail = await take(subscription, 1100)
    assert head + tail == emitted[100:]
    assert await nothing_more(subscription)


async def test_numbers_survive_restart_and_crash(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path, clock)
    kept = [log.emit("job.progress", {"done": n, "total": 99}, job="job_1") for n in range(20)]
    crashed = EventLog(tmp_path, clock)  # the first was never closed
    after_crash = crashed.emit("a.b", {})
    assert after_crash.seq > kept[-1].seq  # though only the first progress event is on disk
    crashed.close()
    again = EventLog(tmp_path, clock)
    assert again.emit("a.b", {}).seq == after_crash.seq + 1
    (tmp_path / "events" / "seq").unlink()
    assert EventLog(tmp_path, clock).emit("a.b", {}).seq == after_crash.seq + 2


async def test_replay_over_a_restart(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path, clock)
    first = log.emit("a.b", {"n": 1})
    log.emit("a.b", {"n": 2}, job="job_1")
    again = EventLog(tmp_path, clock)
    again.emit("a.b", {"n": 3})
    assert [e.data["n"] for e in await take(again.subscribe(after=0), 3)] == [1, 2, 3]
    assert [e.data["n"] for e in await take(again.subscribe(after=first.seq), 2)] == [2, 3]


async def test_an_after_from_the_future_gets_what_comes(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path, clock)
    subscription = log.subscribe(after=10**12)
    event = log.emit("a.b", {})
    assert await take(subscription, 1) == [event]


async def test_progress_is_thinned_on_disk_but_not_live(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path, clock)
    live = log.subscribe()
    for n in range(1, 41):
        log.emit("job.progress", {"done": n, "total": 40}, job="job_1")
        log.emit("job.progress", {"done": n, "total": 400}, job="job_2")
        clock.ms += 100
    assert len(await take(live, 80)) == 80
    of_one = log.read(0, log.last, "job_1")
    assert [e.data["done"] for e in of_one] == [1, 11, 21, 31, 40]
    assert len(list(log.read(0, log.last))) == 9


async def test_a_clock_that_was_set_back_does_not_keep_progress_off_the_disk(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path, clock)
    log.emit("job.progress", {"done": 1, "total": 9}, job="job_1")
    clock.ms -= 3_600_000
    after = log.emit("job.progress", {"done": 2, "total": 9}, job="job_1")
    assert after in list(log.read(0, log.last, "job_1"))


async def test_a_slow_subscriber_blocks_no_one_and_misses_nothing(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "BUFFERED", 10)
    log = EventLog(tmp_path, clock)
    subscription = log.subscribe()
    emitted = [log.emit("a.b", {"n": n}) for n in range(5)]
    received = await take(subscription, 3)
    emitted += [log.emit("a.b", {"n": n}, job=f"job_{n % 3}") for n in range(5, 500)]
    assert len(subscription._live) <= 10
    received += await take(subscription, 100)
    emitted += [log.emit("a.b", {"n": n}) for n in range(500, 600)]
    received += await take(subscription, 497)
    assert received == emitted
    assert await nothing_more(subscription)


async def test_filters_by_job_and_kind(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path, clock)
    for _ in range(2):
        replayed = log.subscribe(after=0, job="job_1", kinds=["job.done", "job.failed"])
        log.emit("job.done", {}, job="job_2")
        log.emit("job.progress", {"done": 1, "total": 2}, job="job_1")
        log.emit("job.done", {"mine": True}, job="job_1")
    assert [e.data for e in await take(replayed, 2)] == [{"mine": True}] * 2


async def test_close_ends_the_iteration(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path, clock)
    subscription = log.subscribe()
    ended = trio.Event()

    async def read() -> None:
        async for _ in subscription:
            pass
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        log.close()
        with trio.fail_after(5):
            await ended.wait()
    log.emit("a.b", {})  # nobody listens, nothing breaks


async def test_files_are_bounded_and_keep_the_newest(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventfiles, "PART_BYTES", 1_000)
    log = EventLog(tmp_path, clock)
    for n in range(500):
        log.emit("a.b", {"n": n}, job="job_1")
    size = sum(p.stat().st_size for p in (tmp_path / "events").glob("job_1*"))
    assert 2_000 < size <= 4_000
    numbers = [e.data["n"] for e in log.read(0, log.last)]
    assert numbers == list(range(numbers[0], 500))


async def test_a_line_for_which_there_was_no_room_takes_no_other_along(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path, clock)
    log.emit("a.b", {"n": 1})
    (part,) = (tmp_path / "events").glob("node-*.ndjson")
    whole = part.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole + 5, limit := resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        log.emit("a.b", {"n": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    assert part.stat().st_size == whole
    log.emit("a.b", {"n": 3})
    assert [e.data["n"] for e in log.read(0, log.last)] == [1, 3]


async def test_torn_lines_are_left_out_and_the_next_line_is_whole(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path, clock)
    log.emit("a.b", {"n": 1})
    log.emit("a.b", {"n": 2})
    (part,) = (tmp_path / "events").glob("node-*.ndjson")
    os.truncate(part, part.stat().st_size - 7)
    again = EventLog(tmp_path, clock)
    again.emit("a.b", {"n": 3})
    assert [e.data["n"] for e in again.read(0, again.last)] == [1, 3]


async def test_old_files_go(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path, clock)
    log.emit("a.b", {}, job="job_1")
    log.emit("a.b", {}, job="job_2")
    (old,) = (tmp_path / "events").glob("job_1-*")
    clock.ms = int(old.stat().st_mtime * 1000)
    (new,) = (tmp_path / "events").glob("job_2-*")
    past = clock.ms / 1000 - 31 * 24 * 3600
    os.utime(old, (past, past))
    log.prune()
    assert not old.exists()
    assert new.exists()
    log.emit("a.b", {}, job="job_1")
    assert [e.job for e in log.read(0, log.last)] == ["job_2", "job_1"]


async def test_a_full_disk_costs_the_record_only(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(tmp_path, clock)
    subscription = log.subscribe()
    folder = tmp_path / "events"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    event = log.emit("a.b", {})
    assert await take(subscription, 1) == [event]
