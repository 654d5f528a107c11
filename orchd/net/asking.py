"""Questions to peers, on streams that are used again.

Opening a stream costs both sides several times a small question, so one that has answered rests for a moment and is
asked on again; and few are opened to one peer at once: where all are slow because there is much to do, every question
with a stream of its own would make it worse (twenty nodes on one core fetched nothing any more, for as long as it
lasted, while each opened a hundred streams a second).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from orchd.errors import PeerMisbehaved, PeerTimeout, PeerUnreachable
from orchd.net import messages
from orchd.net.exchange import ANSWER_TIMEOUT_S, Channel
from orchd.net.host import Host
from orchd.net.messages import PROTOCOL, Request

#: Seconds to open a stream; what is cancelled meanwhile waits so long for it.
OPEN_TIMEOUT_S, GRACE_S = 15.0, 0.5

R = TypeVar("R")


@asynccontextmanager
async def open_channel(host: Host, peer: ID) -> AsyncIterator[Channel]:
    """A channel to a connected peer, for questions. Raises `PeerUnreachable` or `PeerTimeout`."""
    if not host.connected(peer):
        raise PeerUnreachable(f"{peer} is not connected")
    channel = await _rested(host, peer) or await _opened(host, peer)
    try:
        yield channel
    except PeerMisbehaved:
        await channel.reset()
        raise
    except BaseException:
        if not _rests(host, channel):
            await channel.reset()
        raise
    if not _rests(host, channel):
        await channel.close()


async def ask(host: Host, peer: ID, request: Request, wanted: type[R], timeout_s: float = ANSWER_TIMEOUT_S) -> R:
    """One question."""
    async with open_channel(host, peer) as channel:
        return await channel.ask(request, wanted, timeout_s)


async def end_rested(host: Host) -> None:
    """Close the streams that nobody has asked on for a while."""
    for channel in host.resting.take_rested(trio.current_time()):
        await channel.close()


def _rests(host: Host, channel: Channel) -> bool:
    rests = channel.is_at_rest and host.resting.rest(channel.peer, channel, trio.current_time())
    if rests:
        host.idle.add(channel.stream)
    return rests


async def _rested(host: Host, peer: ID) -> Channel | None:
    """A stream that rests, on the connection that a new one would be on."""
    while (found := host.resting.take(peer)) is not None:
        host.idle.discard(found.stream)
        if found.is_at_rest and any(map(found.is_on, host.connections(peer)[:1])):
            return found
        await found.close()
    return None


async def _opened(host: Host, peer: ID) -> Channel:
    """A new stream, or one that has come to rest while this one had to wait for its turn to be opened."""
    host.opening[peer] += 1
    try:
        turns = host.opening_turns(peer)
        with trio.move_on_after(OPEN_TIMEOUT_S) as scope:
            await turns.acquire()
        if scope.cancelled_caught:
            raise PeerTimeout(f"{peer} opened no stream within {OPEN_TIMEOUT_S:.0f} s")
        try:
            return await _rested(host, peer) or await _open(host, peer)
        finally:
            turns.release()
    finally:
        host.opening[peer] -= 1
        if not host.opening[peer]:
            del host.opening[peer]


async def _open(host: Host, peer: ID) -> Channel:
    """A stream whose opening is cancelled stays open on the other side: give it `GRACE_S` to become whole first."""
    opened: list[Channel] = []
    failures: list[Exception] = []
    done = trio.Event()

    async def open_it() -> None:
        with patience:
            try:
                stream = await host.basic.new_stream(peer, [TProtocol(PROTOCOL)])
                opened.append(Channel(stream, messages.REPLY_LIMIT))
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
            await opened[0].reset()
        raise
    if failures:
        raise PeerUnreachable(f"{peer} opens no stream: {failures[0]}")
    if not opened:
        raise PeerTimeout(f"{peer} opened no stream within {OPEN_TIMEOUT_S:.0f} s")
    return opened[0]
