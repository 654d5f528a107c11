"""job.* and events.* over the socket, with the client that `orchctl` uses."""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from orchd.errors import (
    AdapterConfigRefused,
    DaemonUnreachable,
    JobCancelled,
    JobInterrupted,
    JobUnknown,
    MethodUnknown,
    ParamsInvalid,
)
from orchd.jobs import EventLog, Jobs
from orchd.jobs.context import Figure
from orchd.jobs.events import KINDS
from orchd.jobs.states import State
from orchd.rpc import discover, methods_jobs
from orchd.rpc.client import Client, error_from, wait_job, watch_job
from orchd.rpc.table import METHODS
from tests.jobs.fake_worker import CountSpec
from tests.jobs.test_jobs import House, started
from tests.rpc.houses import Wire, served

T = TypeVar("T")
TABLE = {name: METHODS[name] for name in METHODS if name.split(".")[0] in {"job", "events", "rpc"}}
assert methods_jobs
assert discover


@dataclass
class Node:
    jobs: Jobs
    events: EventLog


@pytest.fixture
def house(tmp_path: Path) -> Any:
    made = House(tmp_path)
    yield made
    made.index.close()


@asynccontextmanager
async def daemon(house: House) -> AsyncIterator[tuple[Node, Path]]:
    path = house.folder / "rpc.sock"
    async with (
        house.running() as (jobs, events),
        served(path, node=Node(jobs, events), table=TABLE) as node,
    ):
        yield node, path


async def client(path: Path, use: Callable[[Client], T]) -> T:
    """Run `use` in a thread, with a client of its own."""

    def run() -> T:
        with Client(path) as made:
            return use(made)

    return await trio.to_thread.run_sync(run)


async def test_wait_job_gives_progress_and_the_result(house: House) -> None:
    async with daemon(house) as (node, path):
        marker = house.folder / "go"
        job = await started(node.jobs, node.events, "gated", marker=str(marker), steps=5)
        seen: list[dict[str, Figure]] = []
        assert (await client(path, lambda c: c.call("job.show", job=job.id)))["state"] == "running"

        async def open_the_gate() -> None:
            while not node.events._subscriptions:
                await trio.lowlevel.checkpoint()
            marker.touch()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_the_gate)
            result = await client(path, lambda c: wait_job(c, job.id, seen.append))
        assert result["steps"] == 5
        second = await node.jobs.submit("count", CountSpec(steps=3), title="again")
        await client(path, lambda c: wait_job(c, second.id, seen.append))
        shown = await client(path, lambda c: c.call("job.show", job=second.id))
        assert shown["result"]["steps"] == 3
        assert shown["progress"] is None
        listed = await client(path, lambda c: c.call("job.list", limit=1))
        assert [row["id"] for row in listed["jobs"]] == [second.id]
        assert listed["cursor"] == second.id
        assert "counted" in (await client(path, lambda c: c.call("job.logs", job=second.id)))["lines"]


async def test_wait_job_raises_what_went_wrong(house: House) -> None:
    async with daemon(house) as (node, path):
        refused = await node.jobs.submit("refuse", CountSpec(), title="t")
        with pytest.raises(AdapterConfigRefused, match="auto_map"):
            await client(path, lambda c: wait_job(c, refused.id))
        running = await started(node.jobs, node.events, "until_cancelled")
        assert (await client(path, lambda c: c.call("job.cancel", job=running.id)))["state"] == "cancelling"
        with pytest.raises(JobCancelled):
            await client(path, lambda c: wait_job(c, running.id))
    async with daemon(house) as (node, path):
        cut = await started(node.jobs, node.events, "until_cancelled")
    async with daemon(house) as (node, path):
        with pytest.raises(JobInterrupted):
            await client(path, lambda c: wait_job(c, cut.id))


async def test_errors_come_back_as_their_classes(house: House) -> None:
    async with daemon(house) as (_, path):
        with pytest.raises(JobUnknown) as unknown:
            await client(path, lambda c: c.call("job.show", job="job_zzzz"))
        assert unknown.value.exit_code == 5
        assert unknown.value.field == "job"
        with pytest.raises(MethodUnknown) as method:
            await client(path, lambda c: c.call("job.shw", job="x"))
        assert method.value.hint == "Did you mean `job.show`?"
        with pytest.raises(ParamsInvalid, match="limit must be"):
            await client(path, lambda c: c.call("job.list", limit=0))
        with pytest.raises(ParamsInvalid):
            await client(path, lambda c: c.call("job.list", state="resting"))


