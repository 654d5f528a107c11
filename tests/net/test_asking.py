"""Questions on streams that are used again, between two real hosts."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from orchd.errors import PeerMisbehaved, PeerRefused, PeerUnreachable
from orchd.identity import Identity
from orchd.net import asking
from orchd.net.exchange import Server
from orchd.net.host import OPENING, Host, run_host
from orchd.net.messages import PROTOCOL, UNKNOWN, Done, Failed, GetManifest, ManifestIs, Push, Reply, Request
from orchd.net.policy.resting import REST_S
from orchd.net.pulse import is_waited_for
from tests.net.support import until

QUESTION = GetManifest(adapter=bytes(32))


class Answering:
    """Answers with `reply`, but not before `may_answer`."""

    def __init__(self) -> None:
        self.reply: Reply = ManifestIs(envelope=b"x")
        self.may_answer = trio.Event()
        self.may_answer.set()
        self.asked = 0

    async def answer(self, peer: ID, request: Request) -> Reply:
        self.asked += 1
        await self.may_answer.wait()
        return self.reply

    def misbehaved(self, peer: ID, error: PeerMisbehaved) -> None: ...

    def flooded(self, peer: ID) -> None: ...


class Opened:
    """Streams that a host has opened, and how many it was opening at once, at most."""

    def __init__(self, host: Host) -> None:
        self.count = self.at_once = self._now = 0
        self._new_stream = host.basic.new_stream
        host.basic.new_stream = self._counted  # type: ignore[method-assign]

    async def _counted(self, *arguments: Any) -> Any:
        self.count, self._now = self.count + 1, self._now + 1
        self.at_once = max(self.at_once, self._now)
        try:
            return await self._new_stream(*arguments)
        finally:
            self._now -= 1


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Host, Host, Answering, Opened]]:
    """One that asks, one that answers, and what happens between them."""
    listen = ["/ip4/127.0.0.1/tcp/0"]
    async with (
        run_host(Identity.from_seed(b"a" * 32), listen) as here,
        run_host(Identity.from_seed(b"b" * 32), listen) as there,
    ):
        answering = Answering()
        there.basic.set_stream_handler(TProtocol(PROTOCOL), Server(answering, there.idle).handle)
        await here.connect(there.id, [Multiaddr(there.addresses()[0])])
        yield here, there, answering, Opened(here)


async def test_questions_one_after_the_other_share_a_stream() -> None:
    async with pair() as (here, there, _, opened):
        for _ in range(5):
            assert (await asking.ask(here, there.id, QUESTION, ManifestIs)).envelope == b"x"
        assert opened.count == 1


async def test_a_no_costs_no_stream() -> None:
    async with pair() as (here, there, answering, opened):
        answering.reply = Failed(reason=UNKNOWN)
        for _ in range(3):
            with pytest.raises(PeerRefused):
                await asking.ask(here, there.id, QUESTION, ManifestIs)
        assert opened.count == 1


async def test_nobody_waits_on_a_stream_that_rests() -> None:
    """Else both ends would look every few seconds whether the link is alive."""
    async with pair() as (here, there, answering, _):
        await asking.ask(here, there.id, QUESTION, ManifestIs)
        (ours,), (theirs,) = here.connections(there.id), there.connections(here.id)
        assert len(here.resting) == 1
        assert not is_waited_for(here, ours)
        await until(lambda: not is_waited_for(there, theirs), "the answer is out")
        answering.may_answer = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asking.ask, here, there.id, QUESTION, ManifestIs)
            await until(lambda: answering.asked == 2, "the second question")
            assert is_waited_for(here, ours)
            assert is_waited_for(there, theirs)
            answering.may_answer.set()


async def test_a_stream_whose_answer_is_still_to_come_is_not_asked_on_again() -> None:
    """The next question would get the answer to this one."""
    async with pair() as (here, there, answering, opened):
        answering.may_answer = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asking.ask, here, there.id, QUESTION, ManifestIs)
            await until(lambda: answering.asked, "the question")
            nursery.cancel_scope.cancel()
        answering.may_answer.set()
        answering.reply = Done()
        assert await asking.ask(here, there.id, Push(records=()), Done) == Done()
        assert opened.count == 2


async def test_a_stream_that_the_other_side_has_ended_is_not_asked_on_again() -> None:
    async with pair() as (here, there, _, opened):
        await asking.ask(here, there.id, QUESTION, ManifestIs)
        (connection,) = there.connections(here.id)
        for stream in [one for one in connection.get_streams() if one.get_protocol() == PROTOCOL]:
            await stream.reset()
        (resting,) = [channel for _, channel in here.resting._since[there.id]]
        await until(lambda: not resting.is_at_rest, "told")
        await asking.ask(here, there.id, QUESTION, ManifestIs)
        assert opened.count == 2


async def test_who_answers_with_something_else_is_asked_on_a_new_stream() -> None:
    async with pair() as (here, there, answering, opened):
        answering.reply = Done()
        with pytest.raises(PeerMisbehaved):
            await asking.ask(here, there.id, QUESTION, ManifestIs)
        assert len(here.resting) == 0
        answering.reply = ManifestIs(envelope=b"y")
        await asking.ask(here, there.id, QUESTION, ManifestIs)
        assert opened.count == 2


async def test_few_streams_are_opened_to_one_peer_at_once() -> None:
    """Those that wait for their turn get one that has come to rest meanwhile."""
    async with pair() as (here, there, answering, opened):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(asking.ask, here, there.id, QUESTION, ManifestIs)
        assert answering.asked == 20
        assert opened.at_once == OPENING
        assert not here.opening


async def test_a_rested_stream_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair() as (here, there, _, _opened):
        await asking.ask(here, there.id, QUESTION, ManifestIs)
        now = trio.current_time()
        monkeypatch.setattr(asking, "trio", _At(now + REST_S))
        await asking.end_rested(here)
        assert len(here.resting) == 0
        (connection,) = there.connections(here.id)
        await until(lambda: Counter(one.get_protocol() for one in connection.get_streams())[PROTOCOL] == 0, "closed")


class _At:
    """trio, at another time."""

    def __init__(self, now: float) -> None:
        self._now = now

    def current_time(self) -> float:
        return self._now


async def test_nobody_is_asked_who_is_not_there() -> None:
    async with pair() as (here, there, _, opened):
        await asking.ask(here, there.id, QUESTION, ManifestIs)
        await here.disconnect(there.id)
        with pytest.raises(PeerUnreachable):
            await asking.ask(here, there.id, QUESTION, ManifestIs)
        assert opened.count == 1
