"""The server over a real socket, the way a client that nobody here wrote would use it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from orchd.errors import HomeBusy, SocketRefused
from orchd.rpc import connection, server
from orchd.rpc.client import Client
from orchd.rpc.sockets import bind
from tests.rpc.houses import Wire, request, served


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "rpc.sock"


async def test_calls_are_answered(path: Path) -> None:
    async with served(path):
        wire = await Wire.open(path)
        assert await wire.ask("test.add", first=2, second=3) == {"jsonrpc": "2.0", "id": 1, "result": {"sum": 5}}
        await wire.send(b"\n\n" + json.dumps(request("a", "test.add", first=1)).encode() + b"\r\n")
        assert (await wire.receive())["result"] == {"sum": 2}


@pytest.mark.parametrize(
    ("method", "params", "code", "number", "field", "words"),
    [
        ("test.ad", {}, -32601, 1103, None, "Did you mean `test.add`?"),
        ("test.add", {"frist": 1}, -32602, 1102, "frist", "Did you mean `first`?"),
        ("test.add", {"banana": 1}, -32602, 1102, "banana", "test.add takes first, second, tags."),
        ("test.wait", {"banana": 1}, -32602, 1102, "banana", "test.wait takes no parameters."),
        ("test.add", {}, -32602, 1102, "first", "missing required field"),
        ("test.add", {}, -32602, 1102, "first", "Give `first` too."),
        ("test.add", {"first": "1"}, -32602, 1102, "first", "Expected `int`"),
        ("test.add", {"first": "1"}, -32602, 1102, "first", "Change `first`"),
        ("test.add", {"first": 1, "tags": ["a", 2]}, -32602, 1102, "tags[1]", "Expected `str`"),
        ("test.add", [1, 2], -32602, 1102, None, "by name"),
        ("test.refuse", {}, 2113, 2113, "adapter", "too wide"),
        ("test.unknown", {}, 2101, 2101, None, "no adapter"),
        ("test.crash", {}, -32603, 1000, None, "nobody thought of this"),
    ],
)
async def test_errors(
    path: Path, method: str, params: Any, code: int, number: int, field: str | None, words: str
) -> None:
    async with served(path):
        wire = await Wire.open(path)
        await wire.send({"jsonrpc": "2.0", "id": 5, "method": method, "params": params})
        answer = await wire.receive()
        assert answer["id"] == 5
        error = answer["error"]
        assert (error["code"], error["data"]["number"], error["data"].get("field")) == (code, number, field)
        assert words in error["message"] + error["data"]["hint"]
        assert error["data"]["page"] == f"docs/errors.md#e{number}"
        assert (await wire.ask("test.add", first=1))["result"] == {"sum": 2}


async def test_batches(path: Path) -> None:
    async with served(path) as node:
        wire = await Wire.open(path)
        await wire.send(
            [
                request(1, "test.add", first=1),
                {"jsonrpc": "2.0", "method": "test.add", "params": {"first": 77}},
                7,
                request(2, "test.nope"),
            ]
        )
        answers = await wire.receive()
        assert [a.get("id") for a in answers] == [1, None, 2]
        assert answers[0]["result"] == {"sum": 2}
        assert answers[1]["error"]["code"] == -32600
        assert answers[2]["error"]["code"] == -32601
        assert 77 in node.heard
        await wire.send([{"jsonrpc": "2.0", "method": "test.add", "params": {"first": 78}}])
        await wire.send(request(3, "test.add", first=1))
        assert (await wire.receive())["id"] == 3  # a batch of notifications alone is not answered
        assert 78 in node.heard


async def test_notifications_are_not_answered_even_when_wrong(path: Path) -> None:
    async with served(path):
        wire = await Wire.open(path)
        await wire.send({"jsonrpc": "2.0", "method": "test.nope"}, {"jsonrpc": "2.0", "method": "test.crash"})
        assert (await wire.ask("test.add", first=1))["id"] == 1


async def test_requests_run_side_by_side(path: Path) -> None:
    async with served(path) as node:
        wire = await Wire.open(path)
        await wire.send(request("slow", "test.wait"), request("fast", "test.add", first=1))
        assert (await wire.receive())["id"] == "fast"
        node.open.set()
        assert (await wire.receive())["id"] == "slow"


async def test_streams_before_the_answer_and_senders_after_it(path: Path) -> None:
    async with served(path):
        wire = await Wire.open(path)
        await wire.send(request("q", "test.count", first=2))
        got = [await wire.receive() for _ in range(4)]
        assert [m.get("method") for m in got] == ["test.number", "test.number", None, "test.later"]
        assert got[1]["params"] == {"request": "q", "number": 1}
        assert got[2] == {"jsonrpc": "2.0", "id": "q", "result": {"sum": 2}}


async def test_limits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IN_FLIGHT", 3)
    monkeypatch.setattr(server, "CONNECTIONS", 2)
    async with served(path) as node:
        wire = await Wire.open(path)
        await wire.send(*(request(n, "test.wait") for n in range(3)), request(3, "test.add", first=1))
        refused = await wire.receive()
        assert refused["id"] == 3
        assert refused["error"]["code"] == 1104
        await wire.send([request(4, "test.wait"), request(5, "test.wait")])
        assert [a["error"]["code"] for a in await wire.receive()] == [1104, 1104]
        node.open.set()
        assert {(await wire.receive())["id"] for _ in range(3)} == {0, 1, 2}
        second = await Wire.open(path)
        assert "result" in await second.ask("test.add", first=1)
        third = await Wire.open(path)
        assert (await third.receive())["error"]["code"] == 1104
        assert await third.ended()


async def test_a_line_without_end_closes_the_connection(path: Path) -> None:
    async with served(path):
        wire = await Wire.open(path)

        async def pour() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await wire.stream.send_all(b"x" * 1_000_000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            assert (await wire.receive())["error"]["data"]["name"] == "LimitExceeded"
        assert "result" in await (await Wire.open(path)).ask("test.add", first=1)


async def test_a_client_that_only_stops_sending_is_still_answered(path: Path) -> None:
    async with served(path) as node:
        wire = await Wire.open(path)
        await wire.send(request(1, "test.wait"), json.dumps(request(2, "test.add", first=1)).encode())
        await wire.stream.send_eof()
        assert (await wire.receive())["id"] == 2
        node.open.set()
        assert (await wire.receive())["id"] == 1
        assert await wire.ended()


async def test_a_client_that_is_gone_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HANG_UP_SECONDS", 0.01)
    async with served(path) as node:
        wire = await Wire.open(path)
        await wire.send(request(1, "test.wait"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await wire.stream.aclose()
        while not node.cancelled:
            await trio.lowlevel.checkpoint()
        assert "result" in await (await Wire.open(path)).ask("test.add", first=1)


async def test_a_client_that_does_not_read_holds_only_itself(path: Path) -> None:
    async with served(path):
        deaf = await Wire.open(path)
        await deaf.send(*(request(n, "test.count", first=0, second=1_000_000) for n in range(20)))
        wire = await Wire.open(path)
        for n in range(50):
            assert (await wire.ask("test.add", first=n))["result"] == {"sum": n + 1}


async def test_strangers_get_no_word(path: Path) -> None:
    async with served(path, uid_of=lambda _: 4242):
        wire = await Wire.open(path)
        assert await wire.ended()


async def test_the_socket_is_for_this_user_alone(path: Path) -> None:
    async with served(path):
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700
    with pytest.raises(FileNotFoundError):
        os.lstat(path)


def test_a_living_daemon_is_named_and_a_dead_one_replaced(path: Path) -> None:
    first = bind(path)
    with pytest.raises(HomeBusy, match=f"process {os.getpid()} holds"):
        bind(path)
    first.socket.close()  # as after kill -9: the socket file stays, nobody listens
    os.close(first.lock)
    assert path.exists()
    again = bind(path)
    again.release()
    assert not path.exists()


def test_a_clean_stop_leaves_neither_socket_nor_lock(path: Path) -> None:
    bind(path).release()
    assert list(path.parent.iterdir()) == []


def test_a_lock_that_was_removed_while_it_was_opened_is_not_held(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two daemons start while a third ends: the one that opened the old lock file must not believe that it holds it."""
    ending = bind(path)
    flock, rivals = fcntl.flock, []

    def late(lock: int, operation: int) -> None:
        monkeypatch.setattr("fcntl.flock", flock)
        ending.release()
        rivals.append(bind(path))
        flock(lock, operation)

    monkeypatch.setattr("fcntl.flock", late)
    with pytest.raises(HomeBusy, match=f"process {os.getpid()} holds"):
        bind(path)
    rivals[0].release()
    assert list(path.parent.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel names the other process")
def test_a_living_daemon_is_found_even_without_its_lock_file(path: Path) -> None:
    first = bind(path)
    path.with_suffix(".lock").unlink()
    with pytest.raises(HomeBusy, match=f"process {os.getpid()} listens"):
        bind(path)
    first.release()


def test_what_is_no_socket_is_left_alone(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.write_text("a letter")
    with pytest.raises(SocketRefused):
        bind(path)
    assert path.read_text() == "a letter"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SocketRefused):
        bind(tmp_path / "link" / "rpc.sock")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder in which a socket's path fits, wherever pytest has its own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def test_a_client_tells_nothing_to_a_socket_that_somebody_else_may_have_put_there(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In /tmp the first one to make the directory has its name."""
    open_to_all = short_path / "tmp"
    open_to_all.mkdir()
    open_to_all.chmod(0o1777)
    bound = bind(open_to_all / "orchd-1" / "rpc.sock")
    bound.socket.setblocking(False)
    Client(bound.path).close()
    bound.socket.accept()[0].close()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(SocketRefused, match="nothing was sent"):
        Client(bound.path)
    with pytest.raises(BlockingIOError):
        bound.socket.accept()
    open_to_all.chmod(0o755)  # as /run: only its owner gives places there
    Client(bound.path).close()
    bound.release()


def test_the_kernel_tells_who_is_there(path: Path) -> None:
    from orchd.rpc.sockets import peer_pid, peer_uid

    bound = bind(path)
    script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE) as child:
        accepted, _ = bound.socket.accept()
        assert peer_uid(accepted) == os.getuid()
        assert peer_pid(accepted) == child.pid
        accepted.close()
        child.communicate()
    bound.release()


async def test_garbage_of_every_kind_leaves_the_server_standing(path: Path) -> None:
    async with served(path):
        for garbage in (
            b"\x00\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"{" * 100_000 + b"\n",
            b'"' * 1001 + b"\n",
            struct.pack("<Q", 2**63) + b"\n",
        ):
            wire = await Wire.open(path)
            await wire.send(garbage)
            assert (await wire.receive())["error"]["code"] in {-32700, -32600, 1104}
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(str(path))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()
        assert "result" in await (await Wire.open(path)).ask("test.add", first=1)
