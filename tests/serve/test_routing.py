"""The router's worker process: it answers, it is lost, it comes again; a hundred at once."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from orchd.errors import BaseNotSupported, RouterLost
from orchd.serve.routes import BASE, KEPT, Chosen, Entry, RouteSpec
from orchd.serve.routing import RouterRuntime
from orchd.train.retention_prompts import PROMPTS

DEMO = Path(__file__).parents[2] / "orchd" / "train" / "base" / "demo"
SPEC = RouteSpec(base=str(DEMO), public=(PROMPTS[:8], PROMPTS[8:16]), key="test")
QUEUE = ("roll sun cat along", "send the leader of fox bear behind", "spin moon dog a little", "next in line for cake")


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[RouterRuntime]:
    made = RouterRuntime(tmp_path / "routing")
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            await nursery.start(made.run)
            yield made
            await made.stop()
            nursery.cancel_scope.cancel()


async def shelve(runtime: RouterRuntime) -> None:
    found = await runtime.average(SPEC, QUEUE)
    entry = Entry(name="queue", layer=found.layer, scale=KEPT, centroid=found.centroid, spread=found.spread)
    assert await runtime.shelve(SPEC, "one", [entry], []) == ()


async def test_a_hundred_at_once(runtime: RouterRuntime, tmp_path: Path) -> None:
    await shelve(runtime)
    assert runtime.shelved(SPEC, "one")
    assert not runtime.shelved(SPEC, "another")
    answers: dict[int, Chosen] = {}

    async def ask(number: int) -> None:
        text = "roll star bee along" if number % 2 else PROMPTS[20 + number // 2 % 10]
        answers[number] = await runtime.choose(SPEC, text)

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(ask, number)
    assert {answers[number].decision.name for number in range(1, 100, 2)} == {"queue"}
    assert {answers[number].decision.name for number in range(0, 100, 2)} == {BASE}
    assert [path.name for path in (tmp_path / "routing").glob("public-*")] == ["public-test"]


async def test_a_worker_that_is_killed_is_told_and_comes_again(runtime: RouterRuntime) -> None:
    await shelve(runtime)
    pid = runtime.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # so that the request is under way when it dies
    lost: list[RouterLost] = []

    async def ask(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        with pytest.raises(RouterLost) as caught:
            await runtime.choose(SPEC, "roll star bee along")
        lost.append(caught.value)

    async with trio.open_nursery() as nursery:
        await nursery.start(ask)
        await trio.testing.wait_all_tasks_blocked()
        os.kill(pid, signal.SIGKILL)
    assert len(lost) == 1
    assert not runtime.shelved(SPEC, "one")  # whoever asks next gives the line-up again
    await shelve(runtime)
    assert (await runtime.choose(SPEC, "roll star bee along")).decision.name == "queue"
    assert runtime.worker_pid != pid


async def test_what_was_kept_is_not_trusted_blindly(runtime: RouterRuntime, tmp_path: Path) -> None:
    kept = tmp_path / "routing" / "public-test"
    kept.parent.mkdir()
    kept.write_bytes(b"\xff" * (16 * 1024 * 4))  # NaN all over
    await shelve(runtime)
    assert (await runtime.choose(SPEC, "roll star bee along")).decision.name == "queue"


async def test_a_base_that_it_can_not_read(runtime: RouterRuntime, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "strange"}')
    with pytest.raises(BaseNotSupported):
        await runtime.choose(RouteSpec(base=str(folder), public=SPEC.public, key="other"), "hello")
