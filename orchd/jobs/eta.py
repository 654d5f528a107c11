"""How much longer a job will take, from how fast it went lately."""

from __future__ import annotations

from collections import deque

SPACING_S = 0.25
"""Points closer together than this aren't kept."""

POINTS = 40
"""The speed is taken over the last this many points: at least ten seconds."""


class Estimate:
    """The time left of one stage after another; a stage is a unit and a total."""

    def __init__(self) -> None:
        self._stage: tuple[str, float] | None = None
        self._points: deque[tuple[float, float]] = deque(maxlen=POINTS)

    def seconds_left(self, now_s: float, done: float, total: float, unit: str) -> float | None:
        """Take note of a progress report at `now_s` and estimate; None while nothing is known yet."""
        if (unit, total) != self._stage or (self._points and done < self._points[-1][1]):
            self._stage = (unit, total)
            self._points.clear()
        if not self._points or now_s - self._points[-1][0] >= SPACING_S:
            self._points.append((now_s, done))
        if done >= total:
            return 0.0
        since, before = self._points[0]
        if now_s - since < SPACING_S or done <= before:
            return None
        return round((total - done) * (now_s - since) / (done - before), 1)
