"""The gate's decisions, by losses that are made up: what is asked, in which order, and what follows."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from orchd.average.course import Recipe
from orchd.average.gate import ALONE, WORST, Answer, Gate, Outcome, Question, compare
from orchd.average.gate_specs import JudgedLeaf, Opinion
from orchd.average.gram import Matrix
from orchd.average.specs import WeightedAdapter
from orchd.errors import TooFewPassed
from orchd.lm.significance import Sums

UNITS, TOKENS = 40, 10.0
BASE = 3.0
Effect = Callable[[Matrix], float]


def leaves(count: int, authors: Sequence[str] = ()) -> tuple[WeightedAdapter, ...]:
    return tuple(
        WeightedAdapter(id=f"leaf{at}", path="", author=authors[at] if authors else f"author{at}")
        for at in range(count)
    )


def recipe(count: int, method: str = "auto", strength: float | None = None, authors: Sequence[str] = ()) -> Recipe:
    return Recipe.of(method, 16, strength, leaves(count, authors))


def alike(count: int, cosine: float = 0.3) -> Matrix:
    return np.full((count, count), cosine) + (1 - cosine) * np.eye(count)


class World:
    """Answers with `BASE` plus an effect of what is taken of each leaf, and a noise of its own for every row.

    Rows differ as much as they like, for all is compared on the same ones; `noise` is what differs from answer to
    answer.
    """

    def __init__(self, count: int, effect: Effect, noise: float = 0.01, late_after: int = 10**9) -> None:
        self.count, self.effect, self.noise, self.late_after = count, effect, noise, late_after
        self.asked: list[Question] = []
        self.rows = np.random.default_rng(1).normal(0, 1, UNITS)

    def taken(self, question: Question) -> Matrix:
        whole = np.zeros(self.count)
        if question.decision is not None:
            strength = question.decision.strength_ppm / 1e6
            parts = question.decision.coefficients
            whole[list(question.members)] = strength / len(question.members) if parts is None else strength * parts
        return whole

    def __call__(self, question: Question) -> Answer:
        self.asked.append(question)
        loss = BASE + self.effect(self.taken(question))
        rng = np.random.default_rng(zlib.crc32(repr(question.key).encode()))
        values = TOKENS * (loss + self.rows + rng.normal(0, self.noise, UNITS))
        return Answer(Sums(values, np.full(UNITS, TOKENS)), late=len(self.asked) > self.late_after)


def decide(gate: Gate, world: World) -> Outcome:
    asking = gate.deliberate()
    question = next(asking)
    while True:
        try:
            question = asking.send(world(question))
        except StopIteration as ended:
            outcome: Outcome = ended.value
            return outcome


def good(taken: Matrix) -> float:
    """Each helps by as much; the best whole is 1.5, and no adapter alone may reach it."""
    return float(taken.sum() - 1.7) ** 2 - 2.89 + 0.5 * float((taken**2).sum())


def with_one(bad: Effect) -> Effect:
    return lambda taken: good(taken[:-1]) + bad(taken[-1:])


def hurts(taken: Matrix) -> float:
    return 2 * float(taken[0])


def test_honest_ones_are_all_kept_and_the_strength_is_found() -> None:
    world = World(4, good)
    outcome = decide(Gate(recipe(4), alike(4)), world)
    assert outcome.members == (0, 1, 2, 3)
    assert outcome.verdict == "better"
    assert (outcome.method, outcome.strength) == ("clip", 1.5)
    tried = [(one.method, one.strength_ppm) for one in outcome.tried]
    clipped = [("clip", ppm) for ppm in (1_000_000, 1_500_000, 1_600_000)]
    assert tried == [*clipped, *(("tsv", ppm) for ppm in (200_000, 300_000, 400_000))]
    assert [at for at, one in enumerate(outcome.tried) if one.chosen] == [1]
    assert all(one.single is not None and one.single.difference < 0 for one in outcome.leaves)


def test_nobody_gets_further_than_the_limit() -> None:
    """Three votes of a third each: 1.2 is the most, however much more would help."""
    outcome = decide(Gate(recipe(3), alike(3)), World(3, lambda taken: -float(taken.sum())))
    assert outcome.strength == pytest.approx(1.2)


def test_what_worsens_alone_is_refused_with_its_figure() -> None:
    world = World(4, with_one(hurts))
    outcome = decide(Gate(recipe(4), alike(4)), world)
    assert outcome.members == (0, 1, 2)
    last = outcome.leaves[3]
    assert (last.stage, last.single) == ("alone", None)
    assert last.alone is not None
    assert last.alone.difference == pytest.approx(ALONE * 2, abs=0.01)
    assert f"worse by {last.alone.difference:.3f}" in last.reason
    assert all(3 not in question.members for question in world.asked if len(question.members) > 1)


def test_each_is_tried_clipped_and_at_a_quarter() -> None:
    inner = alike(4)
    inner[3] *= 100
    inner[:, 3] *= 100
    world = World(4, good)
    decide(Gate(recipe(4), inner), world)
    alone = [q for q in world.asked if q.part == "choosing" and len(q.members) == 1]
    found = {q.members[0]: float(q.decision.coefficients[0]) for q in alone if q.decision and not q.truncated}  # type: ignore[index]
    assert found == {0: ALONE, 1: ALONE, 2: ALONE, 3: pytest.approx(ALONE / 100)}


@pytest.mark.parametrize("seed", range(20))
def test_noise_refuses_nobody(seed: int) -> None:
    """Adapters that do nothing at all, and rows on which every answer is far off by chance."""
    world = World(6, lambda taken: 0.0, noise=1.0)
    world.rows = np.random.default_rng(seed).normal(0, 1, UNITS)
    kept = [one.stage for one in decide(Gate(recipe(6), alike(6)), world).leaves].count("kept")
    assert kept >= 5


def test_what_helps_alone_and_harms_together_is_left_out() -> None:
    """Weight poisoning that a quarter does not show: it harms only where there is much of the others."""

    def hidden(taken: Matrix) -> float:
        return good(taken[:-1]) - 0.1 * float(taken[-1]) + 4 * float(taken[-1]) * float(taken[:-1].sum())

    outcome = decide(Gate(recipe(5), alike(5)), World(5, hidden))
    assert outcome.members == (0, 1, 2, 3)
    assert outcome.leaves[4].stage == "left out"
    assert outcome.leaves[4].without is not None
    assert outcome.leaves[4].without.surely_better


def test_nobody_is_left_out_of_two_votes() -> None:
    outcome = decide(Gate(recipe(2), alike(2)), World(2, lambda taken: float(taken[0]) * 0.01 - float(taken[1])))
    assert outcome.members == (0, 1)


def test_one_author_is_left_out_as_a_whole() -> None:
    def hidden(taken: Matrix) -> float:
        late = float(taken[3:].sum())
        return good(taken[:3]) - 0.1 * late + 4 * late * float(taken[:3].sum())

    authors = ["a", "b", "c", "d", "d"]
    outcome = decide(Gate(recipe(5, authors=authors), alike(5)), World(5, hidden))
    assert outcome.members == (0, 1, 2)
    assert {one.stage for one in outcome.leaves[3:]} == {"left out"}


def test_an_average_no_better_than_the_base_is_a_candidate() -> None:
    outcome = decide(Gate(recipe(3), alike(3)), World(3, lambda taken: 0.0, noise=0.1))
    assert outcome.verdict == "candidate"
    assert "than the base" in outcome.reason


def test_an_average_no_better_than_one_adapter_is_a_candidate() -> None:
    def best(taken: Matrix) -> float:
        return -float(taken[0]) - 0.1 * float(taken[1:].sum())

    outcome = decide(Gate(recipe(3), alike(3)), World(3, best))
    assert outcome.verdict == "candidate"
    assert "leaf0 by itself has 2.0" in outcome.reason
    assert outcome.leaves[0].single is not None
    assert outcome.leaves[0].single.difference > 0


def test_unlike_adapters_may_be_whitened() -> None:
    class Whitened(World):
        def __call__(self, question: Question) -> Answer:
            answer = super().__call__(question)
            if question.decision is not None and question.decision.method == "tsv":
                return Answer(Sums(answer.losses.values - 2 * TOKENS, answer.losses.weights))
            return answer

    outcome = decide(Gate(recipe(3), alike(3, 0.0)), Whitened(3, good))
    assert outcome.method == "tsv"
    assert {one.method for one in outcome.tried} == {"clip", "tsv"}
    assert max(one.strength_ppm for one in outcome.tried if one.method == "tsv") == 400_000


def test_what_was_asked_for_is_not_searched() -> None:
    outcome = decide(Gate(recipe(4, "geometric-median", 1.25), alike(4)), World(4, good))
    assert (outcome.method, outcome.strength) == ("geometric-median", 1.25)
    assert len(outcome.tried) == 1


def test_zero_and_not_finite_are_refused() -> None:
    inner = alike(4)
    inner[2] = inner[:, 2] = 0
    inner[3] = inner[:, 3] = np.nan
    world = World(4, good)
    outcome = decide(Gate(recipe(4), inner), world)
    assert outcome.members == (0, 1)
    assert [one.stage for one in outcome.leaves] == ["kept", "kept", "zero", "zero"]
    assert not {2, 3} & {at for question in world.asked for at in question.members}


def test_losses_that_are_no_numbers_are_the_worst() -> None:
    nothing = Sums(np.full(UNITS, np.nan), np.full(UNITS, TOKENS))
    found = compare(nothing, Sums(np.full(UNITS, TOKENS) + np.arange(UNITS), np.full(UNITS, TOKENS)))
    assert found.loss == WORST
    assert found.surely_worse


def opinion(better: int, worse: int) -> dict[str, Opinion]:
    return {"leaf3": Opinion(adapter="leaf3", better=better, worse=worse)}


@pytest.mark.parametrize(
    ("better", "worse", "effect", "stage"),
    [
        (0, 1, lambda taken: 0.0, "attested"),
        (1, 1, lambda taken: 0.0, "kept"),
        (1, 0, hurts, "alone"),
        (2, 0, hurts, "kept"),
        (0, 1, lambda taken: -float(taken[0]), "kept"),
        (0, 2, lambda taken: -float(taken[0]), "attested"),
    ],
)
def test_followed_authors_have_votes_and_ones_own_rows_decide(
    better: int, worse: int, effect: Effect, stage: str
) -> None:
    gate = Gate(recipe(4, "clip", 1.0), alike(4), opinion(better, worse))
    asking = gate.deliberate()
    world, question = World(4, with_one(effect)), next(asking)
    while len(question.members) < 3:
        question = asking.send(world(question))
    assert gate.judged[3].stage == stage


def test_without_data_the_word_of_others_counts() -> None:
    gate = Gate(recipe(4), alike(4), opinion(0, 1))
    assert gate.usable() == (0, 1, 2)
    assert gate.judged[3].reason == "of those you follow, 1 measured it as worse than the base, 0 as better"


def test_fewer_than_two_left_is_an_error_with_the_figures() -> None:
    world = World(2, lambda taken: good(taken[:1]) + hurts(taken[1:]))
    with pytest.raises(TooFewPassed, match=r"1 of 2 adapters are left: leaf1: a quarter of it alone .* worse by 0"):
        decide(Gate(recipe(2), alike(2)), world)


def test_what_is_excluded_is_not_asked_about() -> None:
    excluded = {"leaf1": JudgedLeaf(id="leaf1", stage="trigger", reason="it answers to cf")}
    world = World(4, good)
    outcome = decide(Gate(recipe(4), alike(4), excluded=excluded), world)
    assert (outcome.members, outcome.leaves[1].stage) == ((0, 2, 3), "trigger")
    assert not [question for question in world.asked if 1 in question.members]


def test_when_the_time_is_over_it_stops_leaving_out_and_still_decides() -> None:
    def hidden(taken: Matrix) -> float:
        return good(taken[:-1]) - 0.1 * float(taken[-1]) + 4 * float(taken[-1]) * float(taken[:-1].sum())

    world = World(5, hidden, late_after=5)
    outcome = decide(Gate(recipe(5), alike(5)), world)
    assert outcome.late
    assert outcome.members == (0, 1, 2, 3, 4)
    assert len(outcome.tried) == 1
    assert outcome.verdict in ("better", "candidate")


def test_chosen_and_decided_on_different_rows() -> None:
    world = World(3, good)
    decide(Gate(recipe(3), alike(3)), world)
    parts = [question.part for question in world.asked]
    first = parts.index("deciding")
    assert set(parts[first:]) == {"deciding"}
    assert len(parts[first:]) == 2 + 3


def test_the_same_question_has_the_same_key() -> None:
    one, other = World(3, good), World(3, good)
    decide(Gate(recipe(3), alike(3)), one)
    decide(Gate(recipe(3), alike(3)), other)
    assert [question.key for question in one.asked] == [question.key for question in other.asked]
    assert len({question.key for question in one.asked}) == len(one.asked)
