"""The embedded runtime with its real worker process and real llama.cpp."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from orchd.errors import AnswerInterrupted, DeploymentUnknown, ModelNotLoaded, PromptRefused
from orchd.importers.conversation import Message
from orchd.jobs.process import WorkerProcess
from orchd.serve.embedded import EmbeddedRuntime, StartWorker
from orchd.serve.specs import ChatSpec

QUESTION = (Message("user", "copy: cat sun key"),)
LONG = 1900  # tokens: a fifth of a second


@asynccontextmanager
async def running(
    folder: Path, idle_seconds: float = 60.0, start: StartWorker | None = None
) -> AsyncIterator[EmbeddedRuntime]:
    (folder / "chat").mkdir()
    spec = ChatSpec(models=str(folder.parent))
    runtime = EmbeddedRuntime(folder / "chat", spec=spec, idle_seconds=idle_seconds, start=start)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(runtime.run)
            yield runtime
            await runtime.stop()
            nursery.cancel_scope.cancel()


async def test_models_answer_side_by_side(tmp_path: Path, merged: Path, plain: Path) -> None:
    async with running(tmp_path) as runtime:
        await runtime.put("mine", merged)
        await runtime.put("plain", plain)
        answers: dict[str, set[str]] = {"mine": set(), "plain": set()}

        async def ask(name: str) -> None:
            completion = runtime.complete(name, QUESTION, max_tokens=12)
            answers[name].add(await completion.text())
            assert completion.tokens == 12
            assert completion.finish == "length"

        async with trio.open_nursery() as nursery:
            for name in ("mine", "plain") * 6:
                nursery.start_soon(ask, name)
        assert [len(found) for found in answers.values()] == [1, 1]  # greedy: always the same answer
        assert answers["mine"] != answers["plain"]
        assert runtime.names == ("mine", "plain")


async def test_answers_are_streamed(tmp_path: Path, merged: Path) -> None:
    async with running(tmp_path) as runtime:
        runtime.restore("mine", merged)
        assert runtime.worker_pid is None  # nothing starts before somebody asks
        pieces = [piece async for piece in runtime.complete("mine", QUESTION, max_tokens=12)]
        assert len(pieces) > 3


async def test_leaving_an_answer_frees_the_model(tmp_path: Path, merged: Path) -> None:
    async with running(tmp_path) as runtime:
        runtime.restore("mine", merged)
        for _ in range(6):  # more than are answered at once: each must have been stopped
            async with runtime.complete("mine", QUESTION, max_tokens=LONG) as completion:
                await completion.__anext__()
        assert await runtime.complete("mine", QUESTION, max_tokens=2).text()


async def test_a_killed_worker_is_replaced(tmp_path: Path, merged: Path) -> None:
    async with running(tmp_path) as runtime:
        await runtime.put("mine", merged)
        before = await runtime.complete("mine", QUESTION, max_tokens=8).text()
        pid = runtime.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert await runtime.complete("mine", QUESTION, max_tokens=8).text() == before
        assert runtime.worker_pid not in (None, pid)


async def test_an_answer_that_was_begun_is_not_repeated(tmp_path: Path, merged: Path) -> None:
    async with running(tmp_path) as runtime:
        await runtime.put("mine", merged)
        async with runtime.complete("mine", QUESTION, max_tokens=LONG) as completion:
            await completion.__anext__()
            assert runtime.worker_pid is not None
            os.kill(runtime.worker_pid, signal.SIGSTOP)  # so that it can't finish before it dies
            os.kill(runtime.worker_pid, signal.SIGKILL)
            with pytest.raises(AnswerInterrupted):
                async for _ in completion:
                    pass
        assert await runtime.complete("mine", QUESTION, max_tokens=2).text()


async def test_an_idle_worker_is_stopped(tmp_path: Path, merged: Path) -> None:
    workers: list[WorkerProcess] = []

    async def start(nursery: trio.Nursery) -> WorkerProcess:
        workers.append(await WorkerProcess.start(nursery))
        return workers[-1]

    async with running(tmp_path, idle_seconds=0.0, start=start) as runtime:
        runtime.restore("mine", merged)
        for number in (1, 2):
            assert await runtime.complete("mine", QUESTION, max_tokens=2).text()
            assert len(workers) == number
            assert await workers[-1].wait() == 0  # it left by itself
            assert runtime.worker_pid is None


async def test_stop_ends_what_is_asked(tmp_path: Path, merged: Path) -> None:
    async with running(tmp_path) as runtime:
        runtime.restore("mine", merged)
        completion = runtime.complete("mine", QUESTION, max_tokens=LONG)
        await completion.__anext__()
        await runtime.stop()
        with pytest.raises(AnswerInterrupted):
            async for _ in completion:
                pass
        assert runtime.worker_pid is None


async def test_what_llama_cpp_does_not_take(tmp_path: Path, merged: Path) -> None:
    broken = cut(merged, tmp_path / "broken.gguf")
    async with running(tmp_path) as runtime:
        await runtime.put("mine", merged)
        for path in (broken, tmp_path / "absent.gguf"):
            with pytest.raises(ModelNotLoaded, match=path.name):
                await runtime.put("mine", path)
        assert runtime.path("mine") == merged  # the state before is still served
        with pytest.raises(DeploymentUnknown):
            runtime.complete("other", QUESTION)
        await runtime.remove("mine")
        with pytest.raises(DeploymentUnknown):
            await runtime.remove("mine")


async def test_prompts_that_do_not_fit(tmp_path: Path, merged: Path) -> None:
    async with running(tmp_path) as runtime:
        await runtime.put("mine", merged)
        long = (Message("user", "cat " * 3000),)
        with pytest.raises(PromptRefused, match=r"context size \(\d+ tokens\)$"):
            await runtime.complete("mine", long).text()
        assert await runtime.complete("mine", QUESTION, max_tokens=1).text()


async def test_nothing_listens(tmp_path: Path, merged: Path) -> None:
    """llama.cpp opens a socket a model: it must be no TCP port, and have no name left on the disk."""
    async with running(tmp_path) as runtime:
        await runtime.put("mine", merged)
        assert runtime.worker_pid is not None
        assert not sockets(runtime.worker_pid) & listening_on_tcp()
        assert os.listdir(tmp_path / "chat") == ["tmp"]


def cut(path: Path, target: Path) -> Path:
    target.write_bytes(path.read_bytes()[:100_000])
    return target


def sockets(pid: int) -> set[str]:
    return {os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()}


def listening_on_tcp() -> set[str]:
    tables = [Path(f"/proc/net/{kind}").read_text().splitlines()[1:] for kind in ("tcp", "tcp6")]
    return {f"socket:[{line.split()[9]}]" for table in tables for line in table}
