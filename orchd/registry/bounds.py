"""How strong adapters of one base are: the norms ‖s·B A‖ seen for each of its modules, and what lies outside them.

A bound is kept as number, mean and squared deviations (Welford) of the norms' logarithms, because strengths differ by
factors. It learns from admitted adapters of this node's user and of followed authors only, so that a stranger can't
widen it. Only *too strong* is outside: an adapter that hardly changes the base does no harm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from orchd.registry.local_rows import Bound

MIN_SEEN = 4
"""Adapters that must have been seen before anything is outside."""
LEAST_FACTOR = 16.0
"""However alike those seen are, this many times their geometric mean is inside: learning rates and steps differ."""
DEVIATIONS = 5.0


def key(base: str, module: str) -> str:
    """A bound's primary key; `base` is the fingerprint as text."""
    return f"{base} {module}"


def largest(bound: Bound) -> float:
    """The largest norm that is inside; infinity while too few have been seen."""
    if bound.count < MIN_SEEN:
        return math.inf
    deviation = math.sqrt(bound.m2_log / (bound.count - 1))
    return math.exp(bound.mean_log + max(math.log(LEAST_FACTOR), DEVIATIONS * deviation))


def perhaps_outside(known: Mapping[str, Bound], base: str, at_most: Mapping[str, float]) -> list[str]:
    """The modules whose norms have to be known, when each is at most so much."""
    return [
        module
        for module, norm in at_most.items()
        if (bound := known.get(key(base, module))) is not None and not norm <= largest(bound)
    ]


def outside(known: Mapping[str, Bound], base: str, norms: Mapping[str, float]) -> str:
    """The module furthest outside with its figure and how many others are; empty when all are inside."""
    beyond = {
        module: norm / largest(bound)
        for module, norm in norms.items()
        if (bound := known.get(key(base, module))) is not None and norm > largest(bound)
    }
    if not beyond:
        return ""
    worst = max(beyond, key=lambda module: beyond[module])
    bound = known[key(base, worst)]
    more = f", and {len(beyond) - 1} more modules are outside" if len(beyond) > 1 else ""
    return (
        f"the norm of its change to {worst} is {norms[worst]:.4g}; {bound.count} adapters of this base have"
        f" {math.exp(bound.mean_log):.4g} on average, and up to {largest(bound):.4g} is let in{more}"
    )


def learned(known: Mapping[str, Bound], base: str, norms: Mapping[str, float]) -> tuple[Bound, ...]:
    """The bounds after one more adapter, those that have changed. A module that it leaves alone teaches nothing."""
    return tuple(
        _with(known.get(key(base, module)) or Bound(key=key(base, module), count=0, mean_log=0.0, m2_log=0.0), norm)
        for module, norm in norms.items()
        if norm > 0
    )


def _with(bound: Bound, norm: float) -> Bound:
    value, count = math.log(norm), bound.count + 1
    mean = bound.mean_log + (value - bound.mean_log) / count
    squares = bound.m2_log + (value - bound.mean_log) * (value - mean)
    return Bound(key=bound.key, count=count, mean_log=mean, m2_log=squares)


def of_base(rows: Iterable[Bound], base: str) -> dict[str, Bound]:
    """The bounds of one base by their key."""
    return {row.key: row for row in rows if row.key.startswith(f"{base} ")}
