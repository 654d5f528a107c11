"""One adapter's files from several peers at once, every chunk verified before it is written.

The chunk hashes come from the verified manifest, so a peer can only lie about bytes, and is found out at the first
chunk. Peers take runs of chunks from one queue; what a lost or lying peer had taken goes back to the queue.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import trio
from libp2p.peer.id import ID

from orchd.errors import DigestMismatch, DiskFull, NoProvider, OrchdError, PeerRefused
from orchd.net.exchange import RANGE_TIMEOUT_S, Channel
from orchd.net.messages import RANGE_LIMIT, GetRange, Range
from orchd.records import FileEntry, Manifest, Verified

#: Peers that are asked at once.
PEERS = 8
#: Runs that one peer may fail to bring before it is given up.
PATIENCE = 3

OpenChannel = Callable[[ID], AbstractAsyncContextManager[Channel]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Run:
    """Some chunks of a file that follow each other, at most `RANGE_LIMIT` bytes."""

    entry: FileEntry
    first: int
    chunks: tuple[bytes, ...]

    @property
    def offset(self) -> int:
        return self.first * self.entry.chunk_size

    @property
    def length(self) -> int:
        return min(len(self.chunks) * self.entry.chunk_size, self.entry.size - self.offset)

    def check(self, peer: ID, data: bytes) -> None:
        """Raises `DigestMismatch` naming the peer, `PeerRefused` when it has fewer bytes than it should."""
        if len(data) < self.length:
            raise PeerRefused(f"{peer} has only {len(data)} of {self.length} bytes of {self.entry.path}")
        view, size = memoryview(data), self.entry.chunk_size
        whole = len(data) == self.length
        for number, wanted in enumerate(self.chunks):
            if not whole or hashlib.sha256(view[number * size : (number + 1) * size]).digest() != wanted:
                raise DigestMismatch(
                    f"chunk {self.first + number} of {self.entry.path} from {peer} is not what the author signed"
                )


def runs_of(entry: FileEntry) -> list[Run]:
    """The file's chunks in runs."""
    step = max(1, RANGE_LIMIT // entry.chunk_size)
    return [Run(entry, first, entry.chunks[first : first + step]) for first in range(0, len(entry.chunks), step)]


class Download:
    """The state of one download into `folder`. `refused` is told of each peer that is dropped."""

    def __init__(
        self,
        manifest: Verified[Manifest],
        entries: Iterable[FileEntry],
        folder: Path,
        open_channel: OpenChannel,
        progress: Progress,
        refused: Callable[[ID, OrchdError], None],
    ) -> None:
        self._adapter = manifest.digest
        self._open_channel = open_channel
        self._progress, self._refused = progress, refused
        self._entries = tuple(entries)
        self._paths = {entry.sha256: folder / entry.path for entry in self._entries}
        self._waiting = deque(run for entry in self._entries for run in runs_of(entry))
        self._left = len(self._waiting)
        self._total = manifest.record.size
        self._done = self._total - sum(entry.size for entry in self._entries)
        self._changed = trio.Event()
        self._failures: list[OrchdError] = []

    async def run(self, peers: Sequence[ID]) -> dict[str, Path]:
        """Fetch everything; the new files by name. Raises the worst of what the peers did when none is left."""
        for path in self._paths.values():
            path.touch()
        self._progress(self._done, self._total)
        async with trio.open_nursery() as nursery:
            for peer in peers[:PEERS]:
                nursery.start_soon(self._work, peer, nursery.cancel_scope)
        if self._left:
            raise self._verdict()
        return {entry.path: self._paths[entry.sha256] for entry in self._entries}

    def _verdict(self) -> OrchdError:
        worst = [error for error in self._failures if isinstance(error, DigestMismatch | DiskFull)]
        return (worst or self._failures or [NoProvider("nobody is left to fetch it from")])[0]

    async def _work(self, peer: ID, everybody: trio.CancelScope) -> None:
        failures = 0
        while failures < PATIENCE and await self._something_to_do():
            try:
                async with self._open_channel(peer) as channel:
                    while (run := await self._take()) is not None:
                        await self._bring(channel, run)
                        failures = 0
            except DigestMismatch as error:
                self._failures.append(error)
                self._refused(peer, error)
                return
            except DiskFull as error:
                self._failures.insert(0, error)
                everybody.cancel()
            except OrchdError as error:
                failures += 1
                self._failures.append(error)

    async def _something_to_do(self) -> bool:
        """Whether a run waits; while others still work, theirs may come back."""
        while not self._waiting and self._left:
            await self._changed.wait()
        return bool(self._waiting)

    async def _take(self) -> Run | None:
        return self._waiting.popleft() if await self._something_to_do() else None

    async def _bring(self, channel: Channel, run: Run) -> None:
        question = GetRange(adapter=self._adapter, blob=run.entry.sha256, offset=run.offset, length=run.length)
        try:
            answer = await channel.ask(question, Range, RANGE_TIMEOUT_S)
            run.check(channel.peer, answer.data)
            await trio.to_thread.run_sync(_write, self._paths[run.entry.sha256], run.offset, answer.data)
        except BaseException:
            self._waiting.appendleft(run)
            self._tell()
            raise
        self._left -= 1
        self._done += run.length
        self._tell()
        self._progress(self._done, self._total)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _write(path: Path, offset: int, data: bytes) -> None:
    """Raises `DiskFull`."""
    try:
        with path.open("r+b", buffering=0) as file:
            view = memoryview(data)
            while view.nbytes:
                written = os.pwrite(file.fileno(), view, offset)
                view, offset = view[written:], offset + written
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no room for {path.name}") from None
        raise
