"""How a training went, read off its curves, and what to change. No torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, Protocol

from orchd.train.curves import Point, mean, step_losses, validations
from orchd.train.specs import Change, Diagnosis

WINDOW: Final = 10
"""A curve is compared by the means of its tenths."""

RISE: Final = 0.05
"""A validation loss this share above its least, and `RISE_NATS` too, has risen: less is the batch's luck."""

RISE_NATS: Final = 0.02
HALF_THE_RATE: Final = Change(option="learning_rate", value=0.5, times=True)
STILL_FALLING: Final = 0.10
"""By this share and `FALL_NATS` a loss that still falls goes down from one tenth of the run to the next."""

FALL_NATS: Final = 0.05
LEARNT_NOTHING: Final = 0.97
"""A last tenth above this share of the first tenth has learnt nothing to speak of."""

FALLEN_BACK: Final = 3.0
"""A last tenth above so many times the least mean of `STRETCH` steps in a row, and `FALLEN_BACK_NATS` more, has lost
what had been learnt."""

FALLEN_BACK_NATS: Final = 0.2

STRETCH: Final = 10
NEAR_CHANCE: Final = 0.95
"""A last tenth above this share of the loss of guessing by frequency has learnt no more than how often tokens come."""

EARLY_SHARE: Final = 0.8
"""A best step later than this share of the run is as good as its end."""


class Counted(Protocol):
    """A row's token ids, and which of them count in the loss."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def counted(self) -> Sequence[bool]: ...


def diagnose(
    points: Sequence[Point], steps: int, *, continued: bool = False, chance: float = 0.0, rate_asked: bool = False
) -> Diagnosis:
    """Fine, overfitted from a step on, not converged, or unstable: one verdict, and the change that answers it.

    ``steps`` is what was planned; ``continued``: it went on from an adapter, which may have learnt it all.
    By validation where there is one; else the training loss can only say that it fell. ``chance`` is `chance_loss` of
    the rows (0: not known); ``rate_asked``: the user chose the learning rate, not the plan.
    """
    bad = _unstable(points) or _overfitted(points, steps) or _not_converged(points, steps, continued)
    return bad or _at_chance(points, steps, chance, rate_asked) or _fine(points, continued)


def chance_loss(rows: Iterable[Counted]) -> float:
    """The loss (nats a counted token) of whoever knows how often each token comes and nothing else: the entropy of
    their frequencies."""
    counts = Counter(token for row in rows for token, counted in zip(row.ids, row.counted, strict=True) if counted)
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values())


def _overfitted(points: Sequence[Point], steps: int) -> Diagnosis | None:
    best, least, last = _validated(points)
    if best > EARLY_SHARE * steps or last < least * (1 + RISE) + RISE_NATS:
        return None
    detail = f"the validation loss was least at step {best} ({least:.3f}) and rose to {last:.3f}"
    return Diagnosis(verdict="overfitted", step=best, detail=detail, changes=(Change(option="steps", value=best),))


def _validated(points: Sequence[Point]) -> tuple[int, float, float]:
    """The step of the least validation loss, that loss, and the last one; nothing rose where there is none."""
    scored = [(point.step, point.loss) for point in validations(points) if point.loss is not None and point.step]
    best, least = min(scored, key=lambda one: (one[1], one[0]), default=(0, math.inf))
    return best, least, scored[-1][1] if scored else 0.0


def _unstable(points: Sequence[Point]) -> Diagnosis | None:
    """The training loss itself rose: who is overfitted goes on learning the rows by heart."""
    losses = step_losses(points)
    tenths = _tenths(losses)
    if len(tenths) < WINDOW:
        return None
    least = min(mean(losses[at : at + STRETCH]) for at in range(max(1, len(losses) - STRETCH + 1)))
    rose = tenths[-1] > 1.5 * min(tenths) + FALL_NATS and tenths[-1] >= 0.5 * tenths[0]
    if not rose and tenths[-1] <= FALLEN_BACK * least + FALLEN_BACK_NATS:
        return None
    detail = f"the training loss fell to {least:.3f} and then rose to {tenths[-1]:.3f}"
    return Diagnosis(verdict="unstable", detail=detail, changes=(HALF_THE_RATE,))


def _at_chance(points: Sequence[Point], steps: int, chance: float, rate_asked: bool) -> Diagnosis | None:
    tenths = _tenths(step_losses(points))
    if len(tenths) < WINDOW or tenths[-1] < NEAR_CHANCE * chance or not chance:
        return None
    detail = f"the training loss ended at {tenths[-1]:.3f}: to know how often each token comes gives {chance:.3f}"
    change = HALF_THE_RATE if rate_asked else Change(option="steps", value=2 * steps)
    return Diagnosis(verdict="not converged", detail=detail, changes=(change,))


def _not_converged(points: Sequence[Point], steps: int, continued: bool) -> Diagnosis | None:
    tenths = _tenths(step_losses(points))
    if len(tenths) < WINDOW:
        return None
    if tenths[-1] > LEARNT_NOTHING * tenths[0]:
        if continued:
            return None
        detail = f"the training loss was {tenths[0]:.3f} in the first tenth and {tenths[-1]:.3f} in the last"
        change = Change(option="learning_rate", value=2.0, times=True)
        return Diagnosis(verdict="not converged", detail=detail, changes=(change,))
    fall = tenths[-2] - tenths[-1]
    if fall <= max(FALL_NATS, STILL_FALLING * tenths[-2]):
        return None
    detail = f"the training loss still fell from {tenths[-2]:.3f} to {tenths[-1]:.3f} in the last tenth"
    return Diagnosis(verdict="not converged", detail=detail, changes=(Change(option="steps", value=2 * steps),))


def _fine(points: Sequence[Point], continued: bool) -> Diagnosis:
    tenths = _tenths(step_losses(points))
    detail = f"the training loss fell from {tenths[0]:.3f} to {tenths[-1]:.3f}" if tenths else "no step counted"
    if continued and tenths and tenths[-1] > LEARNT_NOTHING * tenths[0]:
        detail = f"the training loss stayed at about {tenths[-1]:.3f}, as the adapter had it that this one goes on from"
    return Diagnosis(verdict="fine", detail=detail)


def _tenths(losses: Sequence[float]) -> list[float]:
    """Means of ten equal stretches; of as many as there are losses, where those are fewer."""
    parts = min(WINDOW, len(losses))
    edges = [round(at * len(losses) / parts) for at in range(parts + 1)] if parts else []
    return [mean(losses[start:end]) for start, end in pairwise(edges)]
