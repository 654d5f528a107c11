"""Giving: who waits for whom, on a simulated clock, with channels that only count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import trio
import trio.testing
from libp2p.peer.id import ID

from orchd.config import NetConfig
from orchd.errors import PeerUnreachable
from orchd.net import messages
from orchd.net.exchange import Channel
from orchd.net.messages import Failed, GetRange, Range
from orchd.net.upload import HELD_S, READ_S, TURN_S, Transfers, Uploads

MIB = 1 << 20


@dataclass
class Line:
    """A channel to a peer that reads `speed` bytes a second."""

    peer: ID
    log: list[tuple[str, object]]
    speed: float = float("inf")
    taken: int = 0
    replies: list[object] = field(default_factory=list)

    async def send(self, message: object) -> None:
        self.replies.append(message)
        self.log.append((self.peer.to_bytes().decode(), message))

    async def write(self, data: memoryview) -> None:
        await trio.sleep(len(data) / self.speed)
        self.taken += len(data)


class Giver:
    """Uploads of zeros, with lines to peers by name."""

    def __init__(self, **settings: int) -> None:
        self.log: list[tuple[str, object]] = []
        self.served = 0
        self.reading = self.most = 0
        self.uploads = Uploads(
            self._read, Transfers(NetConfig(**cast("Any", settings))), trio.CapacityLimiter(4), self._count
        )

    def _read(self, adapter: bytes, blob: bytes, offset: int, length: int) -> bytes | None:
        return bytes(length) if blob[0] else None

    def _count(self, what: str, by: int) -> None:
        assert what == "bytes_served"
        self.served += by

    def line(self, name: str, speed: float = float("inf")) -> Line:
        return Line(ID(name.encode()), self.log, speed)

    async def give(self, line: Line, length: int = MIB, blob: int = 1) -> None:
        request = GetRange(adapter=bytes(32), blob=bytes([blob]) * 32, offset=0, length=length)
        await self.uploads.answer(line.peer, request).send(cast("Channel", line))


def simulated(work: Callable[[], Any]) -> None:
    trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0.02))


def test_an_answer_is_a_frame_and_its_bytes() -> None:
    async def work() -> None:
        giver = Giver()
        line = giver.line("a")
        await giver.give(line, 300_000)
        await giver.give(line, blob=0)
        assert line.replies == [Range(length=300_000), Failed(reason=messages.UNKNOWN)]
        assert line.taken == giver.served == 300_000

    simulated(work)


def test_a_greedy_peer_lets_others_go_first() -> None:
    async def work() -> None:
        giver = Giver(upload_slots=1)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(giver.give, giver.line("greedy", MIB))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(giver.give, giver.line("modest", MIB))
        names = [name for name, _ in giver.log]
        assert names.index("modest") == 1

    simulated(work)


def test_a_peer_that_reads_slowly_keeps_no_slot_from_others() -> None:
    async def work() -> None:
        giver = Giver(upload_slots=1)
        slow, quick = giver.line("slow", 50_000), giver.line("quick")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(giver.give, slow, 4 * MIB)
            await trio.sleep(HELD_S)
            begun = trio.current_time()
            await giver.give(quick)
            assert quick.taken == MIB
            assert trio.current_time() - begun <= TURN_S
            assert slow.taken < MIB
            nursery.cancel_scope.cancel()

    simulated(work)


def test_whoever_waits_too_long_is_told_and_leaves_the_queue() -> None:
    async def work() -> None:
        giver = Giver(upload_slots=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(giver.give, giver.line("slow", 5_000))
            await trio.testing.wait_all_tasks_blocked()
            line = giver.line("late")
            await giver.give(line)
            assert line.replies == [Failed(reason=messages.BUSY)]
            nursery.cancel_scope.cancel()
        again = giver.line("again")
        await giver.give(again)
        assert again.taken == MIB, "cancelled and refused ones have given their places back"

    simulated(work)


def test_a_peer_that_does_not_read_is_left() -> None:
    async def work() -> None:
        giver = Giver()
        begun = trio.current_time()
        with pytest.raises(PeerUnreachable, match="does not read"):
            await giver.give(giver.line("stuck", 1e-9))
        assert trio.current_time() - begun < READ_S + 1

    simulated(work)


def test_the_limit_is_for_all_together() -> None:
    async def work() -> None:
        giver = Giver(upload_limit=1000)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for name in "abcd":
                nursery.start_soon(giver.give, giver.line(name), 2_000_000)
        assert 7.0 <= trio.current_time() - begun <= 8.5

    simulated(work)


def test_a_quota_is_for_each() -> None:
    async def work() -> None:
        giver = Giver(upload_quota_mb=3)
        greedy, other = giver.line("greedy"), giver.line("other")
        for _ in range(4):
            await giver.give(greedy)
        await giver.give(other)
        assert [type(reply) for reply in greedy.replies] == [Range, Range, Failed, Failed]
        assert other.taken == MIB
        await trio.sleep(1800)
        await giver.give(greedy)
        assert greedy.taken == 3 * MIB

    simulated(work)
