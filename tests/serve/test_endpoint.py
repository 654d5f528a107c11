"""The OpenAI-compatible endpoint: what it answers, and that it outlives everything that is thrown at it.

Time is trio's: a slow client is slow in no time at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import trio
import trio.testing

from orchd.errors import DeploymentUnknown, EndpointNotOpened, EndpointRequestRefused, PromptRefused, TokenFileRefused
from orchd.importers.conversation import Message
from orchd.serve.embedded import Completion
from orchd.serve.endpoint import http
from orchd.serve.endpoint.messages import Asked, ModelCard, parse
from orchd.serve.endpoint.server import CONNECTIONS, Answering, Endpoint
from orchd.serve.endpoint.token import read_or_make

TOKEN = "a-token-of-forty-letters"
PIECES = (" zavo", " zi", " zan")
HELLO = {"model": "us", "messages": [{"role": "user", "content": "hello"}]}


class Spoken:
    """Stands for a completion: pieces that come as they are let out."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._left = list(PIECES)
        self.tokens, self.prompt_tokens, self.finish = 3, 5, "stop"

    def __aiter__(self) -> Spoken:
        return self

    async def __anext__(self) -> str:
        await self._backend.let_out.wait()
        if self._backend.fails:
            raise PromptRefused("the request (9 tokens) exceeds the context", field="messages")
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop(0)

    async def text(self) -> str:
        return "".join([piece async for piece in self])

    async def __aenter__(self) -> Spoken:
        self._backend.asking += 1
        self._backend.asked.set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._backend.asking -= 1
        self._backend.left.set()


class Backend:
    def __init__(self) -> None:
        self.let_out = trio.Event()
        self.let_out.set()
        self.asked, self.left = trio.Event(), trio.Event()
        self.asking = 0
        self.fails = False
        self.seen: list[Asked] = []

    async def models(self) -> Sequence[ModelCard]:
        return [ModelCard("us", 7), ModelCard("us:a b", 8)]

    async def answer(self, asked: Asked) -> Answering:
        self.seen.append(asked)
        if asked.model != "us":
            raise DeploymentUnknown(f"no deployment {asked.model!r} here", field="name")
        return Answering("us", cast(Completion, Spoken(self)))


@asynccontextmanager
async def opened(port: int = 0) -> AsyncIterator[tuple[Endpoint, Backend]]:
    backend = Backend()
    endpoint = Endpoint(backend, lambda: 1_700_000_000_000)
    async with trio.open_nursery() as nursery:
        await nursery.start(endpoint.run)
        await endpoint.open(port, TOKEN)
        yield endpoint, backend
        nursery.cancel_scope.cancel()


def client(endpoint: Endpoint, token: str = TOKEN) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{endpoint.port}",
        headers={"Authorization": f"Bearer {token}"},
        timeout=20,
        trust_env=False,
    )


async def test_a_whole_answer_and_the_models() -> None:
    async with opened() as (endpoint, backend), client(endpoint) as asking:
        answer = await asking.post("/v1/chat/completions", json=HELLO)
        assert answer.status_code == 200
        body = answer.json()
        choice = body.pop("choices")[0]
        assert choice["message"]["content"] == "zavo zi zan"
        assert choice["finish_reason"] == "stop"
        assert body.pop("id").startswith("chatcmpl-")
        assert body == {
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "us",
            "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
        }
        listed = (await asking.get("/v1/models")).json()
        assert [one["id"] for one in listed["data"]] == ["us", "us:a b"]
        assert (await asking.get("/v1/models/us%3Aa%20b")).json()["created"] == 8
        assert (await asking.get("/v1/models/them")).status_code == 404
        assert backend.seen[0].temperature == 0


