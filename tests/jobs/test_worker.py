"""The worker process and the daemon's end of its pipes."""

from __future__ import annotations

import ast
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from orchd import worker as worker_module
from orchd.errors import AdapterConfigRefused, JobCancelled, JobFailed, NotAvailable, ParamsInvalid, WorkerLost
from orchd.jobs.context import JobContext
from orchd.jobs.kinds import KINDS, struct
from orchd.jobs.process import WorkerProcess, describe_status
from orchd.jobs.warm import WarmPool
from tests.jobs import fake_worker

SECONDS = 30


async def start(nursery: trio.Nursery, **options: Any) -> WorkerProcess:
    return await WorkerProcess.start(nursery, command=fake_worker.COMMAND, **options)


def assignment(kind: str, folder: Path, **spec: object) -> dict[str, object]:
    return {"kind": kind, "spec": spec, "workdir": str(folder), "threads": 1}


async def run_kind(folder: Path, kind: str, **spec: object) -> tuple[list[dict[str, Any]], WorkerProcess]:
    """All messages of a worker that runs `kind`, and the ended process."""
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            process = await start(nursery, threads=2)
            await process.send(assignment(kind, folder, **spec))
            messages = [message async for message in process.messages()]
            await process.wait()
    return messages, process


async def test_result_progress_and_log_cross_the_wire_and_prints_do_not(tmp_path: Path) -> None:
    messages, process = await run_kind(tmp_path, "count", steps=3)
    assert messages[0] == {"event": "ready"}
    assert {"event": "log", "text": "counted"} in messages
    assert messages[-1] == {
        "event": "result",
        "result": {"steps": 3, "file": "out.txt", "threads": "2"},
    }
    progress = [m for m in messages if m["event"] == "progress"]
    assert progress[-1]["done"] == 3
    assert progress[0]["figures"] == {"loss": 1.0}
    assert "a library says hello on stdout" in process.stderr_tail
    assert await process.wait() == 0


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("refuse", AdapterConfigRefused, "auto_map is not allowed"),
        ("crash", JobFailed, "ValueError: the seventh row is odd"),
        ("missing", NotAvailable, "a_package_that_nobody_has"),
        ("no such kind", ParamsInvalid, "no such kind"),
    ],
)
async def test_errors_keep_their_numbers(tmp_path: Path, kind: str, error: Any, text: str) -> None:
    messages, process = await run_kind(tmp_path, kind)
    assert messages[-1]["event"] == "error"
    assert messages[-1]["code"] == error.code
    assert text in messages[-1]["message"]
    assert await process.wait() == 1


async def test_a_spec_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    messages, _ = await run_kind(tmp_path, "count", steps="three")
    assert messages[-1]["code"] == ParamsInvalid.code


async def test_a_traceback_goes_to_the_log(tmp_path: Path) -> None:
    _, process = await run_kind(tmp_path, "crash")
    assert "Traceback" in process.stderr_tail


