"""Who may come in: connections that have not shown their key yet, and how many a place may hold.

A half-open connection costs its sender one packet and us ten seconds of waiting. There is room for `HALF_OPEN` of
them; when it is full the oldest of the place that holds the most makes room. An honest peer shows its key within a
second, so a flood from one place can't keep it out, not even from behind the same address.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from orchd.net.policy.rates import Bucket

#: Connections that are being secured at once: in all, and from one place.
HALF_OPEN, HALF_OPEN_PER_PLACE = 96, 48
#: Secured connections that one place may hold.
CONNECTIONS_PER_PLACE = 64
#: Connections a second that one place may begin, and how many at once after a silence.
ARRIVALS_RATE, ARRIVALS_BURST = 16.0, 192.0
#: Places whose arrivals are remembered.
PLACES = 4096


@dataclass(frozen=True, eq=False)
class Knock:
    """One connection that came in. Compared by identity."""

    place: str


class Gate:
    """Times are seconds of any one clock."""

    def __init__(self) -> None:
        self._half_open: dict[str, OrderedDict[Knock, None]] = {}
        self._inside: dict[str, int] = {}
        self._arrivals: OrderedDict[str, Bucket] = OrderedDict()
        self._count = 0

    def knock(self, place: str, now: float) -> tuple[Knock | None, Knock | None]:
        """Let a connection in, or not (None); and which other one has to go for it, if any."""
        if not self._bucket(place, now).take(now) or self._inside.get(place, 0) >= CONNECTIONS_PER_PLACE:
            return None, None
        out = self._to_make_room(place)
        if out is not None:
            self.gone(out)
        knock = Knock(place)
        self._half_open.setdefault(place, OrderedDict())[knock] = None
        self._count += 1
        return knock, out

    def _to_make_room(self, place: str) -> Knock | None:
        if len(self._half_open.get(place, ())) >= HALF_OPEN_PER_PLACE:
            crowded = place
        elif self._count >= HALF_OPEN:
            crowded = max(self._half_open, key=lambda other: len(self._half_open[other]))
        else:
            return None
        return next(iter(self._half_open[crowded]))

    def secured(self, knock: Knock) -> None:
        """It has shown its key."""
        if self._drop(knock):
            self._inside[knock.place] = self._inside.get(knock.place, 0) + 1

    def gone(self, knock: Knock) -> None:
        """It has ended before it was secured."""
        self._drop(knock)

    def left(self, knock: Knock) -> None:
        """A secured one has ended."""
        self._inside[knock.place] -= 1
        if not self._inside[knock.place]:
            del self._inside[knock.place]

    def _drop(self, knock: Knock) -> bool:
        here = self._half_open.get(knock.place, OrderedDict())
        if knock not in here:
            return False
        del here[knock]
        if not here:
            del self._half_open[knock.place]
        self._count -= 1
        return True

    def _bucket(self, place: str, now: float) -> Bucket:
        if place not in self._arrivals:
            while len(self._arrivals) >= PLACES:
                self._arrivals.popitem(last=False)
            self._arrivals[place] = Bucket(ARRIVALS_RATE, ARRIVALS_BURST, now)
        self._arrivals.move_to_end(place)
        return self._arrivals[place]
