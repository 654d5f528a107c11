"""Everything that happens on this node, numbered: kept on disk for a while, and told to whoever listens.

`EventLog.subscribe(after)` gives first what is on disk after that number, then what happens, without a gap and
without a repetition. Numbers grow over restarts and crashes. Progress is thinned on disk to one a second and job;
a subscriber that keeps up gets all of it, one that falls behind is caught up from disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import trio

from orchd.jobs.eventfiles import EventFiles, Sequence

KINDS = (
    "adapter.admitted",
    "adapter.announced",
    "adapter.attested",
    "adapter.fetching",
    "adapter.quarantined",
    "adapter.recomputed",
    "adapter.refused",
    "adapter.released",
    "adapter.revoked",
    "adapter.update_refused",
    "adapter.update_untested",
    "adapter.updated",
    "author.equivocated",
    "author.key_changed",
    "deployment.ready",
    "deployment.rolled_back",
    "federation.announced",
    "federation.round",
    "job.cancelled",
    "job.cancelling",
    "job.done",
    "job.failed",
    "job.interrupted",
    "job.progress",
    "job.queued",
    "job.started",
    "net.peer.banned",
    "net.peer.connected",
    "net.peer.lost",
    "route.chosen",
    "topic.joined",
    "topic.left",
    "trust.changed",
)
"""Every kind of event that some room emits."""

PROGRESS = "job.progress"
PROGRESS_MS = 1_000
"""On disk, one progress event a job in this time."""

BUFFERED = 2_048
"""Events that wait in memory for a slow subscriber before it is sent back to the disk."""

BATCH = 256
"""Events read from disk at once."""

Clock = Callable[[], int]
"""Milliseconds since 1970."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened. `data` is plain JSON."""

    seq: int
    time_ms: int
    kind: str
    job: str | None = None
    data: dict[str, Any] = {}


class EventLog:
    """The one event log of a node. For the daemon's own thread: nothing here may be called from another."""

    def __init__(self, state_dir: Path, clock: Clock) -> None:
        self.clock = clock
        self._files = EventFiles(state_dir / "events")
        self._files.prune(clock())
        self._sequence = Sequence(state_dir / "events" / "seq", at_least=self._files.last_seq())
        self._subscriptions: set[Subscription] = set()
        self._saved_progress: dict[str, tuple[int, bool]] = {}

    @property
    def last(self) -> int:
        """The number of the newest event."""
        return self._sequence.last

    def emit(self, kind: str, data: Mapping[str, Any], job: str | None = None) -> Event:
        """Record that something happened and tell the subscribers. Never waits for any of them."""
        event = Event(seq=self._sequence.next(), time_ms=self.clock(), kind=kind, job=job, data=dict(data))
        if self._worth_keeping(event):
            self._files.append(event.job, event.seq, msgspec.json.encode(event) + b"\n")
        for subscription in self._subscriptions:
            subscription._push(event)
        return event

    def subscribe(
        self, after: int | None = None, *, job: str | None = None, kinds: Collection[str] = ()
    ) -> Subscription:
        """Events after number `after` (None: from now on), of one job or some kinds if given.

        The subscription counts from this call on, not from the first `async for`. `close` it in the end.
        """
        subscription = Subscription(self, after, job, frozenset(kinds))
        self._subscriptions.add(subscription)
        return subscription

    def read(self, after: int, until: int, job: str | None = None) -> Iterator[Event]:
        """The events on disk with `after` < seq <= `until`, in order. Reads files: for a thread."""
        for line in self._files.read(after, until, job):
            try:
                yield msgspec.json.decode(line, type=Event)
            except msgspec.DecodeError:
                continue  # a crash tore this line

    def prune(self) -> None:
        """Remove event files that are older than 30 days. Called at start and once a day."""
        self._files.prune(self.clock())

    def close(self) -> None:
        for subscription in list(self._subscriptions):
            subscription.close()
        self._sequence.close()

    def _worth_keeping(self, event: Event) -> bool:
        if event.job is None:
            return True
        if event.kind != PROGRESS:
            self._saved_progress.pop(event.job, None)
            return True
        before = self._saved_progress.get(event.job)
        complete = event.data.get("done") == event.data.get("total")
        if before is not None and 0 <= event.time_ms - before[0] < PROGRESS_MS and complete <= before[1]:
            return False
        self._saved_progress[event.job] = event.time_ms, complete
        return True


class Subscription:
    """An async iterator over events. Made by `EventLog.subscribe`; one task reads it."""

    def __init__(self, log: EventLog, after: int | None, job: str | None, kinds: frozenset[str]) -> None:
        self._log = log
        self._job = job
        self._kinds = kinds
        self._delivered = log.last if after is None else min(after, log.last)
        self._replay: Iterator[Event] | None = None
        self._old: deque[Event] = deque()
        self._live: deque[Event] = deque()
        self._behind = False
        self._closed = False
        self._wake = trio.Event()
        if after is not None:
            self._catch_up()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        await trio.lowlevel.checkpoint()
        while True:
            if self._old:
                return self._deliver(self._old.popleft())
            if self._replay is not None:
                await self._read_on(self._replay)
            elif self._live:
                return self._deliver(self._live.popleft())
            elif self._behind:
                self._catch_up()
            elif self._closed:
                raise StopAsyncIteration
            else:
                self._wake = trio.Event()
                await self._wake.wait()

    def close(self) -> None:
        """End the subscription: the iteration ends after what is already buffered."""
        self._closed = True
        self._log._subscriptions.discard(self)
        self._wake.set()

    def _deliver(self, event: Event) -> Event:
        self._delivered = event.seq
        return event

    def _wants(self, event: Event) -> bool:
        return (self._job is None or event.job == self._job) and (not self._kinds or event.kind in self._kinds)

    def _push(self, event: Event) -> None:
        if self._behind or not self._wants(event):
            return
        if len(self._live) >= BUFFERED:
            self._live.clear()
            self._behind = True
        else:
            self._live.append(event)
        self._wake.set()

    def _catch_up(self) -> None:
        """Read from disk what came up to now. What comes from now on is buffered meanwhile."""
        self._behind = False
        self._replay = self._log.read(self._delivered, self._log.last, self._job)

    async def _read_on(self, replay: Iterator[Event]) -> None:
        batch = await trio.to_thread.run_sync(lambda: list(islice(replay, BATCH)))
        self._old.extend(filter(self._wants, batch))
        if not batch:
            self._replay = None
