"""Giving: ranges of blobs to peers, in turn, at the pace and within the quotas of the settings.

A few answers are under way at once (`net.upload_slots`), each read from the disk when its turn has come, so that
serving needs few threads and little memory, and leaves the machine to its user. A peer has one answer for every one
that others have; whoever reads slowly goes back into the queue when others wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import trio
from libp2p.peer.id import ID

from orchd.config import NetConfig
from orchd.errors import PeerUnreachable
from orchd.net import messages
from orchd.net.exchange import Channel
from orchd.net.messages import Failed, GetRange, Range
from orchd.net.policy.rates import Pace, Quotas, Turns

#: An answer begins within this time or is `busy`, and each portion of it is read within the second one, in seconds.
TURN_S, READ_S = 5.0, 60.0
#: Answers that one peer may wait for.
WAITING_EACH = 64
#: Who waits for a slot gets one that has been held for so many seconds.
HELD_S = 2.0
#: Bytes between two looks at pace and turn; under a limit, what passes in so many seconds.
PORTION, PORTION_S = 256 << 10, 0.5
QUOTA_PERIOD_S = 3600.0

Read = Callable[[bytes, bytes, int, int], bytes | None]
Count = Callable[[str, int], None]


class Transfers:
    """Limits of giving and taking, as the settings say. They outlive the host."""

    def __init__(self, config: NetConfig) -> None:
        self.up, self.down = Pace(config.upload_limit * 1000), Pace(config.download_limit * 1000)
        self.quotas: Quotas[str] = Quotas(config.upload_quota_mb * 1_000_000, QUOTA_PERIOD_S)
        self.slots = config.upload_slots
        #: A capture would not see what leaves by the bulk channel.
        self.bulk, self.bulk_port = config.bulk and not config.capture, config.bulk_port
        self._fetching: WeakValueDictionary[bytes, trio.Lock] = WeakValueDictionary()

    def fetching(self, adapter: bytes) -> trio.Lock:
        """Held while an adapter is fetched."""
        return self._fetching.setdefault(adapter, trio.Lock())


class Uploads:
    """Answers to `GetRange`. `read` is called in threads, `readers` of them at once."""

    def __init__(self, read: Read, transfers: Transfers, readers: trio.CapacityLimiter, count: Count) -> None:
        self._read, self._readers, self.count = read, readers, count
        self._transfers = transfers
        self._turns: Turns[ID, trio.Event] = Turns(transfers.slots, WAITING_EACH)

    def answer(self, peer: ID, request: GetRange) -> Upload:
        return Upload(self, peer, request)

    def read(self, request: GetRange) -> bytes | None:
        """For threads."""
        return self._read(request.adapter, request.blob, request.offset, request.length)

    @property
    def is_limited(self) -> bool:
        return self._transfers.up.rate > 0

    async def paced(self, left: int) -> int:
        """How many of these bytes may be given at once, when they may."""
        pace = self._transfers.up
        count = pace.portion(min(left, PORTION), PORTION_S)
        if wait := pace.reserve(trio.current_time(), count):
            await trio.sleep(wait)
        return count

    async def take_turn(self, peer: ID) -> Slot:
        """A slot; when `peer` has to come again later, one that is not held."""
        slot = Slot(peer, self._turns)
        try:
            with trio.move_on_after(TURN_S):
                await slot.take()
        except BaseException:
            slot.give_back()
            raise
        return slot

    async def begin(self, peer: ID, length: int) -> tuple[Slot, Failed | None]:
        """A slot for an answer of so many bytes, which count as given, or why there is none."""
        slot = await self.take_turn(peer)
        if not slot.is_held:
            return slot, Failed(reason=messages.BUSY)
        quotas, now = self._transfers.quotas, trio.current_time()
        if not quotas.take(str(peer), now, length):
            wait = quotas.wait(str(peer), now, length)
            return slot, Failed(reason=messages.QUOTA, after_s=0 if math.isinf(wait) else math.ceil(wait))
        return slot, None

    async def give(self, request: GetRange, channel: Channel) -> None:
        """The whole answer, over a stream."""
        slot, refusal = await self.begin(channel.peer, request.length)
        try:
            data: bytes | None = None
            if refusal is None:
                data = await trio.to_thread.run_sync(self.read, request, limiter=self._readers)
            if data is None:
                await channel.send(refusal or Failed(reason=messages.UNKNOWN))
            else:
                self.count("bytes_served", len(data))
                await channel.send(Range(length=len(data)))
                await self._send(slot, channel, memoryview(data))
        finally:
            slot.give_back()

    async def _send(self, slot: Slot, channel: Channel, view: memoryview) -> None:
        while view:
            count = await self.paced(len(view))
            with trio.move_on_after(READ_S) as scope:
                await channel.write(view[:count])
            if scope.cancelled_caught:
                raise PeerUnreachable(f"{channel.peer} does not read")
            view = view[count:]
            await slot.share()


@dataclass(frozen=True)
class Upload:
    """One answer, when its turn comes."""

    uploads: Uploads
    peer: ID
    request: GetRange

    async def send(self, channel: Channel) -> None:
        """Raises `PeerUnreachable` for a peer that does not read."""
        await self.uploads.give(self.request, channel)


@dataclass
class Slot:
    """One of the places of `turns`, while `is_held`."""

    peer: ID
    turns: Turns[ID, trio.Event]
    is_held: bool = False
    since: float = field(default=0.0)

    async def take(self) -> None:
        """Wait for it; when the peer waits for too many already, don't."""
        called = trio.Event()
        if not self.turns.enter(self.peer, called):
            return
        _call(self.turns)
        try:
            await called.wait()
        finally:
            self.is_held = not self.turns.give_up(self.peer, called)
            self.since = trio.current_time()

    async def share(self) -> None:
        """Let others go first who wait, when it has been held for long."""
        if self.turns.waiting and trio.current_time() - self.since > HELD_S:
            self.give_back()
            await self.take()

    def give_back(self) -> None:
        if self.is_held:
            self.is_held = False
            self.turns.give_back(self.peer)
            _call(self.turns)


def _call(turns: Turns[ID, Any]) -> None:
    """Everybody for whom there is a slot."""
    while (called := turns.next()) is not None:
        called.set()
