"""How many directions each module keeps: from the squared singular values, falling, to ranks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from orchd.average.gram import Matrix


def energy_rank(squares: Matrix, share: float) -> int:
    """The smallest rank that keeps `share` of Σ σ²; 0 for a module that is zero."""
    total = squares.sum()
    if not total > 0:
        return 0
    kept = np.cumsum(squares)
    return int(np.searchsorted(kept, share * total * (1 - 1e-12))) + 1


def water_filled(squares: Mapping[str, Matrix], costs: Mapping[str, int], rank: int) -> dict[str, int]:
    """Ranks by module that take no more numbers in all than `rank` everywhere and cut off no more.

    `costs` are the numbers that one direction takes, rows + columns. Directions are taken by σ² per number, the best
    first, while they fit. Where the last ones fit so badly that the uniform ranks are better, these are taken.
    """
    budget = rank * sum(costs.values())
    uniform = {name: min(rank, int(np.count_nonzero(found))) for name, found in squares.items()}
    filled = _greedy(squares, costs, budget)
    return max(filled, uniform, key=lambda ranks: _kept(squares, ranks))


def _greedy(squares: Mapping[str, Matrix], costs: Mapping[str, int], budget: int) -> dict[str, int]:
    offers = [
        (-float(square) / costs[name], name)
        for name, found in squares.items()
        for square in found[: np.count_nonzero(found)]
    ]
    ranks = dict.fromkeys(squares, 0)
    closed = set[str]()
    for _, name in sorted(offers):  # within a module they come in the order of its singular values
        if name in closed or costs[name] > budget:
            closed.add(name)
            continue
        budget -= costs[name]
        ranks[name] += 1
    return ranks


def _kept(squares: Mapping[str, Matrix], ranks: Mapping[str, int]) -> float:
    return sum(float(found[: ranks[name]].sum()) for name, found in squares.items())
