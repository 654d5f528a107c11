"""Which job is next. Long jobs (training, evaluating) and short ones that somebody waits for (an import, a preview, a
plan) queue in a lane each, so that nobody waits twenty minutes to look at a data set."""

from __future__ import annotations

from collections.abc import Sequence

from orchd.jobs.entry import Entry
from orchd.jobs.kinds import Kinds
from orchd.jobs.states import Progress

UNIT = "jobs"


class Lanes:
    """Two queues, each of which lets ``at_once`` jobs run."""

    def __init__(self, kinds: Kinds, at_once: int) -> None:
        self._kinds = kinds
        self._at_once = at_once
        self._waiting: list[Entry] = []
        self._running: list[Entry] = []

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def waiting(self) -> Sequence[Entry]:
        return tuple(self._waiting)

    def add(self, entry: Entry) -> None:
        self._waiting.append(entry)

    def leave(self, entry: Entry) -> None:
        """It waits no more, or its place is free."""
        self._waiting = [one for one in self._waiting if one is not entry]
        self._running = [one for one in self._running if one is not entry]

    def next(self) -> Entry | None:
        """The first that may start; it has its place from now on."""
        found = next((one for one in self._waiting if len(self._in_lane(one, self._running)) < self._at_once), None)
        if found is not None:
            self._waiting.remove(found)
            self._running.append(found)
        return found

    def wait(self, entry: Entry) -> Progress:
        """What one that waits waits for, and the seconds until a place is free, where that is known."""
        running = self._in_lane(entry, self._running)
        before = self._in_lane(entry, self._waiting[: self._waiting.index(entry)])
        known = [one.job.progress.eta_s for one in running if one.job.progress is not None]
        left = min((seconds for seconds in known if seconds is not None), default=None)
        told = f"for {running[0].job.title}" if running else "for its turn"
        others = len(running) - 1 + len(before)
        told += f" and {others} more" if others > 0 else ""
        return Progress(done=0, total=0, unit=UNIT, eta_s=left, figures={"waits": told})

    def _in_lane(self, entry: Entry, others: Sequence[Entry]) -> list[Entry]:
        return [one for one in others if self._is_short(one) == self._is_short(entry)]

    def _is_short(self, entry: Entry) -> bool:
        kind = self._kinds.get(entry.job.kind)
        return kind is not None and kind.short
