"""`/orchd/exchange/1` over libp2p streams: questions to peers, and answers to theirs.

A stream carries any number of questions, answered one after the other; whoever asks need not wait for one answer to
put the next question, and closes the stream. Every answer has a time limit; a peer that asks too much is told `busy`.
`docs/SPEC-exchange.md` is the protocol for other implementations.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeVar

import trio
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID

from orchd.errors import OrchdError, PeerBusy, PeerMisbehaved, PeerRefused, PeerTimeout, PeerUnreachable
from orchd.net import messages
from orchd.net.host import READ_SIZE, WRITE_SIZE, Host
from orchd.net.messages import PROTOCOL, Failed, Frames, Reply, Request
from orchd.net.policy.rates import Bucket
from orchd.net.policy.scores import Floods
from orchd.net.policy.unfinished import Unfinished

log = logging.getLogger(__name__)

#: Seconds: to open a stream, for a small answer, and until a whole answer has been read.
OPEN_TIMEOUT_S, ANSWER_TIMEOUT_S, READ_TIMEOUT_S = 15.0, 20.0, 60.0
#: What is cancelled while a stream is being opened waits so long for it, in seconds.
GRACE_S = 0.5
#: An idle stream is closed after this many seconds.
IDLE_S = 60.0
#: Questions a second that one peer may ask, and how many at once after a silence.
QUESTIONS_RATE, QUESTIONS_BURST = 200.0, 400.0
#: Questions a second that may be put in spite of `busy`, and at once; who goes on beyond that floods.
REFUSED_RATE, REFUSED_BURST = 20.0, 200.0

R = TypeVar("R")


class Streamed(Protocol):
    """An answer that sends itself, because it is more than one frame. It keeps its own time."""

    async def send(self, channel: Channel) -> None: ...


class Answers(Protocol):
    """Whoever knows the answers."""

    async def answer(self, peer: ID, request: Request) -> Reply | Streamed: ...

    def misbehaved(self, peer: ID, error: PeerMisbehaved) -> None:
        """It sent what the protocol does not allow."""

    def flooded(self, peer: ID) -> None:
        """It goes on asking, however often it is told to wait."""


class Channel:
    """Frames over one stream. `limit`: bytes of the largest frame that is read; `waits` is told how many bytes of
    frames wait here, and says whether they may."""

    def __init__(self, stream: Any, limit: int, waits: Callable[[int], bool] | None = None) -> None:
        self.peer: ID = stream.muxed_conn.peer_id
        self._stream = stream
        self._frames = Frames(limit)
        self._waits = waits or _any_number

    async def ask(self, request: Request, wanted: type[R], timeout_s: float = ANSWER_TIMEOUT_S) -> R:
        """The answer. Raises `PeerTimeout`, `PeerBusy`, `PeerRefused` or `PeerMisbehaved`."""
        with self._within(timeout_s):
            await self.send(request)
        return await self.reply(wanted, timeout_s)

    async def reply(self, wanted: type[R], timeout_s: float = ANSWER_TIMEOUT_S) -> R:
        """The answer to the question that was put first of those that have none. Raises as `ask`."""
        with self._within(timeout_s):
            body = await self.receive()
        if body is None:
            raise PeerRefused(f"{self.peer} closed the stream instead of answering")
        reply = messages.decode_reply(body)
        if isinstance(reply, Failed):
            raise messages.refusal(self.peer, reply.reason)
        if not isinstance(reply, wanted):
            raise PeerMisbehaved(f"{self.peer} answered with another kind of message")
        return reply

    async def raw(self, most: int, timeout_s: float) -> bytes:
        """Some of the bytes that follow a frame, one at least. Raises `PeerTimeout` or `PeerUnreachable`."""
        if self._frames.waiting:
            return self._frames.take(most)
        with self._within(timeout_s):
            data = await self._read()
        if not data:
            raise PeerUnreachable(f"{self.peer} ended within an answer")
        if len(data) <= most:
            return data
        self._frames.feed(data)
        return self._frames.take(most)

    async def send(self, message: Request | Reply) -> None:
        await self.write(memoryview(messages.encode(message)))

    async def write(self, data: memoryview) -> None:
        try:
            for start in range(0, len(data), WRITE_SIZE):
                await self._stream.write(bytes(data[start : start + WRITE_SIZE]))
        except Exception as error:
            raise PeerUnreachable(f"{self.peer} is gone: {error}") from None

    async def receive(self) -> bytes | None:
        """The next frame's body, None at the end. Raises `PeerMisbehaved`, `PeerUnreachable` or `PeerBusy`."""
        while (body := self._frames.next()) is None:
            data = await self._read()
            if not data:
                if self._frames.waiting:
                    raise PeerMisbehaved(f"{self.peer} ended within a frame")
                return None
            self._frames.feed(data)
            if not self._waits(self._frames.waiting):
                raise PeerBusy(f"{self.peer} has begun too many questions that it does not end")
        self._waits(self._frames.waiting)
        return body

    async def _read(self) -> bytes:
        """Whatever has come, nothing at the end."""
        try:
            data: bytes = await self._stream.read(READ_SIZE)
        except StreamEOF:
            return b""
        except Exception as error:
            raise PeerUnreachable(f"{self.peer} is gone: {error}") from None
        return data

    @contextmanager
    def _within(self, timeout_s: float) -> Iterator[None]:
        try:
            with trio.fail_after(timeout_s):
                yield
        except trio.TooSlowError:
            raise PeerTimeout(f"{self.peer} did not answer within {timeout_s:.0f} s") from None


