"""The endpoint: who may ask, what can be asked, and the answers. It listens on 127.0.0.1 only, and only when told to.

Each request carries the token (`Authorization: Bearer …`): any program of any user of this machine can reach loopback.
A `Host` that isn't loopback's is refused, so that a web page can't get here through a name that it controls, and no
CORS header is ever sent. Nothing of a request is read beyond its head before it has shown the token.
"""

from __future__ import annotations

import errno
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import unquote

import msgspec
import trio

from orchd.errors import (
    EXIT_NOT_FOUND,
    EXIT_REFUSED,
    EXIT_USAGE,
    EndpointNotOpened,
    EndpointPathUnknown,
    EndpointRequestRefused,
    EndpointTokenWrong,
    NotAvailable,
    OrchdError,
    numbered,
)
from orchd.serve.endpoint import messages
from orchd.serve.endpoint.messages import Asked, ModelCard, Told, Usage

if TYPE_CHECKING:
    from orchd.serve.embedded import Completion
    from orchd.serve.endpoint.http import Headers, HttpConnection, Request

HOST = "127.0.0.1"
CONNECTIONS = 128
ROUTE_HEADER = "X-Orchd-Route"
STATUS = {EXIT_USAGE: 400, EXIT_REFUSED: 403, EXIT_NOT_FOUND: 404}
"""Of a numbered error, by what `orchctl` returns for it; else 500."""
LOG = logging.getLogger("orchd.endpoint")


class Answering(NamedTuple):
    """An answer that begins when it is iterated over. `model` is the deployment that gives it, and `why` why it was
    chosen; empty where it was named."""

    model: str
    completion: Completion
    why: str = ""


class Backend(Protocol):
    """Who answers. Both raise numbered errors."""

    async def models(self) -> Sequence[ModelCard]: ...

    async def answer(self, asked: Asked) -> Answering: ...


