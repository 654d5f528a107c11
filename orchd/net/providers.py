"""Who gives an adapter: the likeliest peer is asked first, more when that does not help, and others join in later.

A question costs both sides a stream, so for a small adapter few are asked. While it is being fetched, others are asked
too: many at once if it is large, some now and then if it is not, and those who have come since, or may have it by now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import trio
from libp2p.peer.id import ID

from orchd.errors import NoProvider, OrchdError
from orchd.records import Manifest, Verified

#: Rounds before all others are asked: how many more peers, and how many seconds without a yes. Each is longer than the
#: one before: where all are slow because there is much to do, haste would make more of it.
ROUNDS = ((1, 1.0), (3, 2.0), (6, 3.0), (12, 4.0))
#: Peers asked at once, at most.
PEERS_ASKED = 32
#: An adapter of more bytes is worth many providers at once.
LARGE = 8 << 20
#: While an adapter is fetched, so many more peers are asked this often, and one that had no good answer again after so
#: long, in seconds.
MORE, MORE_S, AGAIN_S = 3, 2.0, 30.0
#: So often one peer is tried for one fetch.
TRIES = 2

Ask = Callable[[ID], Awaitable[Verified[Manifest]]]
Candidates = Callable[[], Sequence[ID]]


class Search:
    """For the adapter called `name`. `ask` raises an `OrchdError` where a peer does not give the manifest; `candidates`
    are who may, likely ones first. With `everybody` nobody waits for a better one's answer.
    """

    def __init__(self, nursery: trio.Nursery, name: str, ask: Ask, candidates: Candidates, *, everybody: bool) -> None:
        self._nursery, self._name = nursery, name
        self._ask, self._candidates = ask, candidates
        self._rounds = (*(() if everybody else ROUNDS), (PEERS_ASKED, float("inf")))
        self._manifest: Verified[Manifest] | None = None
        self._failures: list[OrchdError] = []
        #: When who was asked last, and how often who was handed out.
        self._asked: dict[ID, float] = {}
        self._tries: dict[ID, int] = {}
        self._asking: set[ID] = set()
        self._waiting: deque[ID] = deque()
        self._used: set[ID] = set()
        self._is_over = False
        self._changed = trio.Event()

    async def first(self) -> Verified[Manifest]:
        """The manifest, as soon as somebody gives it; others are asked from then on. Raises `NoProvider`."""
        for count, seconds in self._rounds:
            if self._manifest is None:
                self._ask_some(count)
                await self._answers(seconds)
        if self._manifest is None:
            why = f": {self._failures[0]}" if self._failures else ", because nobody who might is connected"
            raise NoProvider(f"nobody gives {self._name}{why}")
        return self._manifest

    async def _answers(self, seconds: float) -> None:
        """Until somebody says yes, all have said no, or the time is over."""
        with trio.move_on_after(seconds):
            while self._manifest is None and self._asking:
                await self._changed.wait()

    async def next(self) -> ID | None:
        """Somebody who gives it; None when everybody was asked and nobody is in use any more."""
        while not self._waiting and not self._is_over:
            await self._changed.wait()
        if not self._waiting:
            return None
        peer = self._waiting.popleft()
        self._used.add(peer)
        self._tries[peer] = self._tries.get(peer, 0) + 1
        return peer

    def done(self, peer: ID, *, again: bool) -> None:
        """`peer` is not in use any more; whether it may be tried another time."""
        self._used.discard(peer)
        if not again:
            self._tries[peer] = TRIES
        self._wake()

    async def go_on(self) -> None:
        """Ask more peers until nobody is left and nobody is in use."""
        assert self._manifest is not None
        some = PEERS_ASKED if self._manifest.record.size > LARGE else MORE
        if some == PEERS_ASKED:
            self._ask_some(some)
        while not self._is_over:
            with trio.move_on_after(MORE_S):
                while self._is_busy:
                    await self._changed.wait()
            if self._is_busy:
                self._ask_some(some)
            else:
                self._is_over = not self._ask_some(PEERS_ASKED)
        self._wake()

    @property
    def _is_busy(self) -> bool:
        """Whether somebody brings something, or may soon."""
        return bool(self._asking or self._waiting or self._used)

    def _ask_some(self, count: int) -> int:
        """Ask the first of those who can be asked now; how many these are."""
        now = trio.current_time()
        found = [peer for peer in self._candidates() if self._may_ask(peer, now)][:count]
        for peer in found:
            self._asked[peer] = now
            self._asking.add(peer)
            self._nursery.start_soon(self._ask_one, peer)
        return len(found)

    def _may_ask(self, peer: ID, now: float) -> bool:
        is_free = peer not in self._asking and peer not in self._used and peer not in self._waiting
        return is_free and self._tries.get(peer, 0) < TRIES and now - self._asked.get(peer, float("-inf")) > AGAIN_S

    async def _ask_one(self, peer: ID) -> None:
        try:
            self._manifest = await self._ask(peer)
            self._waiting.append(peer)
        except OrchdError as error:
            self._failures.append(error)
        finally:
            self._asking.discard(peer)
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@asynccontextmanager
async def searching(name: str, ask: Ask, candidates: Candidates, *, everybody: bool = False) -> AsyncIterator[Search]:
    """A search whose questions end with the block. What the block raises comes out by itself, not in a group."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield Search(nursery, name, ask, candidates, everybody=everybody)
        except Exception as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
