"""What authors make: adapters with real signed records, and files of a few tokens instead of megabytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from orchd.errors import OrchdError, PeerMisbehaved
from orchd.identity import Identity
from orchd.records import Announcement, BaseRef, Manifest, Record, Revocation, Verified, sign, verify, verify_any
from orchd.records.ids import sha256
from orchd.records.manifest import AdapterInfo, FileEntry
from tests.helpers import bare_manifest
from tests.sim.world import Peer

CHUNK_SIZE = 4 << 20
BASE = sha256(b"base")


@dataclass(frozen=True)
class Work:
    """An adapter: its manifest, and the bytes that stand for each of its chunks."""

    manifest: Verified[Manifest]
    chunks: tuple[bytes, ...]
    announcement: Verified[Announcement]

    @property
    def id(self) -> bytes:
        return self.manifest.digest


@cache
def identity(name: str) -> Identity:
    return Identity.from_seed(sha256(name.encode()))


def make(author: Identity, name: str, size: int, topics: tuple[str, ...], seq: int, now_ms: int) -> Work:
    """`size` in bytes."""
    count = -(-size // CHUNK_SIZE)
    chunks = tuple(f"{name}/{number}".encode() for number in range(count))
    file = FileEntry(
        path="adapter_model.safetensors",
        size=size,
        sha256=sha256(b"".join(chunks)),
        chunk_size=CHUNK_SIZE,
        chunks=tuple(map(sha256, chunks)),
    )
    manifest = sign(
        bare_manifest(
            name=name,
            created_ms=now_ms,
            author=author.public_key,
            base=BaseRef(fingerprint=BASE, hint="tiny", architecture="Tiny"),
            adapter=AdapterInfo(
                format="peft",
                rank=8,
                alpha_milli=8000,
                rslora=False,
                target_modules=("q_proj",),
                dtype="F32",
                parameters=size // 4,
                capabilities=(),
            ),
            files=(file,),
        ),
        author,
    )
    return Work(manifest, chunks, announce(author, manifest.digest, size, topics, seq, now_ms))


def announce(
    author: Identity, adapter: bytes, size: int, topics: tuple[str, ...], seq: int, now_ms: int
) -> Verified[Announcement]:
    return sign(
        Announcement(
            manifest=adapter,
            topics=topics,
            size=size,
            created_ms=now_ms,
            base=BASE,
            author=author.public_key,
            seq=seq,
        ),
        author,
    )


def revoke(author: Identity, adapter: bytes, now_ms: int) -> Verified[Revocation]:
    return sign(
        Revocation(manifest=adapter, reason="it learned names", created_ms=now_ms, author=author.public_key), author
    )


def forged(envelope: bytes) -> bytes:
    """The same record with another text, under the old signature."""
    return envelope[:-1] + bytes([envelope[-1] ^ 1])


# ---- what a signature says does not change: looked at once for all nodes -------------------------------------------


@cache
def record_in(envelope: bytes) -> Verified[Record] | OrchdError:
    try:
        return verify_any(envelope)
    except OrchdError as error:
        return error


@cache
def manifest_in(envelope: bytes) -> Verified[Manifest] | OrchdError:
    try:
        return verify(envelope, Manifest)
    except OrchdError as error:
        return error


def check(peer: Peer, envelopes: Iterable[bytes]) -> list[Verified[Record]]:
    """As `news.check`: raises `PeerMisbehaved`."""
    found = [record_in(envelope) for envelope in envelopes]
    for one in found:
        if isinstance(one, OrchdError):
            raise PeerMisbehaved(f"{peer} sent a record that does not hold: {one}")
    return [one for one in found if not isinstance(one, OrchdError)]
