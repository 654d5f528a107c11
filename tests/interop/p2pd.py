"""go-libp2p's daemon `p2pd`, driven over its control socket.

A question and its answer are protobuf messages, each after its length as a varint, on a connection of their own; one
that has opened a stream is that stream from then on (hivemind/proto/p2pd.proto in the wheel says what they hold;
https://github.com/libp2p/go-libp2p-daemon/blob/master/specs/CONTROL.md).
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.net.host import parse_peer_address
from tests.interop.fetch import P2PD
from tests.net.support import PATIENCE_S

#: Kinds of questions, and the field that holds what belongs to each.
IDENTIFY, CONNECT, STREAM_OPEN, STREAM_HANDLER, DHT, PUBSUB = 0, 1, 2, 3, 4, 8
FIELD = {CONNECT: 2, STREAM_OPEN: 3, STREAM_HANDLER: 4, DHT: 5, PUBSUB: 8}
#: Kinds of answers, of questions to the DHT and its answers, and of questions to pubsub.
FAILED, FIND_PROVIDERS, PROVIDE, LAST, PUBLISH, SUBSCRIBE = 1, 2, 8, 2, 2, 3
UNIX = 400
#: It ends by itself after so long, should its test be killed.
ORPHAN = "300s"
#: An address at which nobody is.
NOBODY = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWN1hUCsVYbrv65DhFRqtsRArqvQ9yKjHLafaQQDqkkCyt"
PROVIDERS = 20

Value = int | bytes
Handler = Callable[[trio.SocketStream, str], Awaitable[None]]


class P2pdFailed(Exception):
    """The daemon's own words."""


class P2pd:
    """A running daemon. `peer` is its peer id, `addresses` where it listens. Files of its own lie in `folder`."""

    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        self._folder, self._nursery = folder, nursery
        self.socket = folder / "control"
        self.peer = ""
        self.addresses: tuple[str, ...] = ()

    async def identify(self) -> None:
        stream, answer = await self._ask(IDENTIFY)
        await stream.aclose()
        (found,) = decode(answer)[4]
        self.peer = _peer(decode(found)[1][0])
        self.addresses = tuple(f"{Multiaddr(way)}/p2p/{self.peer}" for way in decode(found)[2])

    async def connect(self, address: str) -> None:
        peer, way = parse_peer_address(address)
        stream, _ = await self._ask(CONNECT, (1, peer.to_bytes()), (2, way.to_bytes()))
        await stream.aclose()

    async def open(self, peer: str, protocol: str) -> trio.SocketStream:
        """A stream to a connected peer."""
        stream, _ = await self._ask(STREAM_OPEN, (1, ID.from_string(peer).to_bytes()), (2, protocol.encode()))
        return stream

    async def handle(self, protocol: str, handler: Handler) -> None:
        """`handler` gets the streams of a protocol that peers open, each with its peer's id."""
        path = str(self._folder / "streams")
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(path)
        listening.listen()
        self._nursery.start_soon(trio.serve_listeners, partial(_handle, handler), [trio.SocketListener(listening)])
        address = varint(UNIX) + varint(len(path)) + path.encode()
        stream, _ = await self._ask(STREAM_HANDLER, (1, address), (2, protocol.encode()), (3, False))
        await stream.aclose()

    async def subscribe(self, topic: str) -> AsyncGenerator[bytes, None]:
        """What is published under a topic, from now on."""
        stream, _ = await self._ask(PUBSUB, (1, SUBSCRIBE), (2, topic.encode()))
        return _published(stream)

    async def publish(self, topic: str, data: bytes) -> None:
        stream, _ = await self._ask(PUBSUB, (1, PUBLISH), (2, topic.encode()), (3, data))
        await stream.aclose()

    async def provide(self, cid: bytes) -> None:
        """Say on the DHT that we provide something. Raises `P2pdFailed` as long as no server is known."""
        stream, _ = await self._ask(DHT, (1, PROVIDE), (3, cid))
        await stream.aclose()

    async def providers(self, cid: bytes) -> set[str]:
        """Ids of the peers that have said so; none as long as no server is known."""
        stream, _ = await self._ask(DHT, (1, FIND_PROVIDERS), (3, cid), (6, PROVIDERS))
        found = set()
        async with stream:
            while (answer := decode(await _receive(stream)))[1] != [LAST]:
                found.add(_peer(decode(answer[2][0])[1][0]))
        return found

    async def _ask(self, kind: int, *values: tuple[int, Value]) -> tuple[trio.SocketStream, bytes]:
        """The connection and the answer. Raises `P2pdFailed`."""
        question = encode((1, kind), (FIELD[kind], encode(*values))) if values else encode((1, kind))
        stream = await trio.open_unix_socket(str(self.socket))
        await stream.send_all(varint(len(question)) + question)
        with trio.fail_after(PATIENCE_S):
            answer = await _receive(stream)
        if decode(answer)[1] == [FAILED]:
            await stream.aclose()
            raise P2pdFailed(bytes(decode(decode(answer)[2][0])[1][0]).decode())
        return stream, answer


@asynccontextmanager
async def run_p2pd(folder: Path, bootstrap: str = NOBODY, *, relays: bool = False) -> AsyncIterator[P2pd]:
    """One that runs inside the block, on loopback; `bootstrap` keeps it from the public peers that it has built in, and
    `relays` makes it a relay for others."""
    command = [str(P2PD), "-listen", f"/unix{folder / 'control'}", "-hostAddrs", "/ip4/127.0.0.1/tcp/0", "-tls=false"]
    relaying = str(relays).lower()
    command += [f"-relay={relaying}", f"-relayService={relaying}", "-forceReachabilityPublic"]
    command += ["-pubsub", "-dhtServer", "-bootstrapPeers", bootstrap, "-idleTimeout", ORPHAN]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        async with trio.open_nursery() as nursery:
            daemon = P2pd(folder, nursery)
            said = b""
            with trio.fail_after(PATIENCE_S):
                while b"Peer Addrs" not in said:
                    said += await process.stdout.receive_some()
            await daemon.identify()
            yield daemon
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _handle(handler: Handler, stream: trio.SocketStream) -> None:
    """The daemon first says whose stream it is."""
    await handler(stream, _peer(decode(await _receive(stream))[1][0]))


async def _published(stream: trio.SocketStream) -> AsyncGenerator[bytes, None]:
    async with stream:
        while True:
            yield bytes(decode(await _receive(stream))[2][0])


async def _receive(stream: trio.SocketStream) -> bytes:
    size = shift = 0
    while True:
        byte = (await exactly(stream, 1))[0]
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return await exactly(stream, size)


async def exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    """So many bytes, and no more of what follows. Raises `EOFError`."""
    data = bytearray()
    while len(data) < size:
        part = await stream.receive_some(size - len(data))
        if not part:
            raise EOFError(f"{size - len(data)} bytes are missing")
        data += part
    return bytes(data)


def _peer(id: Value) -> str:
    return str(ID(bytes(id)))


# ---- protobuf ------------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def encode(*values: tuple[int, Value]) -> bytes:
    """A message of these fields."""
    return b"".join(
        varint(number << 3 | 2) + varint(len(value)) + value
        if isinstance(value, bytes)
        else varint(number << 3) + varint(int(value))
        for number, value in values
    )


def decode(message: Value) -> dict[int, list[Value]]:
    """The values of each field."""
    assert isinstance(message, bytes)
    found: dict[int, list[Value]] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = number()
        value = number()
        if tag & 7 == 2:
            found.setdefault(tag >> 3, []).append(message[at : at + value])
            at += value
        else:
            found.setdefault(tag >> 3, []).append(value)
    return found
