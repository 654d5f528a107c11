"""orchctl as a process against a small server: jobs that wait at a gate, Ctrl-C, streams, pipes that close."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from orchd.errors import AnswerInterrupted, PromptRefused
from orchd.paths import Paths
from orchd.rpc.connection import Session
from orchd.rpc.methods_jobs import JobStarted
from orchd.rpc.table import METHODS, Method, Params, Result, method
from tests.jobs.fake_worker import CountSpec
from tests.jobs.test_jobs import House, until
from tests.rpc.houses import served
from tests.rpc.test_methods_jobs import Node

TABLE: dict[str, Method] = {
    name: row for name, row in METHODS.items() if name.partition(".")[0] in {"job", "events", "rpc"}
}


class Start(Params, frozen=True, kw_only=True):
    """As `train.start`; `dataset` is the kind of the fake worker."""

    dataset: str
    steps: int = 3
    description: str | None = None


class Complete(Params, frozen=True, kw_only=True):
    deployment: str
    messages: list[dict[str, str]]
    stream: bool = False


SAID_NO = {
    "long": PromptRefused("request (608 tokens) exceeds the available context size (512 tokens)"),
    "die": AnswerInterrupted("the model's process ended"),
}


class Answer(Result, frozen=True, kw_only=True):
    text: str
    deployment: str = "tiny"
    route: str = ""


@method("train.start", Start, JobStarted, "Start a fake", TABLE)
async def start(node: Node, p: Start) -> JobStarted:
    spec = CountSpec(steps=p.steps, marker=p.description)
    return JobStarted(job=(await node.jobs.submit(p.dataset, spec, title=f"fake {p.dataset}")).id)


class Asked(Params, frozen=True, kw_only=True):
    dataset: str


class Doubts(Result, frozen=True, kw_only=True):
    doubts: tuple[str, ...] = ()


@method("train.worth", Asked, Doubts, "Nothing speaks against it", TABLE)
async def worth(node: Node, p: Asked) -> Doubts:
    return Doubts()


@method("chat.complete", Complete, Answer, "Say it backwards", TABLE)
async def complete(node: Node, p: Complete, session: Session) -> Answer:
    if p.messages[-1]["content"] == "think":
        await session.notify("chat.delta", {"deployment": p.deployment, "text": "hm"})
        await trio.sleep_forever()
    if p.messages[-1]["content"] in SAID_NO:
        raise SAID_NO[p.messages[-1]["content"]]
    if p.messages[-1]["content"] == "nothing":
        return Answer(text="")
    text = f"{len(p.messages)}:" + p.messages[-1]["content"][::-1]
    if p.stream:
        for letter in text[:-1]:
            await session.notify("chat.delta", {"deployment": p.deployment, "text": letter})
    return Answer(text=text)


class Named(Params, frozen=True, kw_only=True):
    deployment: str


class Deployed(Result, frozen=True, kw_only=True):
    name: str
    state: str
    note: str


@method("deployment.show", Named, Deployed, "One that is there", TABLE)
async def show(node: Node, p: Named) -> Deployed:
    if p.deployment == "fallen":
        return Deployed(name="fallen", state="rolled_back", note="the plain base answers: it was taken back")
    return Deployed(name=p.deployment, state="ready", note="")


@pytest.fixture
def house(tmp_path: Path) -> Any:
    made = House(tmp_path)
    yield made
    made.index.close()


@asynccontextmanager
async def daemon(house: House) -> AsyncIterator[Node]:
    socket = Paths.from_env({"ORCHD_HOME": str(house.folder)}).socket
    async with house.running() as (jobs, events), served(socket, node=Node(jobs, events), table=TABLE) as node:
        yield node


def environment(house: House) -> dict[str, str]:
    return {**os.environ, "ORCHD_HOME": str(house.folder), "PYTHONPATH": os.getcwd(), "COLUMNS": "200"}


async def orchctl(house: House, *words: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "orchd.cli.main", *words],
            capture_output=True,
            text=True,
            env=environment(house),
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            timeout=30,
            check=False,
        )

    return await trio.to_thread.run_sync(run)


async def test_a_failed_job_keeps_its_exit_code(house: House) -> None:
    async with daemon(house):
        refused = await orchctl(house, "train", "start", "refuse")
        assert refused.returncode == 4
        assert refused.stdout == ""
        assert "error: auto_map is not allowed [E2114]" in refused.stderr
        as_json = await orchctl(house, "train", "start", "refuse", "--json")
        assert as_json.returncode == 4
        assert json.loads(as_json.stdout)["error"]["name"] == "AdapterConfigRefused"
        assert as_json.stderr.count("error") == 0
        crashed = await orchctl(house, "train", "start", "crash", "--quiet")
        assert crashed.returncode == 1
        assert crashed.stderr.startswith("error: ValueError: the seventh row is odd")


async def test_detach_watch_logs_and_prefixes(house: House) -> None:
    async with daemon(house) as node:
        started = await orchctl(house, "train", "start", "count", "--detach")
        job = started.stdout.strip()
        assert job.startswith("job_")
        watched = await orchctl(house, "job", "watch", job[:-2], "--json")
        assert watched.returncode == 0
        assert json.loads(watched.stdout.splitlines()[-1])["result"]["steps"] == 3
        assert "counted" in (await orchctl(house, "job", "logs", job)).stdout
        failed = await node.jobs.submit("refuse", CountSpec(), title="no")
        assert (await orchctl(house, "job", "watch", failed.id)).returncode == 4
        listed = await orchctl(house, "job", "list", "--limit", "1")
        assert listed.stdout.splitlines()[-1] == f"more: --cursor {failed.id}"
        missing = await orchctl(house, "job", "show", "job_zzz")
        assert (missing.returncode, missing.stdout) == (5, "")
        again = await orchctl(house, "job", "cancel", job)
        assert again.returncode == 2
        planned = await orchctl(house, "job", "cancel", job, "--dry-run")
        assert planned.stdout.startswith(f"would ask a queued or running job to stop: fake count ({job})")


@pytest.mark.parametrize("words", [["train", "start"], ["job", "watch"]])
async def test_ctrl_c_leaves_the_job_running(house: House, words: list[str]) -> None:
    """On a real terminal: the bar is drawn, Ctrl-C detaches with a note, the exit code is 130."""
    marker = house.folder / "go"
    async with daemon(house) as node:
        events = node.events.subscribe()
        if words[0] == "job":
            job = await node.jobs.submit("gated", CountSpec(marker=str(marker)), title="fake gated")
            words = [*words, job.id]
        else:
            words = [*words, "gated", "--description", str(marker)]
        primary, secondary = pty.openpty()
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "orchd.cli.main", *words],
            stdin=secondary,
            stdout=secondary,
            stderr=secondary,
            env=environment(house),
        )
        os.close(secondary)
        try:
            await until(events, "job.progress")
            seen = await trio.to_thread.run_sync(read_until, primary, b"...")
            process.send_signal(signal.SIGINT)
            seen += await trio.to_thread.run_sync(read_until, primary, b"stops it.")
            assert await trio.to_thread.run_sync(process.wait) == 130
        finally:
            process.kill()
            process.wait()
            os.close(primary)
        (job,), _ = await node.jobs.list()
        assert "fake gated ..." in seen.decode(), "the bar bears the job's title"
        assert f"orchctl job cancel {job.id}" in seen.decode()
        assert job.state == "running"
        await trio.Path(marker).touch()
        assert (await node.jobs.wait(job.id)).state == "done"


def read_until(descriptor: int, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        try:
            seen += os.read(descriptor, 4096)
        except OSError:  # the terminal's other end is closed: the process has ended
            raise AssertionError(f"it ended before it said {text!r}: {seen!r}") from None
    return seen


async def test_events_are_a_line_each_and_a_closed_pipe_ends_them(house: House) -> None:
    async with daemon(house) as node:
        for number in range(3):
            node.events.emit("topic.joined", {"topic": f"t{number}"})

        def read() -> list[str]:
            with subprocess.Popen(
                [sys.executable, "-m", "orchd.cli.main", "events", "--after", "0", "--json"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(house),
                text=True,
            ) as process:
                assert process.stdout is not None
                lines = [process.stdout.readline() for _ in range(3)]
                process.stdout.close()
                trio.from_thread.run_sync(node.events.emit, "topic.joined", {"topic": "t3"})
                assert process.stderr is not None
                assert process.stderr.read() == ""
                return lines

        lines = await trio.to_thread.run_sync(read)
        assert [json.loads(line)["data"]["topic"] for line in lines] == ["t0", "t1", "t2"]


async def test_chat_streams_and_reads_lines_from_a_pipe(house: House) -> None:
    async with daemon(house):
        assert (await orchctl(house, "chat", "m", "hello")).stdout == "1:olleh\n"
        assert json.loads((await orchctl(house, "chat", "m", "hello", "--json")).stdout)["text"] == "1:olleh"
        said = (await orchctl(house, "chat", "m", "--json", "hello", "there")).stdout
        assert said == '{"text": "1:ereht olleh", "deployment": "tiny", "route": ""}\n'
        assert (await orchctl(house, "chat", "m", "nothing")).stdout == "(an empty answer)\n"
        assert (await orchctl(house, "chat", "m", input="one\n\ntwo\n")).stdout == "1:eno\n1:owt\n"
        fallen = await orchctl(house, "chat", "fallen", "hello")
        assert fallen.stdout == "1:olleh\n"
        assert fallen.stderr == "(the plain base answers: it was taken back)\n"


async def test_a_conversation_on_a_terminal(house: House) -> None:
    """What was said goes along; neither Ctrl-C nor a message that is too long ends the conversation; Ctrl-D does."""
    async with daemon(house):
        primary, secondary = pty.openpty()
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "orchd.cli.main", "chat", "m"],
            stdin=secondary,
            stdout=secondary,
            stderr=secondary,
            env={**environment(house), "TERM": "dumb"},
        )
        os.close(secondary)

        def say(text: bytes, *answer: bytes) -> None:
            os.write(primary, text)
            seen = read_until(primary, answer[-1])
            assert all(part in seen for part in answer)

        def talk() -> None:
            read_until(primary, b"> ")
            say(b"one\n", b"1:eno\r\n> ")
            say(b"two\n", b"3:owt\r\n> ")
            say(b"think\n", b"hm")
            process.send_signal(signal.SIGINT)
            read_until(primary, b" ...\r\n> ")
            say(b"long\n", b"(512 tokens) [E7009]", b"/new begins a new one, with all its room.\r\n> ")
            say(b"die\n", b"[E7008]", b"or something shorter.\r\n> ")
            say(b"five\n", b"5:evif\r\n> ")
            say(b"/new\n", b"> ")
            say(b"four\n", b"1:ruof\r\n> ")
            os.write(primary, b"\x04")

        try:
            await trio.to_thread.run_sync(talk)
            assert await trio.to_thread.run_sync(process.wait) == 0
        finally:
            process.kill()
            process.wait()
            os.close(primary)


async def test_usage_errors(house: House) -> None:
    wrong = await orchctl(house, "train", "start", "count", "--steps", "many", "--json")
    assert wrong.returncode == 2
    assert json.loads(wrong.stdout)["error"]["name"] == "UsageInvalid"
    alone = await orchctl(house, "--json")
    assert alone.returncode == 2
    assert json.loads(alone.stdout)["error"]["message"] == "a noun is missing"
    missing = await orchctl(house, "--quiet", "job", "list")
    assert missing.returncode == 3
    assert "the daemon is not running" in missing.stderr
    assert "Start it with `orchd`" in missing.stderr
    near = await orchctl(house, "jobs")
    assert near.returncode == 2
    assert "Did you mean `orchctl job`?" in near.stderr
    for unrelated in ("stop", "connect", "delete", "banana"):
        assert "lists the nouns" in (await orchctl(house, unrelated)).stderr
    assert "Did you mean `list`?" in (await orchctl(house, "adapter", "lst")).stderr
    odd = await orchctl(house, "adapter", "banana")
    assert (odd.returncode, "`orchctl adapter --help` lists" in odd.stderr) == (2, True)
    assert "stand in quotes" in (await orchctl(house, "dataset", "show", "my", "data")).stderr
    assert "Did you mean `--json`?" in (await orchctl(house, "dataset", "show", "my", "--jsn")).stderr
    called = await orchctl(house, "rpc", "call", "job.list", "[1]")
    assert called.returncode == 2
    assert "by name" in called.stderr


async def test_rpc_call_reaches_every_method(house: House) -> None:
    async with daemon(house):
        called = await orchctl(house, "rpc", "call", "job.list", '{"limit": 3}', "--json")
        assert json.loads(called.stdout) == {"jobs": [], "cursor": None}
        assert "job.wait" in (await orchctl(house, "rpc", "discover")).stdout
        stray = await orchctl(house, "rpc", "call", "job.list", '{"limits": 3}', "--json")
        assert stray.returncode == 2
        assert json.loads(stray.stdout)["error"]["hint"] == "Did you mean `limit`?"
        for odd in ("nan", "inf"):
            refused = await orchctl(house, "train", "start", "count", "--learning-rate", odd, "--json")
            error = json.loads(refused.stdout)["error"]
            assert (refused.returncode, error["field"]) == (2, "learning_rate")
            assert error["message"] == f"learning_rate {odd} is no number"
