"""A checked recipe: what is averaged how, and the rank of each module; shared by averaging, verifying and planning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchd.average.combine import Spectrum, spectrum
from orchd.average.decide import Decision, decide, plain, wanted_ppm
from orchd.average.gram import Matrix
from orchd.average.opened import Opened
from orchd.average.ranks import energy_rank, water_filled
from orchd.average.recipe import MILLION, weights_ppm
from orchd.average.rules import AUTO, MAX_RANK, MEAN, RankRule, check_wanted
from orchd.average.specs import WeightedAdapter
from orchd.errors import RankRuleInvalid
from orchd.jobs.context import JobContext


class Steps:
    """Progress in modules, over all passes; with a `source` also in bytes that were read from it."""

    def __init__(self, job: JobContext, total: int, source: Opened | None = None) -> None:
        self._job, self._total, self._done, self._source = job, total, 0, source

    def __call__(self) -> None:
        """Before each module. Raises `JobCancelled`."""
        self._tell(min(self._done, self._total))
        self._done += 1

    def finish(self) -> None:
        self._tell(self._total)

    def _tell(self, done: int) -> None:
        read = {} if self._source is None else {"bytes": self._source.bytes_read}
        self._job.progress(done, self._total, "modules", **read)


RankOf = Callable[[str, Spectrum], int]
Step = Callable[[], None]
"""Called before each module, such as `Steps`."""


@dataclass(frozen=True)
class Recipe:
    """A checked plan: the leaves in the order of their ids, their weights in ppm, method, strength and rank rule.

    `method` may be `auto`; a `strength` of None is the method's own; `inherited` multiplies it.
    """

    leaves: tuple[WeightedAdapter, ...]
    ppm: tuple[int, ...]
    method: str
    strength: float | None
    inherited: float
    rule: RankRule

    @classmethod
    def of(
        cls,
        method: str,
        rank: int | str,
        strength: float | None,
        adapters: Sequence[WeightedAdapter],
        inherited: float = 1.0,
    ) -> Recipe:
        """Raises `AverageSpecInvalid`, `RankRuleInvalid`."""
        wanted_ppm(MEAN if check_wanted(method) == AUTO else method, strength, inherited)
        rule = RankRule.parse(rank)
        ppm = weights_ppm([(leaf.id, leaf.weight) for leaf in adapters])
        leaves = tuple(sorted(adapters, key=lambda leaf: leaf.id))
        return cls(leaves, tuple(ppm[leaf.id] for leaf in leaves), method, strength, inherited, rule)

    def passes(self, *, write: bool) -> int:
        """How often the modules are gone through: to count votes, to share out a budget, to write."""
        return (self.method != MEAN) + (self.rule.kind == "budget") + write

    def decide(self, source: Opened, steps: Steps) -> Decision:
        """Looks at all leaves first, where the method counts votes. Raises `LeafIsZero`, `TooFewVotes`."""
        if self.method == MEAN:
            return plain(self.ppm, wanted_ppm(MEAN, self.strength, self.inherited))
        return self.decided(source.inner(steps))

    def decided(self, inner: Matrix) -> Decision:
        """From the leaves' inner products (k, k). Raises as `decide` does."""
        return decide(self.method, inner, self.leaves, self.ppm, self.strength, self.inherited)

    def ranks(self, source: Opened, decision: Decision, steps: Step) -> RankOf:
        """The rank of each module, from its name and spectrum. Raises `RankRuleInvalid`."""
        if self.rule.kind == "budget":
            shared = _shared_out(source, decision, self.rule.rank, steps)
            return lambda name, found: shared[name]
        if self.rule.kind == "energy":
            return lambda name, found: min(MAX_RANK, energy_rank(found.squares, self.rule.energy_ppm / MILLION))
        if self.rule.kind == "stacked":
            return _all_directions
        return lambda name, found: self.rule.rank

    def bound(self, source: Opened) -> int:
        """The largest rank that may be written."""
        return min(self.rule.rank if self.rule.kind == "fixed" else MAX_RANK, source.union.largest)


def _shared_out(source: Opened, decision: Decision, rank: int, steps: Step) -> dict[str, int]:
    squares, costs = {}, {}
    for module in source.union.modules:
        steps()
        grams = source.grams(module.name)
        squares[module.name] = spectrum(grams, decision.middle(grams, source.present(module.name))).squares[:MAX_RANK]
        costs[module.name] = module.rows + module.columns
    return water_filled(squares, costs, rank)


def _all_directions(name: str, found: Spectrum) -> int:
    if found.directions > MAX_RANK:
        raise RankRuleInvalid(
            f"{name[:120]} has {found.directions} directions, an adapter has at most {MAX_RANK}", field="rank"
        )
    return found.directions
