"""What the daemon does by itself to keep the registry in order: each night a backup, garbage, the trash, the quota."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio

from orchd.errors import OrchdError
from orchd.registry import Registry, upkeep

LOG = logging.getLogger(__name__)
#: A look at the clock, and at the quota.
EVERY_SECONDS = 600.0
NIGHT_MS = 20 * 3_600_000  # between two rounds of upkeep


class Upkeep:
    """`clock` gives milliseconds since 1970, `quota` is in bytes (0: none)."""

    def __init__(self, registry: Registry, clock: Callable[[], int], quota: int) -> None:
        self._registry = registry
        self._clock = clock
        self._quota = quota
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
            self._try(lambda: upkeep.make_room(self._registry, self._quota))
        if self._clock() - self._last >= NIGHT_MS:
            self._try(lambda: upkeep.collect(self._registry))
            if self._try(lambda: upkeep.backup(self._registry)):
                self._last = self._clock()

    def _try(self, work: Callable[[], object]) -> bool:
        try:
            LOG.info("upkeep: %s", work())
        except (OrchdError, OSError) as error:
            LOG.warning("upkeep: %s", error)
            return False
        return True
