"""What the daemon does by itself to keep the registry in order: each night a backup, garbage, the trash, the quota,
the checkpoints of old trainings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio

from orchd.errors import OrchdError
from orchd.registry import Registry, upkeep
from orchd.registry.own import Datasets
from orchd.train.runs import Runs

LOG = logging.getLogger(__name__)
#: A look at the clock, and at the quota.
EVERY_SECONDS = 600.0
NIGHT_MS = 20 * 3_600_000  # between two rounds of upkeep
RUN_MS = 30 * 86_400_000  # what a training keeps beside its adapter goes so long after its last step


class Upkeep:
    """`clock` gives milliseconds since 1970, `quota` is in bytes (0: none)."""

    def __init__(
        self, registry: Registry, datasets: Datasets, runs: Runs, clock: Callable[[], int], quota: int
    ) -> None:
        self._registry = registry
        self._datasets = datasets
        self._runs = runs
        self._clock = clock
        self._quota = quota
        #: Bytes of blobs after the last look, where the quota could not be kept.
        self._too_much = 0
        newest = upkeep.newest_backup(registry)
        #: A daemon that is started anew each morning has its nights too.
        self._last = newest.stat().st_mtime_ns // 1_000_000 if newest else 0

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Until it is cancelled."""
        task_status.started()
        while True:
            await trio.sleep(EVERY_SECONDS)
            await trio.to_thread.run_sync(self.round)

    def round(self) -> None:
        """What is due now. What fails is logged, and tried again the next time."""
        if self._quota:
            self._try(self._make_room)
        if self._clock() - self._last >= NIGHT_MS:
            self._try(self._collect)
            self._try(self._purge)
            self._try(self._forget_runs)
            if self._try(self._back_up):
                self._last = self._clock()

    def _make_room(self) -> None:
        made = upkeep.make_room(self._registry, self._quota)
        if made.adapters:
            LOG.info("thrown out to keep the quota, the longest unused first: %s", ", ".join(made.adapters))
        if made.after > self._quota and made.after != self._too_much:
            LOG.warning(
                "blobs take %.1f MB, more than the quota of %.1f MB: what is left is pinned, deployed or not fetched",
                made.after / 1e6,
                self._quota / 1e6,
            )
        self._too_much = made.after

    def _collect(self) -> None:
        gone = upkeep.collect(self._registry)
        if gone.adapters or gone.blobs:
            adapters = ", ".join(gone.adapters) or "nothing"
            LOG.info("gone for good from the trash: %s; and %d blobs, %d bytes", adapters, gone.blobs, gone.bytes)

    def _purge(self) -> None:
        if gone := self._datasets.purge().datasets:
            LOG.info("data sets gone for good from the trash: %s", ", ".join(gone))

    def _forget_runs(self) -> None:
        if gone := self._runs.forget_before(self._clock() - RUN_MS):
            LOG.info("checkpoints and curves of old trainings removed: %s", ", ".join(gone))

    def _back_up(self) -> None:
        LOG.info("the index was copied to %s", upkeep.backup(self._registry))

    def _try(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except (OrchdError, OSError) as error:
            LOG.warning("%s; it is tried again in %.0f minutes", error, EVERY_SECONDS / 60)
            return False
        return True
