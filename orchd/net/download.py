"""One adapter's files from several peers at once, every chunk verified before it is written.

The chunk hashes come from the verified manifest, so a peer can only lie about bytes, and is found out at the first
chunk. Who brings what is planned by `policy/plan.py`; what has come is kept by `partial.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import trio
from libp2p.peer.id import ID

from orchd.errors import (
    DigestMismatch,
    DiskFull,
    NoProvider,
    OrchdError,
    PeerBusy,
    PeerMisbehaved,
    PeerRefused,
    PeerTimeout,
)
from orchd.net.exchange import Channel
from orchd.net.messages import GetRange, Range
from orchd.net.partial import Partial
from orchd.net.policy.plan import ASK_MAX, Plan, Span
from orchd.net.policy.rates import Pace
from orchd.records import Manifest, Verified

#: Peers that are asked at once.
PEERS = 8
#: A peer that brings nothing so many times is given up; one that is busy so many times.
PATIENCE, PATIENCE_BUSY = 3, 20
#: Nothing for so many seconds, when something was asked for, is such a time.
SILENCE_S = 30.0
#: Pauses in seconds: before a busy peer is asked again, and before an idle one looks whether others are slow.
BUSY_PAUSE_S, IDLE_PAUSE_S = 0.5, 0.25
#: Under a limit, one question asks for what may come in so many seconds.
ASK_S = 1.0

OpenChannel = Callable[[ID], AbstractAsyncContextManager[Channel]]


@dataclass(frozen=True)
class Transferred:
    """How far a fetch is: bytes done and in all (what was here before counts as done), how many peers bring some now,
    and bytes a second."""

    done: int
    total: int
    peers: int = 0
    rate: float = 0.0


Progress = Callable[[Transferred], None]


class Download:
    """One download into `partial`. `refused` is told of each peer that lied; `fetched` counts the bytes that came."""

    def __init__(
        self,
        manifest: Verified[Manifest],
        plan: Plan[ID],
        partial: Partial,
        open_channel: OpenChannel,
        pace: Pace,
        progress: Progress,
        refused: Callable[[ID, OrchdError], None],
    ) -> None:
        self._adapter, self._entries = manifest.digest, manifest.record.files
        self._total = manifest.record.size
        self._plan, self._partial, self._pace = plan, partial, pace
        self._open_channel = open_channel
        self._progress, self._refused = progress, refused
        self._changed = trio.Event()
        self._failures: list[OrchdError] = []
        #: Who brings something now, and how many good chunks each has brought.
        self._bringing: set[ID] = set()
        self._brought: dict[ID, int] = {}
        self.fetched = 0

    async def run(self, peers: Iterable[ID]) -> None:
        """Fetch what is missing. Raises the worst of what the peers did when none is left."""
        waiting = deque(peers)
        self._tell()
        async with trio.open_nursery() as nursery:
            self._everybody = nursery.cancel_scope
            for _ in range(min(PEERS, len(waiting))):
                nursery.start_soon(self._work, waiting)
        if self._plan.left:
            raise self._verdict()

    def _verdict(self) -> OrchdError:
        for worst in (DiskFull, DigestMismatch, OrchdError):
            for error in self._failures:
                if isinstance(error, worst):
                    return error
        return NoProvider("nobody is left to fetch it from")

    async def _work(self, waiting: deque[ID]) -> None:
        """One peer after the other, until everything is here."""
        while waiting and self._plan.left:
            peer = waiting.popleft()
            try:
                await self._work_with(peer)
            except (DigestMismatch, PeerMisbehaved) as error:
                self._failures.append(error)
                self._refused(peer, error)
            except DiskFull as error:
                self._failures.append(error)
                self._everybody.cancel()

    async def _work_with(self, peer: ID) -> None:
        """Until everything is here, or the peer has brought nothing too often."""
        failures = busy = 0
        while self._plan.left and failures < PATIENCE and busy < PATIENCE_BUSY:
            before = self._brought.get(peer, 0)
            try:
                async with self._open_channel(peer) as channel:
                    await self._bring(channel)
                continue
            except (DigestMismatch, PeerMisbehaved, DiskFull):
                raise
            except PeerBusy as error:
                busy = 1 if self._brought.get(peer, 0) > before else busy + 1
                self._failures.append(error)
            except OrchdError as error:
                failures = 1 if self._brought.get(peer, 0) > before else failures + 1
                self._failures.append(error)
            finally:
                self._plan.lost(peer)
                self._bringing.discard(peer)
                self._wake()
            await trio.sleep(BUSY_PAUSE_S * min(busy, 8))

    async def _bring(self, channel: Channel) -> None:
        """Ask for spans and take what comes, some asked for ahead."""
        asked: deque[Span] = deque()
        while self._plan.left:
            await self._ask_ahead(channel, asked)
            if asked:
                await self._receive(channel, asked.popleft())
                continue
            changed = self._changed
            with trio.move_on_after(IDLE_PAUSE_S):
                await changed.wait()

    async def _ask_ahead(self, channel: Channel, asked: deque[Span]) -> None:
        """As much as the plan wants; under a limit no more than passes now, because what comes must be read."""
        most = self._pace.portion(ASK_MAX, ASK_S)
        while not asked or self._pace.is_free(trio.current_time()):
            span = self._plan.take(channel.peer, trio.current_time(), most)
            if span is None:
                return
            await trio.sleep(self._pace.reserve(trio.current_time(), self._plan.bytes_of(span)))
            await channel.send(
                GetRange(
                    adapter=self._adapter,
                    blob=self._entries[span.file].sha256,
                    offset=self._plan.offset(span),
                    length=self._plan.bytes_of(span),
                )
            )
            asked.append(span)

    async def _receive(self, channel: Channel, span: Span) -> None:
        """One answer, chunk by chunk."""
        peer, wanted, entry = channel.peer, self._plan.bytes_of(span), self._entries[span.file]
        answer = await channel.reply(Range, SILENCE_S)
        if answer.length > wanted:
            raise PeerMisbehaved(f"{peer} answers with {answer.length} bytes of {entry.path}; {wanted} were asked for")
        if answer.length < wanted:
            raise PeerRefused(f"{peer} has only {answer.length} of {wanted} bytes of {entry.path}")
        self._bringing.add(peer)
        waiting, chunk, left = bytearray(), span.first, wanted
        while left:
            data = await channel.raw(left, SILENCE_S)
            left -= len(data)
            self.fetched += len(data)
            self._plan.heard(peer, len(data), trio.current_time())
            waiting += data
            whole = len(waiting) if not left else len(waiting) - len(waiting) % entry.chunk_size
            if whole:
                chunk = await self._keep(peer, span.file, chunk, bytes(memoryview(waiting)[:whole]))
                del waiting[:whole]
            if self._plan.is_too_slow(peer, trio.current_time()):
                raise PeerTimeout(
                    f"{peer} is too slow: {self._plan.speed(peer, trio.current_time()):.0f} bytes a second"
                )
        self._plan.finished(peer, span, trio.current_time())

    async def _keep(self, peer: ID, file: int, first: int, data: bytes) -> int:
        """Chunks that follow each other; the number of the next one. Raises `DigestMismatch` naming the peer."""
        good = await trio.to_thread.run_sync(self._partial.put, file, first, memoryview(data))
        for chunk in range(first, first + good):
            self._plan.came(peer, file, chunk)
        self._brought[peer] = self._brought.get(peer, 0) + good
        entry = self._entries[file]
        if good * entry.chunk_size < len(data):
            raise DigestMismatch(f"chunk {first + good} of {entry.path} from {peer} is not what the author signed")
        self._tell()
        if not self._plan.left:
            self._everybody.cancel()
        self._wake()
        return first + good

    def _tell(self) -> None:
        now = trio.current_time()
        rate = sum(self._plan.speed(peer, now) for peer in self._bringing)
        self._progress(Transferred(self._total - self._plan.left, self._total, len(self._bringing), rate))

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
