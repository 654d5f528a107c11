"""One adapter's files from several peers at once, every chunk verified before it is written.

The chunk hashes come from the verified manifest, so a peer can only lie about bytes, and is found out at the first
chunk. Who brings what is planned by `policy/plan.py`; what has come is kept by `partial.py`.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial as partial_call

import trio
from libp2p.peer.id import ID

from orchd.errors import (
    DigestMismatch,
    DiskFull,
    NoProvider,
    OrchdError,
    PeerBusy,
    PeerMisbehaved,
    PeerQuota,
    PeerRefused,
    PeerTimeout,
    PeerUnreachable,
)
from orchd.net import bulk
from orchd.net.bulk import Line
from orchd.net.exchange import Channel
from orchd.net.messages import BulkAt, GetRange, OpenBulk, Range
from orchd.net.partial import Partial
from orchd.net.policy.plan import ASK_MAX, Plan, Span
from orchd.net.policy.rates import Pace
from orchd.net.providers import Search
from orchd.records import Manifest, Verified, text_id
from orchd.records.ids import ADAPTER

log = logging.getLogger(__name__)

#: Peers that are asked at once.
PEERS = 8
#: For fewer bytes a bulk channel is not worth its opening. In its thread, the plan is told this often, in seconds.
BULK_LEAST, TELL_S = 2 << 20, 0.25
#: Of an answer over a stream, so many bytes are verified and written at once: each time costs two changes of thread.
TOGETHER = 256 << 10
#: So many bulk channels are opened at once: each keeps two threads busy, one that receives and one that verifies and
#: writes. Another is opened when these bring fewer bytes a second: more is beyond most networks, so that it is this
#: machine that can't take in more, and others would be in their way. Seconds between two looks, and how many looks
#: until something has to have come.
LINES, ENOUGH, ENOUGH_LOOK_S, ENOUGH_LOOKS = max(1, (os.cpu_count() or 1) // 2), 150e6, 0.05, 20
#: A peer that brings nothing so many times is given up; one that is busy so many times.
PATIENCE, PATIENCE_BUSY = 3, 20
#: Nothing for so many seconds, when something was asked for, is such a time.
SILENCE_S = 30.0
#: Pauses in seconds: before a busy peer is asked again, and before an idle one looks whether others are slow.
BUSY_PAUSE_S, IDLE_PAUSE_S = 0.5, 0.25
#: A peer whose quota is used up is waited for as long altogether: after that it brings nothing more to this fetch. One
#: that does not say when it gives again is asked after so many seconds. Seconds.
PATIENCE_QUOTA_S, QUOTA_PAUSE_S = 60.0, 15.0
#: Under a limit, one question asks for what may come in so many seconds.
ASK_S = 1.0

OpenChannel = Callable[[ID], AbstractAsyncContextManager[Channel]]


@dataclass(frozen=True)
class Transferred:
    """How far a fetch is: bytes done and in all (what was here before counts as done), how many peers bring some now,
    and bytes a second. `waits`: while nobody brings any, why a peer does not."""

    done: int
    total: int
    peers: int = 0
    rate: float = 0.0
    waits: str = ""


Progress = Callable[[Transferred], None]


@dataclass(frozen=True)
class Part:
    """Of an answer: the chunks that are good and kept, bytes that came, and how many of them in whole chunks (the last
    one of a file counts like the others)."""

    good: Span
    heard: int
    whole: int


class _Keeping:
    """The chunks of an answer on their way to the disk, `AT_ONCE` at most, in buffers that are used again.

    `put` is called in the pool with the number of a chunk and its bytes, and says whether it is kept.
    """

    AT_ONCE = 3

    def __init__(self, pool: ThreadPoolExecutor, put: Callable[[int, memoryview], int], span: Span, size: int) -> None:
        self._pool, self._put, self._span, self._size = pool, put, span, size
        self._free: list[memoryview] = []
        self._under_way: deque[tuple[memoryview, Future[int]]] = deque()
        self._told = self._good = self._next = span.first
        self._current: memoryview | None = None
        #: Bytes that came and were not told yet; and whether some were not what the author signed.
        self.heard = 0
        self.is_bad = False

    def buffer(self, size: int) -> memoryview:
        """The one that is being filled, of so many bytes."""
        if self._current is None:
            if len(self._under_way) >= self.AT_ONCE:
                self._settle()
            self._current = self._free.pop() if self._free else memoryview(bytearray(self._size))
        return self._current[:size]

    def keep(self, full: memoryview) -> None:
        assert self._current is not None
        self._under_way.append((self._current, self._pool.submit(self._put, self._next, full)))
        self._next, self._current = self._next + 1, None

    def told(self, *, wait: bool = False) -> Part:
        """What came and is kept since this was asked last, `wait`: of everything. Raises what keeping raised."""
        while self._under_way and (wait or self._under_way[0][1].done()):
            self._settle()
        good = Span(self._span.file, self._told, self._good - self._told)
        part = Part(good, self.heard, (good.count + self.is_bad) * self._size)
        self._told, self.heard = self._good, 0
        return part

    def _settle(self) -> None:
        buffer, future = self._under_way.popleft()
        if future.result() and not self.is_bad:
            self._good += 1
        else:
            self.is_bad = True
        self._free.append(buffer)


class Download:
    """One download into `partial`. `refused` is told of each peer that lied.

    `bulk_host` gives the address of a peer that may be reached beside libp2p, None for others.
    """

    def __init__(
        self,
        manifest: Verified[Manifest],
        plan: Plan[ID],
        partial: Partial,
        open_channel: OpenChannel,
        pace: Pace,
        progress: Progress,
        refused: Callable[[ID, OrchdError], None],
        bulk_host: Callable[[ID], str | None],
        count: Callable[[str, int], None],
    ) -> None:
        self._adapter, self._entries = manifest.digest, manifest.record.files
        self._total = manifest.record.size
        self._plan, self._partial, self._pace = plan, partial, pace
        self._open_channel = open_channel
        self._progress, self._refused, self._bulk_host = progress, refused, bulk_host
        self._count, self._no_bulk = count, set[ID]()
        #: The bulk channels that are used; None for one that is being opened.
        self._lines: dict[ID, Line | None] = {}
        self._changed = trio.Event()
        self._failures: list[OrchdError] = []
        #: Who brings something now, and how many good chunks each has brought.
        self._bringing: set[ID] = set()
        self._brought: dict[ID, int] = {}
        #: Who is busy, or has given its share, and what it says.
        self._busy: dict[ID, str] = {}
        #: How many seconds a peer whose quota is used up was waited for.
        self._quotas: dict[ID, float] = {}

    async def run(self, providers: Search) -> None:
        """Fetch what is missing. Raises the worst of what the peers did when none is left."""
        self._tell()
        if not self._plan.left:
            return
        async with trio.open_nursery() as nursery:
            self._everybody = nursery.cancel_scope
            nursery.start_soon(providers.go_on)
            for _ in range(PEERS):
                nursery.start_soon(self._work, providers)
        if self._plan.left:
            raise self._verdict()

    def _verdict(self) -> OrchdError:
        for worst in (DiskFull, DigestMismatch, PeerQuota, OrchdError):
            for error in self._failures:
                if isinstance(error, worst):
                    return (
                        self._going_on(error) if isinstance(error, PeerQuota | PeerTimeout | PeerUnreachable) else error
                    )
        return NoProvider("nobody is left to fetch it from")

    def _going_on(self, error: OrchdError) -> OrchdError:
        """The same error; what came is not lost, and its hint says how the rest comes."""
        here = f"{(self._total - self._plan.left) / 1e6:.1f} of {self._total / 1e6:.1f} MB are here"
        id = text_id(ADAPTER, self._adapter)
        hint = f"`orchctl adapter fetch {id}` goes on from there later; other peers that have it are asked then, too."
        return type(error)(f"{error.message}; {here}, and nobody else gives the rest", hint=hint)

    async def _work(self, providers: Search) -> None:
        """One peer after the other, until everything is here."""
        while self._plan.left and (peer := await providers.next()) is not None:
            again = True
            try:
                await self._work_with(peer)
            except (DigestMismatch, PeerMisbehaved) as error:
                again = False
                self._failures.append(error)
                self._refused(peer, error)
            except PeerQuota:
                again = False  # in this fetch
            except DiskFull as error:
                self._failures.append(error)
                self._everybody.cancel()
            finally:
                providers.done(peer, again=again)

    async def _work_with(self, peer: ID) -> None:
        """Until everything is here, or the peer has brought nothing too often."""
        failures = busy = 0
        while self._plan.left and failures < PATIENCE and busy < PATIENCE_BUSY:
            before = self._brought.get(peer, 0)
            try:
                async with self._open_channel(peer) as channel:
                    line = await self._open_line(channel)
                    if line is None:
                        await self._bring(channel)
                if line is not None:
                    await self._bring_in_bulk(*line)
                continue
            except (DigestMismatch, PeerMisbehaved, DiskFull):
                raise
            except PeerQuota as error:
                self._failures = [*(one for one in self._failures if not isinstance(one, PeerQuota)), error]
                await self._wait_for_more(peer, error)
                continue
            except PeerBusy as error:
                busy = 1 if self._brought.get(peer, 0) > before else busy + 1
                self._failures.append(error)
                if self._busy.get(peer) != error.message:
                    log.info("%s", error)
                self._busy[peer] = error.message
            except OrchdError as error:
                failures = 1 if self._brought.get(peer, 0) > before else failures + 1
                self._failures.append(error)
            finally:
                self._let_go(peer)
            if busy:
                self._tell()
            await trio.sleep(BUSY_PAUSE_S * min(busy, 8))

    async def _wait_for_more(self, peer: ID, error: PeerQuota) -> None:
        """Until a peer whose quota is used up gives a chunk again. Raises `error` when that is too long."""
        if peer not in self._quotas:  # it may still give less than it was asked for
            self._quotas[peer] = 0.0
            return
        seconds = error.after_s or QUOTA_PAUSE_S
        waited = self._quotas[peer] + seconds
        error.message = f"{error.message}; {_when(error.after_s)}"
        if waited > PATIENCE_QUOTA_S:
            raise error
        self._quotas[peer] = waited
        self._busy[peer] = error.message
        self._let_go(peer)
        self._tell()
        await trio.sleep(seconds)

    # ---- over a stream ------------------------------------------------------------------------------------------

    async def _bring(self, channel: Channel) -> None:
        """Ask for spans and take what comes, some asked for ahead."""
        asked: deque[Span] = deque()
        while (spans := await self._more_for(channel.peer, bool(asked))) is not None:
            for span in spans:
                await channel.question(self._question(span))
            asked.extend(spans)
            await self._receive(channel, asked.popleft())

    async def _receive(self, channel: Channel, span: Span) -> None:
        """One answer, chunk by chunk."""
        left = self._check(channel.peer, span, await channel.reply(Range, SILENCE_S))
        waiting, chunk, size = bytearray(), span.first, self._entries[span.file].chunk_size
        while left:
            data = await channel.raw(left, SILENCE_S)
            left -= len(data)
            waiting += data
            whole, good = len(waiting), 0
            if left:
                whole = len(waiting) - len(waiting) % size if len(waiting) >= TOGETHER else 0
            if whole:
                view = memoryview(bytes(memoryview(waiting)[:whole]))
                good = await trio.to_thread.run_sync(self._partial.put, span.file, chunk, view)
                del waiting[:whole]
            self._arrived(channel.peer, Part(Span(span.file, chunk, good), len(data), whole))
            chunk += good
        self._plan.finished(channel.peer, span, trio.current_time())

    # ---- in bulk ------------------------------------------------------------------------------------------------

    async def _open_line(self, channel: Channel) -> tuple[Line, BulkAt] | None:
        """A bulk channel, None when the stream has to do."""
        peer, host = channel.peer, self._bulk_host(channel.peer)
        if host is None or peer in self._no_bulk or self._plan.left < BULK_LEAST:
            return None
        if len(self._lines) >= LINES:
            await self._until_slow()
        self._lines[peer] = None
        try:
            way = await channel.ask(OpenBulk(adapter=self._adapter), BulkAt)
            self._lines[peer] = line = await bulk.reach(host, way, peer)
        except OrchdError as error:
            self._no_bulk.add(peer)
            del self._lines[peer]
            log.info("no bulk channel: %s", error)
            return None
        self._count("bulk_channels_used", 1)
        return line, way

    async def _until_slow(self) -> None:
        """Until those that bring something bring little together, or nothing at all."""
        before = 0
        for _ in range(ENOUGH_LOOKS):
            await trio.sleep(ENOUGH_LOOK_S)
            if before := self._received():
                break
        while True:
            await trio.sleep(ENOUGH_LOOK_S)
            received = self._received()
            if received - before < ENOUGH * ENOUGH_LOOK_S:
                return
            before = received

    def _received(self) -> int:
        """Bytes over the bulk channels that are open."""
        return sum(line.received for line in self._lines.values() if line is not None)

    async def _bring_in_bulk(self, line: Line, way: BulkAt) -> None:
        before = self._brought.get(line.peer, 0)
        try:
            await line.run(partial_call(self._talk, line, way), beside=partial_call(self._watch, line))
        finally:
            self._count("bytes_in", line.received)
            self._count("bytes_out", line.sent)
            if self._brought.get(line.peer, 0) == before:
                self._no_bulk.add(line.peer)

    async def _watch(self, line: Line) -> None:
        """Hang up when the peer can't be reached over libp2p any more: `pulse.py` finds that out under an open stream,
        within ten seconds; of the line itself it knows nothing."""
        try:
            while True:
                async with self._open_channel(line.peer) as channel:
                    await channel.receive()  # nothing, when it has been idle for too long
        except OrchdError as error:
            log.info("%s", error)
            line.hang_up()

    def _talk(self, line: Line, way: BulkAt) -> None:
        """`_bring` in a thread, which waits for trio's rarely: on a busy machine each time takes long.

        Another thread verifies and writes one chunk while the next one comes.
        """
        bulk.enter(line, way)
        asked: deque[Span] = deque()
        with ThreadPoolExecutor(1, "keep") as pool:
            spans = trio.from_thread.run(self._more_for, line.peer, False)
            while spans is not None:
                for span in spans:
                    line.send(self._question(span))
                asked.extend(spans)
                rest = self._hear(line, asked[0], pool)
                spans = trio.from_thread.run(self._heard, line.peer, asked.popleft(), rest, bool(asked))

    def _hear(self, line: Line, span: Span, pool: ThreadPoolExecutor) -> Part:
        """`_receive` in a thread, a chunk at a time. What was not told yet comes back."""
        left = self._check(line.peer, span, line.reply(Range))
        size = self._entries[span.file].chunk_size
        keeping = _Keeping(pool, partial_call(self._partial.put, span.file), span, size)
        came, at = 0, time.monotonic()
        try:
            while left:
                buffer = keeping.buffer(min(size, left))
                count = line.fill(buffer[came:], TELL_S)
                came, keeping.heard = came + count, keeping.heard + count
                if came == len(buffer):
                    left, came = left - came, 0
                    keeping.keep(buffer)
                if keeping.is_bad or time.monotonic() - at > TELL_S:
                    trio.from_thread.run_sync(self._arrived, line.peer, keeping.told())
                    at = time.monotonic()
        except (PeerUnreachable, PeerTimeout):
            trio.from_thread.run_sync(self._arrived, line.peer, keeping.told(wait=True))
            raise
        return keeping.told(wait=True)

    async def _heard(self, peer: ID, span: Span, rest: Part, has_asked: bool) -> list[Span] | None:
        """The answer has come to its end; what to ask for besides."""
        self._arrived(peer, rest)
        self._plan.finished(peer, span, trio.current_time())
        return await self._more_for(peer, has_asked)

    # ---- both ---------------------------------------------------------------------------------------------------

    async def _more_for(self, peer: ID, has_asked: bool) -> list[Span] | None:
        """What to ask `peer` for besides what it has been asked for; None at the end.

        As much as the plan wants; under a limit no more than passes now, because what comes must be read; of a peer
        whose quota is used up one chunk.
        """
        is_short = peer in self._quotas
        most = 1 if is_short else self._pace.portion(ASK_MAX, ASK_S)
        while self._plan.left:
            spans: list[Span] = []
            while not (has_asked or spans) or (not is_short and self._pace.is_free(trio.current_time())):
                span = self._plan.take(peer, trio.current_time(), most)
                if span is None:
                    break
                await trio.sleep(self._pace.reserve(trio.current_time(), self._plan.bytes_of(span)))
                spans.append(span)
            if spans or has_asked:
                return spans
            changed = self._changed
            with trio.move_on_after(IDLE_PAUSE_S):
                await changed.wait()
        return None

    def _question(self, span: Span) -> GetRange:
        return GetRange(
            adapter=self._adapter,
            blob=self._entries[span.file].sha256,
            offset=self._plan.offset(span),
            length=self._plan.bytes_of(span),
        )

    def _check(self, peer: ID, span: Span, answer: Range) -> int:
        """The bytes that follow. Raises `PeerMisbehaved` or `PeerRefused` when they are not those that were wanted."""
        wanted, path = self._plan.bytes_of(span), self._entries[span.file].path
        if answer.length > wanted:
            raise PeerMisbehaved(f"{peer} answers with {answer.length} bytes of {path}; {wanted} were asked for")
        if answer.length < wanted:
            raise PeerRefused(f"{peer} has only {answer.length} of {wanted} bytes of {path}")
        return wanted

    def _arrived(self, peer: ID, part: Part) -> None:
        """Raises `DigestMismatch` when not all of it is good, `PeerTimeout` when it goes too slowly."""
        good = part.good
        now, entry = trio.current_time(), self._entries[good.file]
        self._bringing.add(peer)
        self._busy.pop(peer, None)
        self._count("bytes_fetched", part.heard)
        self._plan.heard(peer, part.heard, now)
        for chunk in range(good.first, good.end):
            self._plan.came(peer, good.file, chunk)
        self._brought[peer] = self._brought.get(peer, 0) + good.count
        if good.count * entry.chunk_size < part.whole:
            raise DigestMismatch(f"chunk {good.end} of {entry.path} from {peer} is not what the author signed")
        if good.count:
            self._tell()
            self._wake()
        if not self._plan.left:
            self._everybody.cancel()
        elif self._plan.is_too_slow(peer, now):
            raise PeerTimeout(f"{peer} is too slow: {self._plan.speed(peer, now):.0f} bytes a second")

    def _tell(self) -> None:
        now = trio.current_time()
        rate = sum(self._plan.speed(peer, now) for peer in self._bringing)
        waits = "" if self._bringing else next(iter(self._busy.values()), "")
        self._progress(Transferred(self._total - self._plan.left, self._total, len(self._bringing), rate, waits))

    def _let_go(self, peer: ID) -> None:
        """It brings nothing now; others may bring what it was asked for."""
        self._lines.pop(peer, None)
        self._plan.lost(peer)
        self._bringing.discard(peer)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _when(seconds: float) -> str:
    """When a peer gives as much again as it was asked for."""
    if not seconds:
        return "it does not say when it gives more"
    return f"it gives more in {seconds:.0f} s" if seconds < 120 else f"it gives more in {seconds / 60:.0f} minutes"
