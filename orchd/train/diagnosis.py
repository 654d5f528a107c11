"""How a training went, read off its curves, and what to change. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from orchd.train.curves import Point, mean, step_losses, validations
from orchd.train.specs import Change, Diagnosis

WINDOW: Final = 10
"""A curve is compared by the means of its tenths."""

RISE: Final = 0.05
"""A validation loss this share above its least, and `RISE_NATS` too, has risen: less is the batch's luck."""

RISE_NATS: Final = 0.02
STILL_FALLING: Final = 0.10
"""By this share and `FALL_NATS` a loss that still falls goes down from one tenth of the run to the next."""

FALL_NATS: Final = 0.05
LEARNT_NOTHING: Final = 0.97
"""A last tenth above this share of the first tenth has learnt nothing to speak of."""

EARLY_SHARE: Final = 0.8
"""A best step later than this share of the run is as good as its end."""


def diagnose(points: Sequence[Point], steps: int, *, continued: bool = False) -> Diagnosis:
    """Fine, overfitted from a step on, not converged, or unstable: one verdict, and the change that answers it.

    ``steps`` is what was planned; ``continued``: it went on from an adapter, which may have learnt it all.
    By validation where there is one; else the training loss can only say that it fell.
    """
    bad = _overfitted(points, steps) or _unstable(points) or _not_converged(points, steps, continued)
    return bad or _fine(points, continued)


def _overfitted(points: Sequence[Point], steps: int) -> Diagnosis | None:
    scored = [(point.step, point.loss) for point in validations(points) if point.loss is not None and point.step]
    if not scored:
        return None
    best, least = min(scored, key=lambda one: (one[1], one[0]))
    last = scored[-1][1]
    if best > EARLY_SHARE * steps or last < least * (1 + RISE) + RISE_NATS:
        return None
    detail = f"the validation loss was least at step {best} ({least:.3f}) and rose to {last:.3f}"
    return Diagnosis(verdict="overfitted", step=best, detail=detail, changes=(Change(option="steps", value=best),))


def _unstable(points: Sequence[Point]) -> Diagnosis | None:
    tenths = _tenths(step_losses(points))
    if len(tenths) < WINDOW or tenths[-1] <= 1.5 * min(tenths) + FALL_NATS or tenths[-1] < 0.5 * tenths[0]:
        return None
    detail = f"the training loss fell to {min(tenths):.3f} and then rose to {tenths[-1]:.3f}"
    return Diagnosis(
        verdict="unstable", detail=detail, changes=(Change(option="learning_rate", value=0.5, times=True),)
    )


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
