"""One fetch of the simulation: `net/fetch.py` and `net/download.py` with the daemon's own plan, and no streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from orchd.net.policy.plan import Plan, Shape, Span
from orchd.net.policy.scores import Offence
from orchd.records import Manifest, Verified
from orchd.records.ids import sha256
from tests.sim.works import manifest_in
from tests.sim.world import Peer

if TYPE_CHECKING:
    from tests.sim.node import Node

#: Members that are asked for the manifest, in all, and at once after the likeliest one alone; peers that bring
#: something at once are no more.
ASKED, AT_ONCE = 32, 4


class GetManifest(NamedTuple):
    adapter: bytes


class GetChunks(NamedTuple):
    """`size` in bytes."""

    adapter: bytes
    span: Span
    size: int


class Fetch:
    """`members`: who may have it, the likeliest first."""

    def __init__(self, node: Node, adapter: bytes, members: list[Peer]) -> None:
        self.node, self.adapter, self.life = node, adapter, node.life
        self.manifest: Verified[Manifest] | None = None
        self._members = deque(members[:ASKED])
        self._asking: set[Peer] = set()
        self._bringing: set[Peer] = set()
        self._chunks: list[bytes] = []
        self._plan: Plan[Peer] | None = None
        self._ended = self._begun = False

    @property
    def is_whole(self) -> bool:
        return self._plan is not None and not self._plan.left

    def bytes(self) -> tuple[bytes, ...]:
        return tuple(self._chunks)

    def begin(self) -> None:
        at_once = AT_ONCE if self._begun else 1
        self._begun = True
        while self._members and len(self._asking) + len(self._bringing) < at_once:
            peer = self._members.popleft()
            self._asking.add(peer)
            self._ask(peer, GetManifest(self.adapter), partial(self._shown, peer))
        if not self._asking and not self._bringing:
            self._end()

    def _ask(self, peer: Peer, request: GetManifest | GetChunks, then: Callable[[Any], None]) -> None:
        self.node.ask(peer, request, partial(self._answered, then))

    def _answered(self, then: Callable[[Any], None], answer: Any) -> None:
        if self.life == self.node.life and not self._ended:
            then(answer)

    def _shown(self, peer: Peer, envelope: object) -> None:
        self._asking.discard(peer)
        if isinstance(envelope, bytes):
            manifest = manifest_in(envelope)
            if not isinstance(manifest, Verified) or manifest.digest != self.adapter:
                self.node.blame(peer, Offence.LIED)
            else:
                self._start(manifest)
                self._bringing.add(peer)
                self._more(peer)
                return
        self.begin()

    def _start(self, manifest: Verified[Manifest]) -> None:
        if self.manifest is None:
            self.manifest = manifest
            (file,) = manifest.record.files
            self._plan = Plan([Shape(file.size, file.chunk_size)])
            self._chunks = [b""] * len(file.chunks)

    def _more(self, peer: Peer) -> None:
        assert self._plan is not None
        span = self._plan.take(peer, self.node.world.now)
        if span is None:  # others bring what is left
            self._bringing.discard(peer)
            if not self._bringing:
                self.begin()
        else:
            size = self._plan.bytes_of(span)
            self._ask(peer, GetChunks(self.adapter, span, size), partial(self._came, peer, span))

    def _came(self, peer: Peer, span: Span, chunks: object) -> None:
        assert self._plan is not None
        assert self.manifest is not None
        wanted = self.manifest.record.files[0].chunks[span.first : span.end]
        if not isinstance(chunks, tuple):
            self._done_with(peer)
            return
        now = self.node.world.now
        self._plan.heard(peer, self._plan.bytes_of(span), now)
        for number, (chunk, digest) in enumerate(zip(chunks, wanted, strict=False)):
            if not is_signed(chunk, digest):
                self.node.blame(peer, Offence.LIED)
                self._done_with(peer)
                return
            self._chunks[span.first + number] = chunk
            self._plan.came(peer, span.file, span.first + number)
        self._plan.finished(peer, span, now)
        if self._plan.left:
            self._more(peer)
        else:
            self._end()

    def _done_with(self, peer: Peer) -> None:
        assert self._plan is not None
        self._plan.lost(peer)
        self._bringing.discard(peer)
        self.begin()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self.node.fetched(self)


def is_signed(chunk: bytes, digest: bytes) -> bool:
    """Whether these are the bytes that the author signed."""
    return sha256(chunk) == digest