async def test_sigterm_is_job_cancelled(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            process = await start(nursery)
            await process.send(assignment("until_cancelled", tmp_path))
            events = []
            async for message in process.messages():
                events.append(message)
                if message["event"] == "progress":
                    process.terminate()
    assert events[-1]["code"] == JobCancelled.code


async def test_a_deaf_worker_is_killed_after_the_grace(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            process = await start(nursery)
            await process.send(assignment("deaf", tmp_path))
            async for message in process.messages():
                if message["event"] == "progress":
                    break
            assert await process.stop(grace=0.05) == -signal.SIGKILL


async def test_a_killed_worker_is_lost_with_its_last_words(tmp_path: Path) -> None:
    messages, process = await run_kind(tmp_path, "die")
    assert [m["event"] for m in messages] == ["ready", "sandbox"]
    assert await process.wait() == -signal.SIGKILL
    lost = process.lost()
    assert isinstance(lost, WorkerLost)
    assert "killed by SIGKILL" in lost.message
    assert "about to be killed" in lost.message
    with pytest.raises(WorkerLost):
        await process.send({"more": 1})


async def test_a_grandchild_that_holds_stderr_does_not_hold_the_daemon(tmp_path: Path) -> None:
    _, process = await run_kind(tmp_path, "orphan")
    assert await process.wait() == -signal.SIGKILL


async def test_a_broken_line_is_worker_lost(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            process = await start(nursery)
            await process.send(assignment("garbage", tmp_path))
            with pytest.raises(WorkerLost, match="no JSON object"):
                async for _ in process.messages():
                    pass


async def test_a_conversation(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            process = await start(nursery)
            await process.send(assignment("echo", tmp_path))
            heard = []
            for text in ("one", "zwei", "три" * 50_000):
                await process.send({"text": text})
                async for message in process.messages():
                    if message["event"] == "echo":
                        heard.append(message["text"])
                        break
            assert heard == ["one", "zwei", "три" * 50_000]
            await process.close_input()
            last = [m async for m in process.messages()]
            assert last == [{"event": "result", "result": {"steps": 3, "file": "out.txt", "threads": ""}}]
            assert await process.wait() == 0


async def test_sigterm_wakes_a_waiting_conversation(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            process = await start(nursery)
            await process.send(assignment("echo", tmp_path))
            await process.send({"text": "are you there"})
            async for message in process.messages():
                if message["event"] == "echo":
                    process.terminate()
            assert await process.wait() == 1


async def test_an_idle_worker_leaves_when_its_stdin_closes() -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            process = await start(nursery)
            await process.close_input()
            assert await process.wait() == 0


async def test_cancelling_the_nursery_kills_the_worker(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            process = await start(nursery)
            await process.send(assignment("deaf", tmp_path))
            async for message in process.messages():
                if message["event"] == "progress":
                    nursery.cancel_scope.cancel()
    assert not process.running
    assert await process.wait() == -signal.SIGKILL


PARENT = """
import os, subprocess, sys
pipe = subprocess.Popen(
    [*sys.argv[2:], "--parent", str(os.getpid())],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
)
pipe.stdin.write(sys.argv[1].encode() + b"\\n")
for line in pipe.stdout:
    if b"progress" in line:
        print(pipe.pid, flush=True)
"""


@pytest.mark.parametrize("kind", ["deaf", "until_cancelled"])
def test_dies_with_the_daemon(tmp_path: Path, kind: str) -> None:
    """kill -9 of the daemon takes the worker with it, also one that computes and never looks at its pipes."""
    line = f'{{"kind": "{kind}", "spec": {{}}, "workdir": "{tmp_path}", "threads": 1}}'
    watch, alive = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, line, *fake_worker.COMMAND],
        stdout=subprocess.PIPE,
        stderr=alive,  # inherited by the worker: the pipe ends when the last of both is gone
    )
    os.close(alive)
    assert parent.stdout is not None
    assert int(parent.stdout.readline()) > 0
    parent.kill()
    parent.wait()
    while os.read(watch, 4096):
        pass
    os.close(watch)
    parent.stdout.close()


async def messages_until(worker: WorkerProcess, event: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async for message in worker.messages():
        found.append(message)
        if message["event"] == event:
            break
    return found


async def test_a_warm_process_comes_back_and_each_job_has_a_process_of_its_own(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            pool = WarmPool(nursery, threads=1, idle_seconds=60, command=fake_worker.COMMAND)
            first = await pool.take(warm=True)
            pids = set()
            for _ in range(2):
                await first.send(assignment("pid", tmp_path))
                said = await messages_until(first, "ended")
                assert said[-1]["status"] == 0
                pids.add(said[-2]["result"]["steps"])
                pool.give_back(first)
                while pool.waiting is None:
                    await trio.lowlevel.checkpoint()
                assert await pool.take(warm=True) is first
                assert pool.waiting is None
            assert len(pids) == 2
            assert first.pid not in pids
            plain = await pool.take(warm=False)
            assert plain.pid != first.pid
            nursery.cancel_scope.cancel()


async def test_the_child_of_a_warm_process_that_is_killed_is_told_and_the_next_job_runs(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            pool = WarmPool(nursery, threads=1, idle_seconds=60, command=fake_worker.COMMAND)
            worker = await pool.take(warm=True)
            await worker.send(assignment("die", tmp_path))
            said = await messages_until(worker, "ended")
            assert said[-1]["status"] == -signal.SIGKILL
            await worker.send(assignment("count", tmp_path, steps=1))
            assert (await messages_until(worker, "ended"))[-2]["event"] == "result"
            nursery.cancel_scope.cancel()


async def test_a_warm_process_leaves_when_idle() -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            pool = WarmPool(nursery, threads=1, idle_seconds=0.3, command=fake_worker.COMMAND)
            idle = await pool.take(warm=True)
            pool.give_back(idle)
            assert await idle.wait() in {0, -signal.SIGTERM}
            assert pool.waiting is None


async def test_idle_seconds_zero_keeps_nothing() -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            pool = WarmPool(nursery, threads=1, idle_seconds=0, command=fake_worker.COMMAND)
            process = await pool.take(warm=True)
            pool.give_back(process)
            await process.wait()
            assert pool.waiting is None


def test_status_in_words() -> None:
    assert describe_status(0) == "exit status 0"
    assert describe_status(-9) == "killed by SIGKILL"
    assert describe_status(-99) == "killed by signal 99"


class ListWire:
    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, message: Any) -> None:
        self.sent.append(dict(message))

    def receive(self) -> dict[str, object] | None:
        return None


def test_progress_is_thinned_but_the_last_one_is_told(tmp_path: Path) -> None:
    wire, now = ListWire(), [0.0]
    job = JobContext(tmp_path, 1, wire, monotonic=lambda: now[0])
    for step in range(1, 101):
        now[0] += 0.001
        job.progress(step, 100, "steps")
    assert [m["done"] for m in wire.sent] == [1, 51, 100]
    for rows in range(10):
        job.progress(100, 100, "steps", rows=rows)
    job.progress(5, 5, "rows")
    assert [(m["done"], m["unit"]) for m in wire.sent[3:]] == [(5, "rows")]
    job.cancel()
    with pytest.raises(JobCancelled):
        job.progress(1, 2, "steps")
    with pytest.raises(JobCancelled):
        job.receive()


def test_environment_is_offline_and_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*worker_module.OFFLINE, *worker_module.THREAD_VARIABLES, "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "unset")
    worker_module.prepare_environment(3)
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_torch_makes_its_folder_in_orchds_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else it lies in TMPDIR and carries the user's name."""
    for name in (*worker_module.OFFLINE, *worker_module.THREAD_VARIABLES, "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "unset")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("ORCHD_HOME", str(tmp_path))
    worker_module.prepare_environment(1)
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize("name", KINDS)
def test_the_table_names_what_is_there(name: str) -> None:
    """Specs and results load (the daemon does that); of the function only its place is looked at: it may need torch."""
    kind = KINDS[name]
    assert struct(kind.spec)
    assert struct(kind.result)
    module, _, function = kind.function.partition(":")
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
