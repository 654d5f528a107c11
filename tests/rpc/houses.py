"""A small server for tests: a table of its own, a node of its own, a real Unix socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from orchd.errors import AdapterUnknown, TensorsRefused
from orchd.rpc.connection import Session
from orchd.rpc.server import RpcServer
from orchd.rpc.sockets import bind, peer_uid
from orchd.rpc.table import Method, NoParams, Params, Result, method

TABLE: dict[str, Method] = {}


class AddParams(Params, frozen=True, kw_only=True):
    first: int
    second: int = 1
    tags: tuple[str, ...] = ()


class Sum(Result, frozen=True, kw_only=True):
    sum: int


class Gate:
    """The node of these tests: handlers wait here."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.waiting = 0
        self.cancelled = 0
        self.heard: list[int] = []


@method("test.add", AddParams, Sum, "Add two numbers", TABLE)
async def add(node: Gate, params: AddParams) -> Sum:
    node.heard.append(params.first)
    return Sum(sum=params.first + params.second)


@method("test.wait", NoParams, Sum, "Wait at the gate", TABLE)
async def wait(node: Gate, params: NoParams) -> Sum:
    node.waiting += 1
    try:
        await node.open.wait()
    except trio.Cancelled:
        node.cancelled += 1
        raise
    return Sum(sum=node.waiting)


@method("test.refuse", NoParams, Sum, "Fail with a number", TABLE)
async def refuse(node: Gate, params: NoParams) -> Sum:
    async with trio.open_nursery():
        raise TensorsRefused("too wide", field="adapter")


@method("test.unknown", NoParams, Sum, "Fail with another number", TABLE)
async def unknown(node: Gate, params: NoParams) -> Sum:
    raise AdapterUnknown("no adapter adp_x")


@method("test.crash", NoParams, Sum, "Fail without a number", TABLE)
async def crash(node: Gate, params: NoParams) -> Sum:
    raise ZeroDivisionError("nobody thought of this")


@method("test.count", AddParams, Sum, "Stream before the answer and after it", TABLE)
async def count(node: Gate, params: AddParams, session: Session) -> Sum:
    for number in range(params.first):
        await session.notify("test.number", {"request": session.request_id, "number": number})

    async def later() -> None:
        await session.notify("test.later", {"text": "x" * params.second})

    session.afterwards(session.free_name("count_"), later)
    return Sum(sum=params.first)


@asynccontextmanager
async def served(
    socket_path: Path,
    node: Any = None,
    table: Mapping[str, Method] = TABLE,
    uid_of: Callable[[Any], int] = peer_uid,
) -> AsyncIterator[Any]:
    """A running server. Gives the node."""
    node = Gate() if node is None else node
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(RpcServer(bind(socket_path), node, table, uid_of).run)
            yield node
            nursery.cancel_scope.cancel()


class Wire:
    """The raw lines of one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._rest = b""

    @classmethod
    async def open(cls, path: Path) -> Wire:
        return cls(await trio.open_unix_socket(str(path)))

    async def send(self, *requests: object) -> None:
        lines = b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in requests)
        await self.stream.send_all(lines)

    async def receive(self) -> Any:
        while b"\n" not in self._rest:
            data = await self.stream.receive_some(65_536)
            if not data:
                raise EOFError
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    async def ended(self) -> bool:
        """Whether the server closed the connection without another word."""
        return not self._rest and await self.stream.receive_some(1) == b""

    async def ask(self, method: str, /, **params: Any) -> Any:
        await self.send({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        return await self.receive()


def request(identifier: Any, name: str, /, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": identifier, "method": name, "params": params}
