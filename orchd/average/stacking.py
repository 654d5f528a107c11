"""From a decision over some of the leaves to what a stack of all their factors is multiplied by, module by module."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchd.average.combine import spectrum
from orchd.average.course import RankOf
from orchd.average.decide import Decision
from orchd.average.gram import Factors, Grams
from orchd.average.opened import Opened
from orchd.lm.middle import Middle


class Among(Opened):
    """Some of opened adapters, at ascending places; their Gram matrices are cut out of those of all."""

    def __init__(self, whole: Opened, members: Sequence[int]) -> None:
        super().__init__([whole.adapters[at] for at in members], keep=False)
        self._whole, self._members = whole, set(members)

    def grams(self, name: str, factors: Sequence[Factors] | None = None) -> Grams:
        grams = self._whole.grams(name)
        present = self._whole.present(name)
        kept = [place for place, at in enumerate(present) if at in self._members]
        rows = self.rows(name)
        return Grams(
            a=grams.a[np.ix_(rows, rows)],
            b=grams.b[np.ix_(rows, rows)],
            ranks=tuple(grams.ranks[place] for place in kept),
            scales=tuple(grams.scales[place] for place in kept),
        )

    def rows(self, name: str) -> list[int]:
        """Where the members' directions of one module are in the stack of all."""
        found, start = list[int](), 0
        for at in self._whole.present(name):
            rank = self._whole.adapters[at].modules[name].rank
            if at in self._members:
                found += range(start, start + rank)
            start += rank
        return found


def turned(source: Among, decision: Decision, rank_of: RankOf | None) -> dict[str, Middle]:
    """By module of the members; with `rank_of` cut off to the rank that is written."""
    found = {}
    for name in source.names:
        rows, present = source.rows(name), source.present(name)
        first, count = rows[0], rows[-1] + 1 - rows[0]
        at = [row - first for row in rows]
        if rank_of is None and decision.coefficients is not None:
            strengths = [float(decision.coefficients[i]) * decision.strength_ppm / 1e6 for i in present]
            modules = [source.adapters[i].modules[name] for i in present]
            diagonal = np.zeros(count)
            diagonal[at] = [w * m.scale for w, m in zip(strengths, modules, strict=True) for _ in range(m.rank)]
            found[name] = Middle(first, diagonal)
            continue
        grams = source.grams(name)
        middle = decision.middle(grams, present)
        small_left, small_right = middle, np.eye(len(rows))
        if rank_of is not None:
            spread = spectrum(grams, middle)
            best = spread.best(rank_of(name, spread))
            small_left, small_right = best.left, best.right
        left, right = np.zeros((count, small_left.shape[1])), np.zeros((small_right.shape[0], count))
        left[at], right[:, at] = small_left, small_right
        found[name] = Middle(first, right, left)
    return found
