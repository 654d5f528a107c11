"""Which connections to end, so that there is room for those who share a topic with this node.

The library takes 300 connections and refuses the rest, whoever comes. So of *strangers*, who share no topic, there are
`STRANGERS` at most. Who goes first is of the place that most of them come from: a flood from one address pushes out
itself. Whoever has just come may still say what it shares. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

#: Connections with strangers; connections in all at which not even those who have just come are spared.
STRANGERS, CROWDED = 200, 270
#: Seconds in which a peer may say what it shares.
GRACE_S = 20.0

P = TypeVar("P", bound=Hashable)


@dataclass(frozen=True)
class Stranger(Generic[P]):
    """`since`: when it came, in seconds of the clock that `too_many` is given."""

    peer: P
    place: str
    since: float


def too_many(strangers: Sequence[Stranger[P]], connections: int, now: float) -> list[P]:
    """Those to let go. `connections` counts all, also those of others than strangers."""
    excess = len(strangers) - STRANGERS
    if excess <= 0:
        return []
    crowd = Counter(one.place for one in strangers if one.place)
    spared = now - GRACE_S if connections < CROWDED else now
    waiting = [one for one in strangers if one.since <= spared]
    chosen: list[P] = []
    for _ in range(min(excess, len(waiting))):
        out = min(waiting, key=lambda one: (-crowd[one.place], one.since))
        crowd[out.place] -= 1
        waiting.remove(out)
        chosen.append(out.peer)
    return chosen