async def test_an_unknown_kind_of_event_is_refused(house: House) -> None:
    async with daemon(house) as (_, path):
        for word, hint in (("job.dnoe", "Did you mean `job.done`?"), ("banana", "Choose from these.")):
            with pytest.raises(ParamsInvalid, match=f"{word}.*there is adapter.admitted,.*topic.joined") as refused:
                await client(path, lambda c, kind=word: c.events(kinds=("job.done", kind)))  # type: ignore[misc]
            assert (refused.value.hint, refused.value.field) == (hint, "kinds")


def test_every_kind_that_is_emitted_is_known() -> None:
    package = Path(methods_jobs.__file__).parent.parent
    emitted = {
        kind
        for file in package.rglob("*.py")
        for kind in re.findall(r'(?:\.emit\(\s*|, \(\()"([a-z_]+\.[a-z._]+)"', file.read_text(encoding="utf-8"))
    }
    assert emitted | {f"job.{state.value}" for state in State if state is not State.RUNNING} | {"job.started"} == set(
        KINDS
    )


async def test_events_replay_and_go_on_while_other_calls_run(house: House) -> None:
    async with daemon(house) as (node, path):
        first = node.events.emit("topic.joined", {"topic": "a"})
        node.events.emit("topic.joined", {"topic": "b"})
        ready = trio.Event()

        def follow(connected: Client) -> list[Any]:
            events = connected.events(after=first.seq - 1)
            got = [next(events), next(events)]
            connected.call("job.list")
            trio.from_thread.run_sync(ready.set)
            return [*got, next(events)]

        async with trio.open_nursery() as nursery:

            async def emit_later() -> None:
                await ready.wait()
                node.events.emit("topic.joined", {"topic": "c"})

            nursery.start_soon(emit_later)
            got = await client(path, follow)
        assert [event["data"]["topic"] for event in got] == ["a", "b", "c"]
        assert got[0]["seq"] == first.seq


async def test_unsubscribe_ends_the_stream(house: House) -> None:
    async with daemon(house) as (node, path):
        wire = await Wire.open(path)
        subscribed = (await wire.ask("events.subscribe"))["result"]
        assert subscribed["last"] == node.events.last
        node.events.emit("a.b", {"n": 1})
        assert (await wire.receive())["params"]["event"]["data"] == {"n": 1}
        name = subscribed["subscription"]
        assert (await wire.ask("events.unsubscribe", subscription=name))["result"] == {"ended": True}
        node.events.emit("a.b", {"n": 2})
        assert (await wire.ask("events.unsubscribe", subscription=name))["result"] == {"ended": False}
        assert not node.events._subscriptions
        await wire.ask("events.subscribe")
        await wire.stream.aclose()
        while node.events._subscriptions:
            await trio.lowlevel.checkpoint()


async def test_a_daemon_that_goes_away_is_unreachable(house: House, tmp_path: Path) -> None:
    async with daemon(house) as (node, path):
        job = await started(node.jobs, node.events, "until_cancelled")
        gone: list[DaemonUnreachable] = []

        def watch() -> None:
            with Client(path) as connected, pytest.raises(DaemonUnreachable) as caught:
                watch_job(connected, job.id, lambda progress: None)
            gone.append(caught.value)

        thread = threading.Thread(target=watch)
        thread.start()
        while not node.events._subscriptions:
            await trio.lowlevel.checkpoint()
    await trio.to_thread.run_sync(thread.join)
    assert "closed the connection" in gone[0].message
    with pytest.raises(DaemonUnreachable, match="is not running") as missing:
        Client(tmp_path / "nobody.sock")
    assert missing.value.exit_code == 3


def test_unknown_error_objects_become_plain_errors() -> None:
    error = error_from({"code": 99_999, "message": "from a newer daemon"})
    assert error.message == "from a newer daemon"
