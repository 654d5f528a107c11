"""`/orchd/exchange/1` in plain Python, from docs/SPEC-exchange.md alone: over any stream of bytes, nothing of orchd."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgpack  # type: ignore[import-untyped]
import trio

from tests.vectors.independent import Refused, verify

PROTOCOL = "/orchd/exchange/1"
MESH = "/orchd/1/"
LONGEST_RANGE = 4_194_304

Message = dict[str, Any]
Open = Callable[[], Awaitable[trio.abc.Stream]]


def topic_key(name: str) -> bytes:
    return hashlib.sha256(b"orchd/topic/" + name.encode()).digest()


def topic_cid(name: str) -> bytes:
    """Version 1, of raw bytes, by SHA-256: what libraries that know no bare multihash call the provided key."""
    return b"\x01\x55\x12\x20" + topic_key(name)


class Channel:
    """Frames, and the raw bytes after them."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def ask(self, op: str, wanted: str, **fields: Any) -> Message:
        """Raises `Refused` when the answer is another than the one that is wanted."""
        await self.send({"op": op} | fields)
        answer = await self.receive()
        if answer is None or answer["op"] != wanted:
            raise Refused(f"{answer} instead of {wanted}")
        return answer

    async def send(self, message: Message, raw: bytes = b"") -> None:
        body = msgpack.packb(message)
        await self._stream.send_all(len(body).to_bytes(4, "big") + body + raw)

    async def receive(self) -> Message | None:
        """The next message, None at the end."""
        first = await self._stream.receive_some(1)
        if not first:
            return None
        header = bytes(first) + await self.raw(3)
        message: Message = msgpack.unpackb(await self.raw(int.from_bytes(header, "big")))
        return message

    async def raw(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = await self._stream.receive_some(size - len(data))
            if not part:
                raise Refused("it ends within a message")
            data += part
        return bytes(data)


@dataclass(frozen=True)
class Adapter:
    """A manifest whose signatures hold, its envelope, and its files by their SHA-256, all of whose hashes agree."""

    id: str
    envelope: bytes
    manifest: dict[str, Any]
    files: dict[bytes, bytes]


async def fetch(stream: trio.abc.Stream, adapter: bytes) -> Adapter:
    """An adapter by its digest, over one stream. Raises `Refused` at the first thing that is not as it should be."""
    channel = Channel(stream)
    envelope = (await channel.ask("manifest", "manifest_is", adapter=adapter))["envelope"]
    id, manifest = verify(envelope, "manifest")
    payload = msgpack.unpackb(envelope)["payload"]
    if hashlib.sha256(payload).digest() != adapter:
        raise Refused("the manifest of another adapter")
    files = {entry["sha256"]: await _bring(channel, adapter, entry) for entry in manifest["files"]}
    return Adapter(id, envelope, manifest, files)


async def _bring(channel: Channel, adapter: bytes, entry: dict[str, Any]) -> bytes:
    """As many whole chunks with each question as there may be."""
    size, chunk_size, chunks = entry["size"], entry["chunk_size"], entry["chunks"]
    if len(chunks) != -(-size // chunk_size):
        raise Refused("more or fewer chunks than its size has")
    data = b""
    for offset in range(0, size, (step := LONGEST_RANGE // chunk_size * chunk_size)):
        length = min(step, size - offset)
        wanted = {"adapter": adapter, "blob": entry["sha256"], "offset": offset, "length": length}
        if (await channel.ask("range", "bytes", **wanted))["length"] != length:
            raise Refused("other bytes than were asked for")
        data += await channel.raw(length)
    for number, digest in enumerate(chunks):
        if hashlib.sha256(data[number * chunk_size : (number + 1) * chunk_size]).digest() != digest:
            raise Refused("a chunk with another hash")
    if hashlib.sha256(data).digest() != entry["sha256"]:
        raise Refused("a file with another hash")
    return data


async def serve(stream: trio.abc.Stream, topics: tuple[bytes, ...], adapters: dict[bytes, Adapter]) -> None:
    """Answer a peer, until it closes the stream, from what was announced under open topics."""
    channel = Channel(stream)
    async with stream:
        while (question := await channel.receive()) is not None:
            await channel.send(*_answer(question, topics, adapters))


def _answer(question: Message, topics: tuple[bytes, ...], adapters: dict[bytes, Adapter]) -> tuple[Message, bytes]:
    found = adapters.get(question.get("adapter", b""))
    match question["op"]:
        case "hello":
            return {"op": "hello", "topics": topics}, b""
        case "reconcile":  # what it knows is nothing to compare
            return {"op": "reconciled", "sets": []}, b""
        case "push":
            return {"op": "done"}, b""
        case "manifest" if found:
            return {"op": "manifest_is", "envelope": found.envelope}, b""
        case "range" if found and (data := found.files.get(question["blob"])) is not None:
            part = data[question["offset"] : question["offset"] + question["length"]]
            return {"op": "bytes", "length": len(part)}, part
        case _:
            return {"op": "failed", "reason": "unknown"}, b""