def _any_number(count: int) -> bool:
    return True


@asynccontextmanager
async def open_channel(host: Host, peer: ID) -> AsyncIterator[Channel]:
    """A channel to a connected peer, for questions. Raises `PeerUnreachable` or `PeerTimeout`."""
    if not host.connected(peer):
        raise PeerUnreachable(f"{peer} is not connected")
    host.opening[peer] += 1
    try:
        stream = await _open(host, peer)
    finally:
        host.opening[peer] -= 1
        if not host.opening[peer]:
            del host.opening[peer]
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
        self._floods: Floods[ID] = Floods(REFUSED_RATE, REFUSED_BURST)
        self._unfinished: Unfinished[ID] = Unfinished()

    async def handle(self, stream: Any) -> None:
        """The stream handler."""
        peer, waiting = stream.muxed_conn.peer_id, 0

        def waits(count: int) -> bool:
            nonlocal waiting
            more, waiting = count - waiting, count
            return self._unfinished.change(peer, more)

        try:
            await self._handle(stream, Channel(stream, messages.REQUEST_LIMIT, waits))
        finally:
            waits(0)

    async def _handle(self, stream: Any, channel: Channel) -> None:
        try:
            await self._serve(channel)
        except PeerMisbehaved as error:
            log.info("%s: %s", channel.peer, error)
            with trio.move_on_after(1.0):
                await channel.send(Failed(reason=messages.MALFORMED))
            await stream.reset()
            self._answers.misbehaved(channel.peer, error)
        except (PeerUnreachable, PeerBusy) as error:
            log.info("%s", error)
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
            if not isinstance(reply, Reply):
                await reply.send(channel)
                continue
            with trio.move_on_after(READ_TIMEOUT_S) as scope:
                await channel.send(reply)
            if scope.cancelled_caught:
                raise PeerUnreachable(f"{channel.peer} does not read")

    async def _answer(self, peer: ID, request: Request) -> Reply | Streamed:
        if not self._bucket(peer).take(trio.current_time()):
            return self._busy(peer)
        try:
            answer = await self._answers.answer(peer, request)
            return self._busy(peer) if answer == Failed(reason=messages.BUSY) else answer
        except PeerMisbehaved:
            raise
        except OrchdError as error:
            log.info("%s asked: %s", peer, error)
            return Failed(reason=messages.BROKEN)

    def _busy(self, peer: ID) -> Failed:
        if self._floods.refused(peer, trio.current_time()):
            self._answers.flooded(peer)
        return Failed(reason=messages.BUSY)

    def _bucket(self, peer: ID) -> Bucket:
        return self._buckets.setdefault(peer, Bucket(QUESTIONS_RATE, QUESTIONS_BURST, trio.current_time()))

    def forget(self, peer: ID) -> None:
        self._buckets.pop(peer, None)
