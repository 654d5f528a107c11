"""Which adapter a prompt is for, from what strangers' manifests carry and the base's own public prompts. Pure numpy.

A prompt is a vector (`orchd.lm.routing`); so is each adapter's centroid. They are compared by Mahalanobis distance
under one covariance: its correlations are those of the base's public prompts, shrunk, its variances those that the
adapters tell (measured beside either alone in benchmarks/route: together they are the best). The plain base takes part
with the mean of each group of its public prompts, so that *none of them* is an answer like the others.

Nobody's own spread is used in its own distance, so that a wide one catches nothing; a centroid that lies where the
base's own prompts are, or among another adapter's, is told with its figure and left out (`Shelf.left_out`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from orchd.lm.routing import SIZE
from orchd.lm.routing import Vector as Seen
from orchd.serve.routes import BASE, Decision, Distance, Entry, LeftOut, Lesson

SHRUNK: Final = 0.7
"""Of the correlations: with as many public prompts as there are, what lies off the diagonal is mostly chance."""

FLOOR: Final = 0.05
"""Of the mean variance, added to each: a number that was zero in all prompts would decide alone."""

WIDEST: Final = 3.0
"""Times the base's spread, in the middle: honest adapters, who know one topic, have half of it to once."""

CAUGHT: Final = 0.05
"""Of the base's own prompts: an adapter that would get more of them is placed to catch."""

NEAR: Final = 7.7
"""Between two centroids. Prompts vary 2.7 times as much between centroids as the covariance says (benchmarks/route), so
at this distance one in twelve of the requests goes to the other; honest adapters of unlike skills are 8.5 apart."""

FAR: Final = 4.0
"""Times `SIZE`, of a squared distance: of an adapter's own prompts one in a hundred has 2.7."""

MARGIN: Final = 0.03
"""Of the squared distance: where the second is not farther than this, two in three are right; above, 98 in 100."""

SAME: Final = 0.5
"""Times `SIZE`: two prompts of one topic are 2 apart, so that what is this near is the same request in other words."""


Vector = npt.NDArray[np.float64]


class Place(NamedTuple):
    """An adapter as it takes part: float64 (`SIZE`,) each."""

    name: str
    centroid: Vector
    spread: Vector


class _Taught(NamedTuple):
    """Corrections that name one answer: their mean and each of them, in even coordinates."""

    name: str
    mean: Vector
    each: Vector

    @property
    def number(self) -> int:
        return len(self.each)


