"""The learning rate by step: warm-up, then one linear decay that can span several rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

WARM_UP_SHARE: Final = 0.1
FINAL_SHARE: Final = 0.02


@dataclass(frozen=True)
class Schedule:
    """``total`` steps from ``offset``: a run that is one round of several starts at its own offset."""

    peak: float
    total: int
    offset: int = 0

    def rate(self, step: int) -> float:
        """The rate of this run's step ``step``, counted from 0."""
        done = self.offset + step
        warm_up = max(1, round(WARM_UP_SHARE * self.total))
        if done < warm_up:
            return self.peak * (done + 1) / warm_up
        left = max(0.0, 1 - (done - warm_up) / max(1, self.total - warm_up))
        return self.peak * (FINAL_SHARE + (1 - FINAL_SHARE) * left)


def default_steps(examples: int) -> int:
    """round(25·√n): half is clearly worse, double gains little (facts on training, section 6)."""
    return max(1, round(25 * math.sqrt(examples)))