class Endpoint:
    """Listens between `open` and `close`. `run` it in a nursery first. `clock` gives milliseconds since 1970."""

    def __init__(self, backend: Backend, clock: Callable[[], int]) -> None:
        self._backend = backend
        self._clock = clock
        self._nursery: trio.Nursery | None = None
        self._scope: trio.CancelScope | None = None
        self._token = b""
        self._connections = 0
        self._changing = trio.Lock()
        self._closed = trio.Event()
        self.port: int | None = None

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the listener's tasks until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def open(self, port: int, token: str) -> int:
        """Listen on `port` (0: any free one), for whoever has `token`; the port. One that listens is closed first.

        Raises EndpointNotOpened when the port is taken, NotAvailable without h11.
        """
        if self._nursery is None:
            raise EndpointNotOpened("the daemon is stopping")
        try:
            from orchd.serve.endpoint import http  # noqa: F401 - loaded for nobody who doesn't ask
        except ModuleNotFoundError:
            raise NotAvailable("the endpoint needs the Python package h11", hint="pip install 'orchd[serve]'") from None
        async with self._changing:
            await self._close()
            try:
                listeners = await trio.open_tcp_listeners(port, host=HOST)
            except OSError as error:
                reason = "is taken" if error.errno == errno.EADDRINUSE else f"can't be opened: {error.strerror}"
                raise EndpointNotOpened(f"port {port} of {HOST} {reason}", field="port") from None
            self._token = token.encode()
            self._scope, self._closed = trio.CancelScope(), trio.Event()
            self.port = int(listeners[0].socket.getsockname()[1])
            self._nursery.start_soon(self._listen, self._scope, self._closed, listeners)
            return self.port

    async def close(self) -> bool:
        """Stop listening; answers under way are broken off. Whether it was open."""
        async with self._changing:
            return await self._close()

    async def _close(self) -> bool:
        scope, self._scope, self.port = self._scope, None, None
        if scope is None:
            return False
        scope.cancel()
        await self._closed.wait()
        return True

    async def _listen(self, scope: trio.CancelScope, closed: trio.Event, listeners: list[trio.SocketListener]) -> None:
        try:
            with scope:
                await trio.serve_listeners(self.serve, listeners)
        finally:
            for listener in listeners:
                listener.socket.close()
            closed.set()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection. Whatever goes wrong in it stays in it."""
        from orchd.serve.endpoint.http import HttpConnection

        self._connections += 1
        try:
            async with stream:
                handler = self._handle if self._connections <= CONNECTIONS else _full
                await HttpConnection(stream, handler).run()
        except Exception:
            LOG.exception("a connection failed")
        finally:
            self._connections -= 1

    # ---- one request --------------------------------------------------------------------------------------------

    async def _handle(self, connection: HttpConnection, request: Request) -> None:
        try:
            self._check(request)
            await self._route(connection, request)
        except EndpointTokenWrong as error:
            close = [("WWW-Authenticate", "Bearer"), ("Connection", "close")]
            await connection.reply(401, messages.failure(error, 401), close)
        except OrchdError as error:
            await _refuse(connection, error)

    def _check(self, request: Request) -> None:
        """Raises EndpointRequestRefused for a stranger's Host, EndpointTokenWrong without the token."""
        hosts = request.all("host")
        port = self.port
        if len(hosts) != 1 or hosts[0].lower() not in {f"{HOST}:{port}", f"localhost:{port}"}:
            named = hosts[0][:80] if hosts else "none"
            raise EndpointRequestRefused(f"the host {named!r} is not this endpoint", field="Host")
        given = request.all("authorization")
        scheme, _, token = (given[0] if len(given) == 1 else "").partition(" ")
        fits = hmac.compare_digest(token.strip().encode("latin-1"), self._token)
        if scheme.lower() != "bearer" or not fits:
            raise EndpointTokenWrong("this endpoint answers only who has its token")

    async def _route(self, connection: HttpConnection, request: Request) -> None:
        path = request.path.rstrip("/")
        if path == "/v1/chat/completions":
            await self._only("POST", connection, request, self._chat)
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            name = unquote(path.removeprefix("/v1/models").removeprefix("/"))
            await self._only("GET", connection, request, partial(self._models, name))
        else:
            raise EndpointPathUnknown(f"there is no {request.path[:80]!r} here")

    async def _only(
        self,
        method: str,
        connection: HttpConnection,
        request: Request,
        answer: Callable[[HttpConnection, Request], Awaitable[None]],
    ) -> None:
        if request.method == method:
            await answer(connection, request)
            return
        error = EndpointRequestRefused(f"{request.path} takes {method}, not {request.method[:20]}")
        await connection.reply(405, messages.failure(error, 405), [("Allow", method), ("Connection", "close")])

    async def _models(self, name: str, connection: HttpConnection, request: Request) -> None:
        await connection.body()
        cards = await self._backend.models()
        if not name:
            await connection.reply(200, messages.model_list(cards))
            return
        card = next((card for card in cards if card.name == name), None)
        if card is None:
            raise EndpointPathUnknown(f"there is no model {name[:80]!r}", field="model")
        await connection.reply(200, messages.model(card))

    async def _chat(self, connection: HttpConnection, request: Request) -> None:
        kinds = request.all("content-type")
        if len(kinds) != 1 or kinds[0].partition(";")[0].strip().lower() != "application/json":
            raise EndpointRequestRefused("the body has to be application/json", field="Content-Type")
        asked = messages.parse(await connection.body())
        try:
            await connection.while_there(partial(self._answer, connection, asked))
        except BaseExceptionGroup as group:
            known = numbered(group)
            if known is None:
                raise
            raise known from None

    async def _answer(self, connection: HttpConnection, asked: Asked) -> None:
        answering = await self._backend.answer(asked)
        told = Told(f"chatcmpl-{secrets.token_hex(12)}", self._clock() // 1000, answering.model)
        async with answering.completion as completion:
            if asked.stream:
                await _stream(connection, told, completion, _route(answering), usage=asked.usage)
                return
            text = (await completion.text()).lstrip()
            usage = Usage(completion.prompt_tokens, completion.tokens)
            await connection.reply(200, told.whole(text, completion.finish, usage), _route(answering))


def _route(answering: Answering) -> Headers:
    """Who was chosen and why, where nobody was named: `X-Orchd-Route: DEPLOYMENT; REASON` in printable ASCII."""
    told = f"{answering.model}; {answering.why}".encode("ascii", "replace").decode()
    plain = "".join(letter if letter.isprintable() else "?" for letter in told)
    return [(ROUTE_HEADER, plain[:300].strip())] if answering.why else []


async def _stream(
    connection: HttpConnection, told: Told, completion: Completion, headers: Headers, *, usage: bool
) -> None:
    """Server-sent events. The status is out with the first word, so that what can't be answered is a plain error."""
    begun = False
    async for piece in completion:
        text = piece if begun else piece.lstrip()  # many templates begin an answer with a blank
        if text and not begun:
            await connection.begin(200, "text/event-stream", headers)
            await connection.send(_event(told.first()))
            begun = True
        if text:
            await connection.send(_event(told.piece(text)))
    if not begun:
        await connection.begin(200, "text/event-stream", headers)
        await connection.send(_event(told.first()))
    await connection.send(_event(told.last(completion.finish)))
    if usage:
        await connection.send(_event(told.usage(Usage(completion.prompt_tokens, completion.tokens))))
    await connection.send(b"data: [DONE]\n\n")
    await connection.finish()


def _event(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


async def _refuse(connection: HttpConnection, error: OrchdError) -> None:
    """A status of its own, or the last event of a stream that has begun."""
    status = STATUS.get(error.exit_code, 500)
    if connection.begun:
        await connection.send(_event(messages.failure(error, status)))
        await connection.finish()
    else:
        await connection.reply(status, messages.failure(error, status), [("Connection", "close")])


async def _full(connection: HttpConnection, request: Request) -> None:
    error = EndpointRequestRefused(f"{CONNECTIONS} connections are open already", hint="Try again in a moment.")
    await connection.reply(503, messages.failure(error, 503), [("Retry-After", "1"), ("Connection", "close")])
