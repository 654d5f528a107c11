"""One HTTP/1.1 connection of the endpoint: h11 says what the bytes mean, this bounds what a stranger may cost.

A head has HEAD_SECONDS and HEAD_BYTES to come, a body BODY_SECONDS and BODY_BYTES, a piece of an answer SEND_SECONDS to
be taken; whoever is slower or sends more is told so and hung up on. A client that goes while it is answered ends its
answer. What isn't HTTP gets a 400 and nothing else happens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import h11
import msgspec
import trio

HEAD_BYTES = 16_384
BODY_BYTES = 1 << 20
READ_BYTES = 65_536
HEAD_SECONDS = 15.0
"""Also how long a connection may say nothing between two requests."""
BODY_SECONDS = 30.0
SEND_SECONDS = 30.0

Headers = Sequence[tuple[str, str]]


class Request(NamedTuple):
    """The head of a request. `headers` have lower-case names; one that came more than once is there more than once."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found == name]


class Turned(Exception):
    """A request that ends here with this status; the connection is closed then."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


Handler = Callable[["HttpConnection", Request], Awaitable[None]]
"""Answers one request, by `reply` or by `begin`, `send` and `finish`."""


class HttpConnection:
    """Serves `stream` until the client leaves, breaks the rules, or is too slow. Raises nothing but cancellation."""

    def __init__(self, stream: trio.abc.Stream, handler: Handler) -> None:
        self._stream = stream
        self._handler = handler
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)

    async def run(self) -> None:
        try:
            while await self._one():
                self._http.start_next_cycle()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away in the middle of something

    # ---- what a handler uses ------------------------------------------------------------------------------------

    async def body(self) -> bytes:
        """The request's body. Raises Turned for one that is too long or too slow."""
        parts: list[bytes] = []
        size = 0
        with trio.move_on_after(BODY_SECONDS) as late:
            while isinstance(event := await self._next(), h11.Data):
                size += len(event.data)
                if size > BODY_BYTES:
                    raise Turned(413, f"a request's body may have {BODY_BYTES:,} bytes")
                parts.append(bytes(event.data))
        if late.cancelled_caught:
            raise Turned(408, f"the body did not come within {BODY_SECONDS:.0f} s")
        if not isinstance(event, h11.EndOfMessage):
            raise trio.BrokenResourceError("the client left in its body")
        return b"".join(parts)

    async def reply(self, status: int, value: Any, headers: Headers = ()) -> None:
        """A whole answer of JSON."""
        data = msgspec.json.encode(value) + b"\n"
        await self.begin(status, "application/json", [("Content-Length", str(len(data))), *headers])
        await self.send(data)
        await self.finish()

    async def begin(self, status: int, content_type: str, headers: Headers = ()) -> None:
        common = [("Content-Type", content_type), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
        await self._write(h11.Response(status_code=status, headers=[*common, *headers]))

    async def send(self, data: bytes) -> None:
        await self._write(h11.Data(data=data))

    async def finish(self) -> None:
        await self._write(h11.EndOfMessage())

    @property
    def begun(self) -> bool:
        """Whether a status is out already."""
        return self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    # ---- inside -------------------------------------------------------------------------------------------------

    async def _one(self) -> bool:
        """Answer one request. Whether another may follow."""
        try:
            request = await self._head()
            if request is None:
                return False
            await self._handler(self, request)
        except Turned as turned:
            await self._turn(turned.status, str(turned))
        except h11.RemoteProtocolError as error:
            await self._turn(error.error_status_hint, f"this is no HTTP request: {error}")
        return bool(self._http.our_state is h11.DONE and self._http.their_state is h11.DONE)

    async def _head(self) -> Request | None:
        """None when nothing (more) was asked."""
        event: Any = None
        with trio.move_on_after(HEAD_SECONDS):
            event = await self._next()
        if not isinstance(event, h11.Request):
            if event is None and self._http.trailing_data[0]:
                raise Turned(408, f"the request's head did not come within {HEAD_SECONDS:.0f} s")
            return None
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
        path = event.target.decode("latin-1").partition("?")[0]
        return Request(event.method.decode("latin-1"), path, headers)

    async def while_there(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` after the body was read; it is cancelled when the client goes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            await work()
            nursery.cancel_scope.cancel()

    async def _watch(self, scope: trio.CancelScope) -> None:
        """What comes now belongs to the next request; nothing is read beyond it."""
        data = await self._stream.receive_some(READ_BYTES)
        if data:
            self._http.receive_data(data)
        else:
            scope.cancel()

    async def _next(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._write(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(await self._stream.receive_some(READ_BYTES))
        return event

    async def _turn(self, status: int, text: str) -> None:
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            error = {"error": {"message": text, "type": "invalid_request_error", "param": None, "code": None}}
            await self.reply(status, error, [("Connection", "close")])

    async def _write(self, event: Any) -> None:
        data = self._http.send(event)
        with trio.move_on_after(SEND_SECONDS) as late:
            await self._stream.send_all(data or b"")
        if late.cancelled_caught:
            raise trio.BrokenResourceError("the client takes nothing")
