"""One client: its requests run side by side, its answers and notifications leave one line at a time."""

from __future__ import annotations

import logging
import select
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import trio

from orchd.errors import LimitExceeded, OrchdError, ParamsInvalid, numbered
from orchd.rpc import protocol
from orchd.rpc.protocol import Call, Faulty, Request
from orchd.rpc.table import Method, decode_params, find

IN_FLIGHT = 256
"""Requests of one connection that may wait for their answer at once."""

SUBSCRIPTIONS = 64
"""Background senders of one connection."""

HANG_UP_SECONDS = 1.0
"""How often it is looked whether a client that sends no more has gone altogether."""

READ_BYTES = 65_536

log = logging.getLogger("orchd.rpc")


class Session:
    """What a streaming handler sees of its caller's connection, for one request."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._afterwards: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self.request_id = _id(request)

    async def notify(self, method: str, params: Mapping[str, Any] | msgspec.Struct) -> None:
        """Send a notification. Waits while the client is slow to read."""
        await self._connection.send(protocol.notification_line(method, params))

    def afterwards(self, name: str, sender: Callable[[], Awaitable[None]]) -> None:
        """Run `sender` once the answer is out, until it ends, the client goes, or `end(name)`."""
        if len(self._connection.senders) + len(self._afterwards) >= SUBSCRIPTIONS:
            raise LimitExceeded(f"a connection may have {SUBSCRIPTIONS} subscriptions")
        self._afterwards.append((name, sender))

    def end(self, name: str) -> bool:
        """Stop a sender. False when there is none of this name."""
        scope = self._connection.senders.pop(name, None)
        if scope is None:
            return False
        scope.cancel()
        return True

    def free_name(self, prefix: str) -> str:
        """A name for a sender that this connection hasn't used yet."""
        self._connection.names += 1
        return f"{prefix}{self._connection.names}"

    def answered(self) -> None:
        """Called by the connection when the answer is out."""
        for name, sender in self._afterwards:
            self._connection.start_sender(name, sender)


class Connection:
    """One accepted socket. `run` serves it until the client leaves; it raises nothing but cancellation."""

    def __init__(self, stream: trio.SocketStream, node: Any, table: Mapping[str, Method]) -> None:
        self._stream = stream
        self._node = node
        self._table = table
        self._sending = trio.Lock()
        self._in_flight = 0
        self._idle = trio.Event()
        self.senders: dict[str, trio.CancelScope] = {}
        self.names = 0

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._read(nursery)
                await self._finish()
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away in the middle of something

    async def send(self, line: bytes) -> None:
        async with self._sending:
            await self._stream.send_all(line + b"\n")

    def start_sender(self, name: str, sender: Callable[[], Awaitable[None]]) -> None:
        scope = self.senders[name] = trio.CancelScope()

        async def run() -> None:
            with scope:
                await sender()
            self.senders.pop(name, None)

        self._nursery.start_soon(run, name=name)

    async def _read(self, nursery: trio.Nursery) -> None:
        lines = protocol.Lines()
        while data := await self._stream.receive_some(READ_BYTES):
            try:
                complete = lines.feed(data)
            except LimitExceeded as error:
                await self.send(protocol.error_line(None, error))
                return
            for line in complete:
                await self._accept(nursery, line)
        for line in lines.rest():
            await self._accept(nursery, line)

    async def _accept(self, nursery: trio.Nursery, line: bytes) -> None:
        """Start on a line, or refuse it when too much of this client is under way."""
        parsed = protocol.parse(line)
        calls = parsed if isinstance(parsed, list) else [parsed]
        if self._in_flight + len(calls) > IN_FLIGHT:
            error = LimitExceeded(f"{IN_FLIGHT} requests may be under way on one connection")
            refused = [protocol.error_line(_id(call), error) for call in calls if _wants_answer(call)]
            await self._answer(refused, batch=isinstance(parsed, list))
            return
        self._in_flight += len(calls)
        nursery.start_soon(self._serve, calls, isinstance(parsed, list))

    async def _serve(self, calls: list[Call], batch: bool) -> None:
        sessions: list[Session] = []
        answers: list[bytes | None] = [None] * len(calls)

        async def one(position: int) -> None:
            answers[position] = await self._call(calls[position], sessions)

        try:
            if batch:
                async with trio.open_nursery() as nursery:
                    for position in range(len(calls)):
                        nursery.start_soon(one, position)
            else:
                await one(0)
            await self._answer([answer for answer in answers if answer is not None], batch=batch)
            for session in sessions:
                session.answered()
        finally:
            self._in_flight -= len(calls)
            if not self._in_flight:
                self._idle.set()

    async def _answer(self, answers: list[bytes], *, batch: bool) -> None:
        if answers:
            await self.send(protocol.batch_line(answers) if batch else answers[0])

    async def _call(self, call: Call, sessions: list[Session]) -> bytes | None:
        """The response to one request; None for a notification."""
        if isinstance(call, Faulty):
            return protocol.error_line(call.id, call.error)
        try:
            result = await self._dispatch(call, sessions)
            return protocol.result_line(_id(call), result) if call.answered else None
        except Exception as error:
            failure = _as_numbered(call.method, error)
        return protocol.error_line(_id(call), failure) if call.answered else None

    async def _dispatch(self, request: Request, sessions: list[Session]) -> Any:
        method = find(request.method, self._table)
        params = decode_params(method, request.params)
        if not method.streams:
            return await method.handler(self._node, params)
        if not request.answered:
            raise ParamsInvalid(f"{method.name} can't be a notification", hint="Give the request an `id`.")
        session = Session(self, request)
        result = await method.handler(self._node, params, session)
        sessions.append(session)
        return result

    async def _finish(self) -> None:
        """The client sends no more. Answer what it still waits for, unless it has gone altogether."""
        while self._in_flight and not _hung_up(self._stream):
            self._idle = trio.Event()
            with trio.move_on_after(HANG_UP_SECONDS):
                await self._idle.wait()


def _id(call: Call) -> protocol.Id:
    return None if isinstance(call.id, msgspec.UnsetType) else call.id


def _wants_answer(call: Call) -> bool:
    return isinstance(call, Faulty) or call.answered


def _as_numbered(method: str, error: Exception) -> OrchdError:
    """The numbered error for whatever a handler raised. What nobody foresaw is logged with its traceback."""
    known = numbered(error)
    if known is not None:
        return known
    log.error("%s failed", method, exc_info=error)
    return OrchdError(f"{method} failed: {type(error).__name__}: {error}")


def _hung_up(stream: trio.SocketStream) -> bool:
    """Whether the other end is closed in both directions, not only for sending."""
    poll = select.poll()
    poll.register(stream.socket.fileno(), select.POLLHUP)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
