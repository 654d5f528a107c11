"""`/orchd/exchange/1` over libp2p streams: questions to peers, and answers to theirs.

A stream carries any number of questions, one at a time, each with its answer. Whoever asked closes it. Every question
has a time limit; a peer that asks too much is told `busy`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import trio
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID

from orchd.errors import OrchdError, PeerMisbehaved, PeerRefused, PeerTimeout, PeerUnreachable
from orchd.net import messages
from orchd.net.host import READ_SIZE, WRITE_SIZE, Host
from orchd.net.messages import PROTOCOL, Failed, Frames, Reply, Request

log = logging.getLogger(__name__)

#: Seconds: to open a stream, for a small answer, for a megabyte.
OPEN_TIMEOUT_S, ANSWER_TIMEOUT_S, RANGE_TIMEOUT_S = 15.0, 20.0, 60.0
#: What is cancelled while a stream is being opened waits so long for it, in seconds.
GRACE_S = 0.5
#: An idle stream is closed after this many seconds.
IDLE_S = 60.0
#: Questions a second that one peer may ask, and how many at once after a silence.
QUESTIONS_RATE, QUESTIONS_BURST = 200.0, 400.0

R = TypeVar("R")


class Answers(Protocol):
    """Whoever knows the answers."""

    async def answer(self, peer: ID, request: Request) -> Reply: ...


class Channel:
    """Frames over one stream. `limit`: bytes of the largest frame that is read."""

    def __init__(self, stream: Any, limit: int) -> None:
        self.peer: ID = stream.muxed_conn.peer_id
        self._stream = stream
        self._frames = Frames(limit)

    async def ask(self, request: Request, wanted: type[R], timeout_s: float = ANSWER_TIMEOUT_S) -> R:
        """The answer. Raises `PeerTimeout`, `PeerRefused` or `PeerMisbehaved`."""
        try:
            with trio.fail_after(timeout_s):
                await self.send(request)
                body = await self.receive()
        except trio.TooSlowError:
            raise PeerTimeout(f"{self.peer} did not answer within {timeout_s:.0f} s") from None
        if body is None:
            raise PeerRefused(f"{self.peer} closed the stream instead of answering")
        reply = messages.decode_reply(body)
        if isinstance(reply, Failed):
            raise PeerRefused(f"{self.peer} answers: {reply.reason}")
        if not isinstance(reply, wanted):
            raise PeerMisbehaved(f"{self.peer} answered with another kind of message")
        return reply

    async def send(self, message: Request | Reply) -> None:
        view = memoryview(messages.encode(message))
        try:
            for start in range(0, len(view), WRITE_SIZE):
                await self._stream.write(bytes(view[start : start + WRITE_SIZE]))
        except Exception as error:
            raise PeerUnreachable(f"{self.peer} is gone: {error}") from None

    async def receive(self) -> bytes | None:
        """The next frame's body, None at the end. Raises `PeerMisbehaved` or `PeerUnreachable`."""
        while (body := self._frames.next()) is None:
            try:
                data = await self._stream.read(READ_SIZE)
            except StreamEOF:
                data = b""
            except Exception as error:
                raise PeerUnreachable(f"{self.peer} is gone: {error}") from None
            if not data:
                if self._frames.waiting:
                    raise PeerMisbehaved(f"{self.peer} ended within a frame")
                return None
            self._frames.feed(data)
        return body


@asynccontextmanager
async def open_channel(host: Host, peer: ID) -> AsyncIterator[Channel]:
    """A channel to a connected peer, for questions. Raises `PeerUnreachable` or `PeerTimeout`."""
    if not host.connected(peer):
        raise PeerUnreachable(f"{peer} is not connected")
    stream = await _open(host, peer)
    try:
        yield Channel(stream, messages.REPLY_LIMIT)
    except BaseException:
        await _end(stream.reset)
        raise
    await _end(stream.close)


async def _open(host: Host, peer: ID) -> Any:
    """A stream whose opening is cancelled stays open on the other side: give it `GRACE_S` to become whole first."""
    opened: list[Any] = []
    failures: list[Exception] = []
    done = trio.Event()

    async def open_it() -> None:
        with patience:
            try:
                opened.append(await host.basic.new_stream(peer, [TProtocol(PROTOCOL)]))
            except Exception as error:
                failures.append(error)
        done.set()

    patience = trio.CancelScope(shield=True, deadline=trio.current_time() + OPEN_TIMEOUT_S)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_it)
            try:
                await done.wait()
            except trio.Cancelled:
                patience.deadline = min(patience.deadline, trio.current_time() + GRACE_S)
                raise
    except BaseException:
        if opened:
            await _end(opened[0].reset)
        raise
    if failures:
        raise PeerUnreachable(f"{peer} opens no stream: {failures[0]}")
    if not opened:
        raise PeerTimeout(f"{peer} opened no stream within {OPEN_TIMEOUT_S:.0f} s")
    return opened[0]


async def _end(how: Any) -> None:
    with trio.CancelScope(shield=True), trio.move_on_after(1.0):
        try:
            await how()
        except Exception as error:
            log.debug("ending a stream: %r", error)


async def ask(host: Host, peer: ID, request: Request, wanted: type[R], timeout_s: float = ANSWER_TIMEOUT_S) -> R:
    """One question on a stream of its own."""
    async with open_channel(host, peer) as channel:
        return await channel.ask(request, wanted, timeout_s)


class Server:
    """Answers peers' questions, within limits."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._buckets: dict[ID, Bucket] = {}

    async def handle(self, stream: Any) -> None:
        """The stream handler."""
        channel = Channel(stream, messages.REQUEST_LIMIT)
        try:
            await self._serve(channel)
        except PeerMisbehaved as error:
            log.info("%s: %s", channel.peer, error)
            with trio.move_on_after(1.0):
                await channel.send(Failed(reason=messages.MALFORMED))
            await stream.reset()
        except PeerUnreachable:
            await stream.reset()
        else:
            await stream.close()

    async def _serve(self, channel: Channel) -> None:
        while True:
            body = None
            with trio.move_on_after(IDLE_S):
                body = await channel.receive()
            if body is None:
                return
            request = messages.decode_request(body)
            reply = await self._answer(channel.peer, request)
            with trio.move_on_after(RANGE_TIMEOUT_S) as scope:
                await channel.send(reply)
            if scope.cancelled_caught:
                raise PeerUnreachable(f"{channel.peer} does not read")

    async def _answer(self, peer: ID, request: Request) -> Reply:
        if not self._bucket(peer).take(trio.current_time()):
            return Failed(reason=messages.BUSY)
        try:
            return await self._answers.answer(peer, request)
        except PeerMisbehaved:
            raise
        except OrchdError as error:
            log.info("%s asked: %s", peer, error)
            return Failed(reason=messages.BROKEN)

    def _bucket(self, peer: ID) -> Bucket:
        return self._buckets.setdefault(peer, Bucket(QUESTIONS_RATE, QUESTIONS_BURST, trio.current_time()))

    def forget(self, peer: ID) -> None:
        self._buckets.pop(peer, None)


class Bucket:
    """Tokens that come back at `rate` a second, up to `burst`. Pure: the time in seconds is an argument."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, now

    def take(self, now: float, count: float = 1.0) -> bool:
        """Take `count` tokens if there are as many."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < count:
            return False
        self._tokens -= count
        return True
