"""What goes into and comes out of the router and its worker. The daemon imports this: no numpy."""

from __future__ import annotations

import math
from array import array
from typing import Any, Final

import msgspec

from orchd.jobs.sandbox import Readable

BASE: Final = ""
"""The name that stands for the plain base."""

SIZE: Final = 1024  # numbers of a vector (`orchd.lm.routing`, which this room's worker imports)
MOST_WIDTH: Final = 1 << 16
KEPT: Final = 10_000
"""A correction's vector is kept as integers, times this."""


class RouteSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Route for the base in the folder ``base``. ``public`` are its public prompts, in groups of at least two; what
    they come to is kept in the work folder as ``public-KEY``, since it is the same the next time."""

    base: Readable
    public: tuple[tuple[str, ...], ...]
    key: str


class RouteEnd(msgspec.Struct, frozen=True, kw_only=True):
    """What a router worker says in the end: how many decisions it made."""

    decisions: int


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter's manifest says (`orchd.records.manifest.Routing`), under the name that it takes part with."""

    name: str
    layer: int
    scale: int
    centroid: tuple[int, ...]
    spread: tuple[int, ...]

    def odd(self, layer: int) -> str | None:
        """Why the numbers can't be used; None where they can. ``layer`` is the receiver's middle one."""
        if self.layer != layer:
            return f"its centroid is of layer {self.layer}; here it is layer {layer}"
        for called, numbers in (("centroid", self.centroid), ("spread", self.spread)):
            if len(numbers) != SIZE:
                return f"its {called} has {len(numbers):,} numbers, and not {SIZE:,}"
            if min(numbers) < 0 or max(numbers) > math.isqrt(MOST_WIDTH) * self.scale:
                return f"its {called} has numbers that no prompt has"
        if not any(self.centroid):
            return "its centroid is zero"
        return None


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """A correction: a request of this vector (`SIZE` 16-bit integers, little-endian, times `KEPT`) is ``name``'s."""

    name: str
    data: bytes

    def vector(self) -> Any:
        """float64 (`SIZE`,). Imports numpy."""
        import numpy as np

        return np.frombuffer(self.data, "<u2").astype(np.float64) / KEPT


def packed(vector: Any) -> bytes:
    """A vector as `Lesson` keeps it."""
    numbers = array("H", (min(65_535, max(0, round(float(one) * KEPT))) for one in vector))
    if numbers.itemsize != 2:
        raise ValueError("this machine has no 16-bit integers")
    return numbers.tobytes()


class Distance(msgspec.Struct, frozen=True, kw_only=True):
    """Mahalanobis, squared. ``name`` empty is the plain base."""

    name: str
    squared: float


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """Who does not take part, and why. ``hostile``: it is placed to catch what is not its own, by ``figure``."""

    name: str
    reason: str
    hostile: bool = False
    figure: float = 0.0


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Who is to answer (empty: the plain base) and why; ``unsure`` is who is nearly as near. ``distances`` are nearest
    first; ``tokens`` of the message were looked at, and with ``cut`` it was longer."""

    name: str
    why: str
    unsure: str | None = None
    distances: tuple[Distance, ...] = ()
    tokens: int = 0
    cut: bool = False


# ---- the conversation with the worker: one JSON object a line, both ways ------------------------------------------


class Shelve(msgspec.Struct, frozen=True, kw_only=True, tag="shelve", tag_field="do"):
    """From now on these take part, in the order of preference."""

    request: int
    entries: tuple[Entry, ...]
    lessons: tuple[Lesson, ...]


class Choose(msgspec.Struct, frozen=True, kw_only=True, tag="choose", tag_field="do"):
    """Decide for a text."""

    request: int
    text: str


class Look(msgspec.Struct, frozen=True, kw_only=True, tag="look", tag_field="do"):
    """The vector of a text, for a correction."""

    request: int
    text: str


class Average(msgspec.Struct, frozen=True, kw_only=True, tag="average", tag_field="do"):
    """The centroid and the spread of prompts, as integers with `KEPT` as their scale."""

    request: int
    texts: tuple[str, ...]


Command = Shelve | Choose | Look | Average


class Shelved(msgspec.Struct, frozen=True, kw_only=True, tag="shelved", tag_field="event"):
    request: int
    left_out: tuple[LeftOut, ...]


class Chosen(msgspec.Struct, frozen=True, kw_only=True, tag="chosen", tag_field="event"):
    """``ms``: what it took."""

    request: int
    decision: Decision
    ms: float


class Looked(msgspec.Struct, frozen=True, kw_only=True, tag="looked", tag_field="event"):
    request: int
    data: bytes


class Averaged(msgspec.Struct, frozen=True, kw_only=True, tag="averaged", tag_field="event"):
    request: int
    layer: int
    centroid: tuple[int, ...]
    spread: tuple[int, ...]


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failure", tag_field="event"):
    """The numbered error of one request."""

    request: int
    code: int
    message: str
    hint: str | None = None
    field: str | None = None


Answer = Shelved | Chosen | Looked | Averaged | Failed
