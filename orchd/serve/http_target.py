"""What targets that are asked over HTTP have in common: httpx on trio, its exceptions as numbered errors.

httpx is loaded on first use (the idle daemon stays small), takes no proxy from the environment, and follows nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from orchd.errors import NotAvailable, TargetRefused, TargetStreamBroken, TargetUnreachable

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 360.0
"""A server may load a model before it answers; Ollama itself gives up after 300 s."""
ANSWER_BYTES = 16 << 20
"""A whole answer that is longer is not read: these are lists of models and short texts."""


class HttpTarget:
    """The server at `address`, called `product` where people are told of it."""

    product = "server"

    def __init__(self, address: str) -> None:
        self.address = address

    async def call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """The JSON object that it answers; {} for an empty one. Raises TargetUnreachable, TargetRefused with the
        server's words, TargetStreamBroken."""
        content = await self.text(method, path, body)
        if not content:
            return {}
        try:
            return msgspec.json.decode(content, type=dict[str, Any])
        except msgspec.MsgspecError:
            told = content[:80].decode(errors="replace")
            raise TargetRefused(f"{self.address}{path} is no {self.product} server: it answered {told!r}") from None

    async def text(self, method: str, path: str, body: Mapping[str, object] | None = None) -> bytes:
        """What it answers, whatever that is. Raises as `call`."""
        async with self.client() as client, self.errors("answering"), client.stream(method, path, json=body) as answer:
            content = b""
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > ANSWER_BYTES:
                    raise TargetRefused(f"{self.address}{path} answered with more than {ANSWER_BYTES:,} bytes")
            if answer.status_code != 200:
                raise TargetRefused(self.refusal(answer.status_code, content))
            return content

    def client(self) -> httpx.AsyncClient:
        module = _httpx()
        timeout = module.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        # trust_env: nothing of what is deployed goes through a proxy that the environment names
        client: httpx.AsyncClient = module.AsyncClient(base_url=self.address, timeout=timeout, trust_env=False)
        return client

    @asynccontextmanager
    async def errors(self, doing: str) -> AsyncIterator[None]:
        """httpx's exceptions as numbered errors."""
        httpx = _httpx()
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise TargetUnreachable(f"no {self.product} server answers at {self.address}: {error}") from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise TargetStreamBroken(f"{self.address} broke off while {doing}: {reason}") from error

    def refusal(self, status: int, content: bytes) -> str:
        """In the server's own words."""
        return f"{self.address} answered {status}: {_words(content)}"


def _words(content: bytes) -> str:
    """{"error": TEXT}, {"error": {"message": TEXT}}, {"message": TEXT} or plain text."""
    try:
        found = msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.MsgspecError:
        return content[:300].decode(errors="replace").strip() or "nothing"
    error = found.get("error", found.get("message", found))
    if isinstance(error, dict):
        error = error.get("message", error)
    return str(error)[:500]


def _httpx() -> Any:
    try:
        import httpx
    except ModuleNotFoundError:
        hint = "pip install 'orchd[serve]'"
        raise NotAvailable("deploying to a server needs the Python package httpx", hint=hint) from None
    return httpx
