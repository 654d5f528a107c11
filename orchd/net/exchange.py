"""`/orchd/exchange/1` over libp2p streams: questions to peers, and answers to theirs.

A stream carries any number of questions, answered one after the other; whoever asks need not wait for one answer to
put the next question, and closes the stream (`asking.py`). Every answer has a time limit; a peer that asks too much is
told `busy`.
`docs/SPEC-exchange.md` is the protocol for other implementations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, MutableSet
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import trio
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID

from orchd.errors import OrchdError, PeerBusy, PeerMisbehaved, PeerRefused, PeerTimeout, PeerUnreachable
from orchd.net import messages
from orchd.net.host import READ_SIZE, WRITE_SIZE
from orchd.net.messages import Failed, Frames, Reply, Request
from orchd.net.policy.rates import Bucket
from orchd.net.policy.scores import Floods
from orchd.net.policy.unfinished import Unfinished

log = logging.getLogger(__name__)

#: Seconds: for a small answer, and until a whole answer has been read.
ANSWER_TIMEOUT_S, READ_TIMEOUT_S = 20.0, 60.0
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
        self.stream = stream
        self._frames = Frames(limit)
        self._waits = waits or _any_number
        #: Answers that have not come yet, and bytes that follow the last one that has.
        self._owed = self._owed_bytes = 0

    @property
    def is_at_rest(self) -> bool:
        """Whether every question was answered to its end, and the other side has not ended the stream."""
        muxed = self.stream.muxed_stream
        ended = muxed.closed or muxed.send_closed or muxed.recv_closed or muxed.conn.is_closed
        return not (self._owed or self._owed_bytes or self._frames.waiting or ended)

    def is_on(self, connection: Any) -> bool:
        return self.stream.muxed_conn is connection.muxed_conn

    async def close(self) -> None:
        await _end(self.stream.close)

    async def reset(self) -> None:
        await _end(self.stream.reset)

    async def ask(self, request: Request, wanted: type[R], timeout_s: float = ANSWER_TIMEOUT_S) -> R:
        """The answer. Raises `PeerTimeout`, `PeerBusy`, `PeerRefused` or `PeerMisbehaved`."""
        with self._within(timeout_s):
            await self.question(request)
        return await self.reply(wanted, timeout_s)

    async def question(self, request: Request) -> None:
        """Put a question; `reply` gives the answer."""
        self._owed += 1
        await self.send(request)

    async def reply(self, wanted: type[R], timeout_s: float = ANSWER_TIMEOUT_S) -> R:
        """The answer to the question that was put first of those that have none. Raises as `ask`."""
        with self._within(timeout_s):
            body = await self.receive()
        if body is None:
            raise PeerRefused(f"{self.peer} closed the stream instead of answering")
        reply = messages.decode_reply(body)
        self._owed -= 1
        if isinstance(reply, Failed):
            raise messages.refusal(self.peer, reply)
        if not isinstance(reply, wanted):
            raise PeerMisbehaved(f"{self.peer} answered with another kind of message")
        if isinstance(reply, messages.Range):
            self._owed_bytes += reply.length
        return reply

    async def raw(self, most: int, timeout_s: float) -> bytes:
        """Some of the bytes that follow a frame, one at least. Raises `PeerTimeout` or `PeerUnreachable`."""
        if not self._frames.waiting:
            with self._within(timeout_s):
                data = await self._read()
            if not data:
                raise PeerUnreachable(f"{self.peer} ended within an answer")
            if len(data) <= most:
                self._owed_bytes -= len(data)
                return data
            self._frames.feed(data)
        taken = self._frames.take(most)
        self._owed_bytes -= len(taken)
        return taken

    async def send(self, message: Request | Reply) -> None:
        await self.write(memoryview(messages.encode(message)))

    async def write(self, data: memoryview) -> None:
        try:
            for start in range(0, len(data), WRITE_SIZE):
                await self.stream.write(bytes(data[start : start + WRITE_SIZE]))
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
            data: bytes = await self.stream.read(READ_SIZE)
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


async def _end(how: Any) -> None:
    with trio.CancelScope(shield=True), trio.move_on_after(1.0):
        try:
            await how()
        except Exception as error:
            log.debug("ending a stream: %r", error)


class Server:
    """Answers peers' questions, within limits. Streams on which none is open are put into `idle`."""

    def __init__(self, answers: Answers, idle: MutableSet[Any]) -> None:
        self._answers, self._idle = answers, idle
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
            await self._handle(Channel(stream, messages.REQUEST_LIMIT, waits))
        finally:
            waits(0)

    async def _handle(self, channel: Channel) -> None:
        try:
            await self._serve(channel)
        except PeerMisbehaved as error:
            log.info("%s: %s", channel.peer, error)
            with trio.move_on_after(1.0):
                await channel.send(Failed(reason=messages.MALFORMED))
            await channel.reset()
            self._answers.misbehaved(channel.peer, error)
        except (PeerUnreachable, PeerBusy) as error:
            log.info("%s", error)
            await channel.reset()
        else:
            await channel.close()

    async def _serve(self, channel: Channel) -> None:
        while True:
            body = None
            self._idle.add(channel.stream)
            with trio.move_on_after(IDLE_S):
                body = await channel.receive()
            self._idle.discard(channel.stream)
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