class Shelf:
    """The adapters that take part, in the order of preference: of two that are too near, the first stays.

    ``public`` are the vectors of the base's public prompts in groups, float32 (prompts, `SIZE`) each, with at least two
    prompts in each. ``lessons`` are the user's corrections. ``left_out`` says who does not take part, and why.
    """

    def __init__(
        self, public: Sequence[Seen], entries: Sequence[Entry], layer: int, lessons: Sequence[Lesson] = ()
    ) -> None:
        self.left_out: list[LeftOut] = []
        self._base_variance = _floored(np.concatenate(public).astype(np.float64).var(0))
        places = [place for entry in entries if (place := self._taken(entry, layer)) is not None]
        self._turn = _evened(public, self._variance(places))
        self._public = [self._even(group) for group in public]
        self._plain = np.stack([group.mean(0) for group in self._public])
        self._places = [place for place in places if not self._catches_the_base(place)]
        self._places = self._apart()
        self._centroids = self._even(np.stack([one.centroid for one in self._places])) if self._places else None
        self._taught = self._learnt(lessons)

    @property
    def names(self) -> tuple[str, ...]:
        """Who takes part, without the base."""
        return tuple(place.name for place in self._places)

    def decide(self, vector: Seen) -> Decision:
        """Whose the prompt of this vector is."""
        if not vector.any():
            return Decision(name=BASE, why="the message says nothing that could be told apart")
        point = self._even(vector)
        distances = self._distances(point)
        lesson = self._lesson(point)
        best, second = distances[0], distances[1] if len(distances) > 1 else None
        if lesson:
            why = "you corrected this request, or one that is nearly the same"
            return Decision(name=lesson, why=why, distances=tuple(distances))
        if best.name != BASE and best.squared > FAR * SIZE:
            return Decision(name=BASE, why="nothing is near", distances=tuple(distances))
        if second is not None and second.squared < best.squared * (1 + MARGIN):
            unsure = second.name
            why = f"nearest, with {_called(unsure)} nearly as near"
        else:
            unsure, why = None, "nearest" if len(distances) > 1 else "no adapter takes part"
        return Decision(name=best.name, why=why, unsure=unsure, distances=tuple(distances))

    # ---- who takes part -----------------------------------------------------------------------------------------

    def _taken(self, entry: Entry, layer: int) -> Place | None:
        """None where its numbers can't be used, or are wider than any topic is."""
        if (odd := entry.odd(layer)) is not None:
            self.left_out.append(LeftOut(name=entry.name, reason=odd))
            return None
        centroid, spread = (np.array(part, np.float64) / entry.scale for part in (entry.centroid, entry.spread))
        place = Place(entry.name, centroid, spread)
        wide = float(np.median(place.spread / np.sqrt(self._base_variance)))
        if wide > WIDEST:
            reason = f"its spread is {wide:.1f} times that of the base's own prompts: it would be near to everything"
            self.left_out.append(LeftOut(name=entry.name, reason=reason, hostile=True, figure=wide))
            return None
        return place

    def _catches_the_base(self, place: Place) -> bool:
        middle = self._even(place.centroid)
        for group in self._public:
            own = ((group[:, None] - self._plain) ** 2).sum(-1).min(1)
            share = float((((group - middle) ** 2).sum(-1) < own).mean())
            if share > CAUGHT:
                reason = f"it would catch {share:.0%} of the base's own prompts (at most {CAUGHT:.0%})"
                self.left_out.append(LeftOut(name=place.name, reason=reason, hostile=True, figure=share))
                return True
        return False

    def _apart(self) -> list[Place]:
        """Without those that are too near to an earlier one."""
        kept: list[tuple[Place, Vector]] = []
        for place in self._places:
            middle = self._even(place.centroid)
            near = [(float(np.linalg.norm(middle - other)), one.name) for one, other in kept]
            distance, name = min(near, default=(math.inf, ""))
            if distance < NEAR:
                reason = f"it is too near to {name}, which comes first (distance {distance:.1f}, at least {NEAR})"
                self.left_out.append(LeftOut(name=place.name, reason=reason, figure=distance))
            else:
                kept.append((place, middle))
        return [place for place, _ in kept]

    # ---- distances ----------------------------------------------------------------------------------------------

    def _variance(self, places: Sequence[Place]) -> Vector:
        """The mean of what the adapters tell, none of which counts as more than `WIDEST` times the base's."""
        if not places:
            return self._base_variance
        told = np.stack([place.spread**2 for place in places])
        return _floored(np.minimum(told, WIDEST**2 * self._base_variance).mean(0))

    def _even(self, vectors: Vector | Seen) -> Vector:
        """In coordinates in which the covariance is one."""
        turned: Vector = vectors @ self._turn
        return turned

    def _distances(self, point: Vector) -> list[Distance]:
        """To each that takes part and to the base, nearest first."""
        squared = {BASE: float(((point - self._plain) ** 2).sum(-1).min())}
        if self._centroids is not None:
            each = ((point - self._centroids) ** 2).sum(-1)
            squared |= {place.name: float(one) for place, one in zip(self._places, each, strict=True)}
        for taught in self._taught:
            told = 1 + 1 / taught.number
            own = float(((point - taught.mean) ** 2).sum()) / told + SIZE * math.log(told)
            squared[taught.name] = min(own, squared.get(taught.name, math.inf))
        found = [Distance(name=name, squared=one) for name, one in squared.items()]
        return sorted(found, key=lambda one: one.squared)

    def _learnt(self, lessons: Sequence[Lesson]) -> list[_Taught]:
        """Of those that take part. A mean of few is known the less (`_distances`: the predictive density of one more
        prompt after so many, their covariance known)."""
        here = {BASE, *self.names}
        by_name: dict[str, list[Vector]] = {}
        for lesson in lessons:
            if lesson.name in here:
                by_name.setdefault(lesson.name, []).append(self._even(lesson.vector()))
        return [_Taught(name, np.mean(each, 0), np.stack(each)) for name, each in by_name.items()]

    def _lesson(self, point: Vector) -> str | None:
        """What the user said of this request, or one that is nearly the same; the last word counts."""
        near = [(float(((taught.each - point) ** 2).sum(-1).min()), taught.name) for taught in self._taught]
        distance, name = min(near, default=(math.inf, ""))
        return name if distance < SAME * SIZE else None


def _called(name: str) -> str:
    return name or "the plain base"


def _floored(variance: Vector) -> Vector:
    floored: Vector = variance + FLOOR * variance.mean() + 1e-12
    return floored


def _evened(public: Sequence[Seen], variance: Vector) -> Vector:
    """float64 (`SIZE`, `SIZE`): what makes the covariance one, which has these variances and the correlations of the
    public prompts around the mean of their group."""
    covariance = np.zeros((SIZE, SIZE))
    for group in public:
        covariance += np.cov(group.astype(np.float64).T)
    covariance += np.eye(SIZE) * (np.trace(covariance) / SIZE * 1e-2 + 1e-12)
    scale = np.sqrt(np.diag(covariance))
    correlation = covariance / scale / scale[:, None] * (1 - SHRUNK) + np.eye(SIZE) * SHRUNK
    deviation = np.sqrt(variance)
    lower = np.linalg.cholesky(correlation * deviation * deviation[:, None])
    turn: Vector = np.linalg.inv(lower).T
    return turn