async def test_an_answer_in_pieces() -> None:
    async with opened() as (endpoint, _), client(endpoint) as asking:
        wanted = {**HELLO, "stream": True, "stream_options": {"include_usage": True}}
        answer = await asking.post("/v1/chat/completions", json=wanted)
        assert answer.headers["content-type"] == "text/event-stream"
        events = answer.text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == "zavo zi zan"
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-1]["usage"]["total_tokens"] == 8
        assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_model_refuses_is_a_plain_error(stream: bool) -> None:
    async with opened() as (endpoint, backend), client(endpoint) as asking:
        backend.fails = True
        answer = await asking.post("/v1/chat/completions", json={**HELLO, "stream": stream})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "7009"
        unknown = await asking.post("/v1/chat/completions", json={**HELLO, "model": "them"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "7007")


async def test_a_client_that_leaves_ends_its_answer() -> None:
    async with opened() as (endpoint, backend):
        backend.let_out = trio.Event()  # nothing is ever said
        stream = await trio.open_tcp_stream("127.0.0.1", endpoint.port or 0)
        await stream.send_all(raw(endpoint, json.dumps(HELLO).encode()))
        await backend.asked.wait()
        assert backend.asking == 1
        await stream.aclose()
        await backend.left.wait()
        assert backend.asking == 0


async def test_two_requests_on_one_connection() -> None:
    async with opened() as (endpoint, backend):
        stream = await trio.open_tcp_stream("127.0.0.1", endpoint.port or 0)
        one = raw(endpoint, json.dumps(HELLO).encode())
        await stream.send_all(one + one)  # the second before the first is answered
        found = b""
        while found.count(b"chatcmpl-") < 2:
            found += await stream.receive_some(65_536)
        assert len(backend.seen) == 2


def raw(endpoint: Endpoint, body: bytes, head: str = "") -> bytes:
    lines = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{endpoint.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{head}\r\n"
    )
    return lines.encode() + body


# ---- who may ask ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer " + "é".encode().decode("latin-1")},
    ],
)
async def test_without_the_token_nothing_is_told(headers: dict[str, str]) -> None:
    async with opened() as (endpoint, backend):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{endpoint.port}", trust_env=False) as asking:
            for path in ("/v1/models", "/v1/nothing"):
                encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
                answer = await asking.get(path, headers=encoded)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
        assert backend.seen == []


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "evil.example:{port}", "[::1]:{port}"])
async def test_a_web_page_with_a_name_of_its_own_gets_nothing(host: str) -> None:
    async with opened() as (endpoint, _), client(endpoint) as asking:
        answer = await asking.get("/v1/models", headers={"Host": host.format(port=endpoint.port)})
        assert answer.status_code == 400
        assert (await asking.get("/v1/models", headers={"Host": f"localhost:{endpoint.port}"})).status_code == 200


async def test_no_page_of_another_origin_is_let_in() -> None:
    async with opened() as (endpoint, _), client(endpoint) as asking:
        before = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        asked = await asking.options("/v1/chat/completions", headers=before)
        assert asked.status_code == 405
        answer = await asking.get("/v1/models", headers={"Origin": "https://evil.example"})
        assert not [name for name in {**asked.headers, **answer.headers} if name.startswith("access-control")]


