"""The learning rate by step: warm-up, a plateau, then a linear decay. One schedule can span several rounds.

A decay over the second half rather than over all of it: in three rounds of 100 steps on the invented language (three
seeds) the average then translates 95-97 % of the mixed sentences and a single adapter of the last round 0-1 %; with
a decay from the start it is 99 % and up to 2.3 %, for there the last round changes too little to forget the other half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WARM_UP_SHARE: Final = 0.1
DECAY_SHARE: Final = 0.5
FINAL_SHARE: Final = 0.02


@dataclass(frozen=True)
class Schedule:
    """``total`` steps from ``offset``: a run that is one round of several starts at its own offset. ``warm_up`` is in
    steps (None: `WARM_UP_SHARE` of them)."""

    peak: float
    total: int
    offset: int = 0
    warm_up: int | None = None

    def rate(self, step: int) -> float:
        """The rate of this run's step ``step``, counted from 0."""
        done = self.offset + step
        warm_up = max(1, round(WARM_UP_SHARE * self.total)) if self.warm_up is None else self.warm_up
        if done < warm_up:
            return self.peak * (done + 1) / warm_up
        left = max(0.0, (self.total - done) / (DECAY_SHARE * self.total))
        return self.peak * min(1.0, FINAL_SHARE + (1 - FINAL_SHARE) * left)