# ---- what may be asked ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "log-probabilities"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4097}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages"),
        ({"model": ""}, "model"),
        ({"temprature": 1}, "temprature"),
        ({"stop": ["a"] * 5}, "stop"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(EndpointRequestRefused, match=named):
        parse(json.dumps({**HELLO, **change}).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[" * 100_000, b'{"model": "\xff"}', b'{"model": NaN}'])
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(EndpointRequestRefused):
        parse(body)


def test_what_is_taken() -> None:
    asked = parse(
        json.dumps(
            {
                **HELLO,
                "messages": [
                    {"role": "developer", "content": "be brief"},
                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                ],
                "max_completion_tokens": 9,
                "stop": "\n",
                "seed": 3,
                "top_p": 0.5,
                "user": "someone",
                "n": 1,
                "logprobs": False,
                "presence_penalty": 0,
            }
        ).encode()
    )
    assert asked.messages == (Message("system", "be brief"), Message("user", "ab"))
    assert asked.max_tokens == 9
    assert (asked.sampling.stop, asked.sampling.seed, asked.sampling.top_p) == (("\n",), 3, 0.5)


# ---- the port and the token ----------------------------------------------------------------------------------------


async def test_opening_closing_and_a_taken_port() -> None:
    async with opened() as (endpoint, _):
        port = endpoint.port
        other = Endpoint(Backend(), lambda: 0)
        with pytest.raises(EndpointNotOpened):  # it doesn't run
            await other.open(0, TOKEN)
        async with trio.open_nursery() as nursery:
            await nursery.start(other.run)
            with pytest.raises(EndpointNotOpened, match="is taken"):
                await other.open(port or 0, TOKEN)
            nursery.cancel_scope.cancel()
        assert await endpoint.open(port or 0, "another-token-entirely") == port  # its own port again
        async with client(endpoint) as asking:
            assert (await asking.get("/v1/models")).status_code == 401
        assert await endpoint.close()
        assert not await endpoint.close()
        with pytest.raises(OSError, match="all attempts"):
            await trio.open_tcp_stream("127.0.0.1", port or 0)


def test_the_token_is_made_once_and_for_one_user(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = read_or_make(path)
    assert len(token) >= 40
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_or_make(path) == token
    path.chmod(0o644)
    with pytest.raises(TokenFileRefused, match="you alone"):
        read_or_make(path)


@pytest.mark.parametrize("text", ["", "short", "two words of a long text", "x" * 600])
def test_a_file_without_a_token(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(TokenFileRefused, match="holds no token"):
        read_or_make(path)
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for other in ("link", "pipe", ".", "nowhere/token"):
        with pytest.raises(TokenFileRefused):
            read_or_make(tmp_path / other)


# ---- attacks -------------------------------------------------------------------------------------------------------


async def garbage(data: bytes, *, more: bytes = b"") -> bytes:
    """What a connection says to bytes that come in one piece, and then to `more`, again and again."""
    backend = Backend()
    endpoint = Endpoint(backend, lambda: 0)
    endpoint.port, endpoint._token = 1, TOKEN.encode()
    here, there = trio.testing.memory_stream_pair()
    said = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(endpoint.serve, there)
        try:
            await here.send_all(data)
            while more:
                await trio.sleep(1)
                await here.send_all(more)
        except trio.BrokenResourceError:
            pass
        while piece := await here.receive_some(65_536):
            said += piece
    assert backend.seen == []
    return said


HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:1\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
JSON = HEAD + b"Content-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400),
        (HEAD + b"Host: evil\r\n\r\n", 400),
        (HEAD + b"Authorization: Bearer x\r\n\r\n", 401),
        (JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (JSON + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n", 400),
        (JSON + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (JSON + b"Content-Length: 4\r\n\r\nnull", 400),
        (JSON + b"Content-Length: 9999999\r\n\r\n" + b"x" * ((1 << 20) + 1), 413),
        (HEAD + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"GET / HTTP/1.1\r\nHost: " + b"a" * 20_000, 431),
        (b"GET /" + b"a" * 20_000, 431),
        (b"".join(b"X-%d: y\r\n" % n for n in range(3_000)), 431),
    ],
    ids=range(18),
)
async def test_garbage_gets_a_status_and_is_hung_up_on(data: bytes, status: int) -> None:
    said = await garbage(data)
    assert said.startswith(b"HTTP/1.1 %d " % status), said[:80]


async def test_a_connection_that_leaves_at_once_or_in_the_middle() -> None:
    for data in (b"", b"POST /v1/ch", JSON + b"Content-Length: 10\r\n\r\n{"):
        backend = Backend()
        endpoint = Endpoint(backend, lambda: 0)
        endpoint.port, endpoint._token = 1, TOKEN.encode()
        here, there = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(endpoint.serve, there)
            if data:
                await here.send_all(data)
            await here.aclose()
        assert backend.seen == []


async def test_a_slow_head(autojump_clock: trio.testing.MockClock) -> None:
    """A byte a second is given HEAD_SECONDS, not for ever."""
    assert (await garbage(b"GET / HT", more=b"a")).startswith(b"HTTP/1.1 408 ")
    assert http.HEAD_SECONDS <= trio.current_time() <= http.HEAD_SECONDS + 5


async def test_a_silent_connection(autojump_clock: trio.testing.MockClock) -> None:
    assert await garbage(b"") == b""


async def test_a_slow_body(autojump_clock: trio.testing.MockClock) -> None:
    said = await garbage(JSON + b"Content-Length: 1000000\r\n\r\n", more=b"x")
    assert said.startswith(b"HTTP/1.1 408 ")
    assert trio.current_time() <= http.BODY_SECONDS + 5


async def test_a_client_that_takes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """Its answer ends; else it would hold a place in the model's line."""
    backend = Backend()
    endpoint = Endpoint(backend, lambda: 0)
    endpoint.port, endpoint._token = 1, TOKEN.encode()
    here, there = trio.testing.lockstep_stream_pair()  # nothing is sent before it is received
    async with trio.open_nursery() as nursery:
        nursery.start_soon(endpoint.serve, there)
        body = json.dumps({**HELLO, "stream": True}).encode()
        await here.send_all(JSON + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert backend.asking == 0
    assert trio.current_time() >= http.SEND_SECONDS


async def test_a_hundred_at_once() -> None:
    async with opened() as (endpoint, backend):
        statuses: list[int] = []

        async def ask() -> None:
            async with client(endpoint) as asking:
                statuses.append((await asking.post("/v1/chat/completions", json=HELLO)).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(ask)
        assert statuses == [200] * 100
        assert len(backend.seen) == 100


async def test_more_than_there_is_room_for() -> None:
    """The next one is told so, and when the others have left there is room again."""
    async with opened() as (endpoint, _):
        port = endpoint.port or 0
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(CONNECTIONS)]
        async with client(endpoint) as asking:
            assert (await asking.get("/v1/models")).status_code == 503
        for stream in silent:
            await stream.aclose()
        async with client(endpoint) as asking:
            while (await asking.get("/v1/models")).status_code == 503:
                await trio.testing.wait_all_tasks_blocked()
