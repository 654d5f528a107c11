"""The gate of a one-shot average: what one's own held-out rows say decides. Sans-I/O: questions out, losses in.

`Gate.deliberate` is a generator. It yields a `Question`, is sent an `Answer`, and returns an `Outcome`. In this order
(`average.md` §4): zero and not finite are refused; near-copies and one author are one vote; each adapter alone, clipped
to the median length and at a quarter of its strength, must not worsen the loss; shares are capped; whose share makes
the sum surely worse is left out, one after another (never chosen forward, which let a backdoor through); strength and
method are chosen; and the finished average is tested, on rows that nothing was chosen by, beside the base and beside
each adapter by itself.

Everything is compared in pairs on the same rows, and "worse" or "better" that decides against somebody is outside the
95 % interval, also with as many tests as are made: noise refuses nobody.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from msgspec.structs import replace

from orchd.average.course import Recipe
from orchd.average.decide import Decision, decide
from orchd.average.gate_specs import Compared, JudgedLeaf, Opinion, Stage, Tried, Verdict
from orchd.average.gram import Matrix, norms
from orchd.average.likeness import likeness
from orchd.average.recipe import MILLION, weights_ppm
from orchd.average.rules import AUTO, DEFENDED, MEAN, METHODS, UNLIKE
from orchd.average.votes import MAX_REACH, Votes, cast_votes, lower_median, useless
from orchd.errors import TooFewPassed
from orchd.lm.significance import Sums, paired

Part = Literal["choosing", "deciding"]
ALONE = 0.25
"""Of its strength, at which each adapter is tried alone (`average.md` §4)."""
SLACK = 0.005
"""Nats a token by which an adapter may worsen the loss, alone or in the average: without it, rows of one domain keep
only what helps that one (`average.md` §4: 2.047 at 0, 1.994 at .005)."""
STRENGTHS = (1.0, 1.5, 2.0, 2.5, 3.0)
WHITENED_STRENGTHS = (0.2, 0.3, 0.4, 0.5)
"""Tried for weighted sums and for TSV-M (`average.md` §0.4, §0.5)."""
MOST_TESTS = 20
"""Of more at a time this many are counted: ten rows can't be surer."""
WORST = 1e3
"""Nats a token that stand for a loss that is no finite number."""


@dataclass(frozen=True)
class Question:
    """What does `decision` over the leaves at these places lose on each row? None: the base alone.

    `truncated`: at the rank that is to be written, else exactly.
    """

    part: Part
    members: tuple[int, ...] = ()
    decision: Decision | None = None
    truncated: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for questions that have the same answer."""
        if self.decision is None:
            return (self.part,)
        taken = None if self.decision.coefficients is None else self.decision.coefficients.tobytes()
        method = self.decision.method if taken is None else ""
        return (self.part, self.members, method, self.decision.strength_ppm, taken, self.truncated)


@dataclass(frozen=True)
class Answer:
    """Nats and counted tokens by unit (conversation or document), float64 (units,). `late`: there is no time left."""

    losses: Sums
    late: bool = False


@dataclass(frozen=True)
class Outcome:
    """`members` are the places of who is in it. `leaves` are all, in the recipe's order."""

    members: tuple[int, ...]
    method: str
    strength: float | None
    verdict: Verdict
    reason: str
    leaves: tuple[JudgedLeaf, ...]
    tried: tuple[Tried, ...]
    against_base: Compared
    late: bool


Deliberation = Generator[Question, Answer, Outcome]


def compare(one: Sums, other: Sums) -> Compared:
    """The loss of `one` beside that of `other` on the same rows."""
    ours, theirs = _finite(one), _finite(other)
    found = paired(Sums(ours.values - theirs.values, ours.weights))
    low, high = found.bounds or (None, None)
    return Compared(loss=ours.ratio, against=theirs.ratio, p=found.p, low=low, high=high)


def _finite(sums: Sums) -> Sums:
    """Losses that are no finite numbers are very bad ones."""
    return Sums(np.where(np.isfinite(sums.values), sums.values, WORST * sums.weights), sums.weights)


def single(strength: float) -> Decision:
    """One adapter, so strong."""
    return Decision("mean", MILLION, np.array([strength]), None)


def surely(found: Compared, tests: int) -> bool:
    """Whether the two differ, where so many tests are made at a time (Bonferroni): of 20 honest ones one would fail."""
    return found.p * min(tests, MOST_TESTS) < 0.05


def refused_by(opinion: Opinion, own: Compared | None, tests: int = 1) -> Stage | None:
    """Whether a leaf is refused, and by whom: each person has a vote, the own rows another, and decide where the votes
    are equal. `tests`: how many leaves are looked at."""
    against_own = own is not None and own.low is not None and own.low > SLACK and surely(own, tests)
    worse = opinion.worse + against_own
    better = opinion.better + (own is not None and own.surely_better)
    if worse > better or (against_own and worse == better):
        return "alone" if against_own else "attested"
    return None


@dataclass
class Gate:
    """`inner` (k, k) are the inner products of the recipe's leaves; `excluded` are refused already, with the reason."""

    recipe: Recipe
    inner: Matrix
    opinions: Mapping[str, Opinion] = field(default_factory=dict)
    excluded: Mapping[str, JudgedLeaf] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._judged: dict[int, JudgedLeaf] = {}
        self._late = False

    @property
    def most_questions(self) -> int:
        """About how many passes over rows it takes: where nobody, or one vote, is left out in the end."""
        return 5 + 4 * len(self.recipe.leaves) + len(STRENGTHS) + len(WHITENED_STRENGTHS)

    def deliberate(self) -> Deliberation:
        """Raises `TooFewPassed`, `TooFewVotes`, `AverageSpecInvalid`."""
        members = self._usable()
        base = yield from self._ask(Question("choosing"))
        members = yield from self._each_alone(members, base)
        members = yield from self._leave_out(members)
        method, strength, tried = yield from self._strongest(members)
        return (yield from self._decide(members, method, strength, tried))

    def usable(self) -> tuple[int, ...]:
        """Without data: who is in it by the figures and the word of others alone. Raises `TooFewPassed`."""
        members = self._usable()
        for at in members:
            self._judge(at, refused_by(self._opinion(at), None), None)
        return self._left(members)

    @property
    def judged(self) -> tuple[JudgedLeaf, ...]:
        return tuple(self._judged[at] for at in range(len(self.recipe.leaves)))

    # ---- the steps ------------------------------------------------------------------------------------------------

    def _usable(self) -> tuple[int, ...]:
        zero = set(useless(self.inner))
        for at, leaf in enumerate(self.recipe.leaves):
            if at in zero:
                reason = "it is zero everywhere, or its numbers are no finite ones"
                self._judged[at] = JudgedLeaf(id=leaf.id, stage="zero", reason=reason)
            else:
                self._judged[at] = self.excluded.get(leaf.id, JudgedLeaf(id=leaf.id, stage="kept"))
        return self._left(range(len(self.recipe.leaves)))

    def _each_alone(self, members: Sequence[int], base: Sums) -> Generator[Question, Answer, tuple[int, ...]]:
        lengths = norms(self.inner)
        mix = self._votes(members).mix
        among = self._among(members)
        limit = lower_median(norms(mix @ among @ mix.T))
        for at in members:
            strength = ALONE * min(1.0, limit / float(lengths[at]))
            found = compare((yield from self._ask(Question("choosing", (at,), single(strength)))), base)
            self._judge(at, refused_by(self._opinion(at), found, len(members)), found)
        return self._left(members)

    def _judge(self, at: int, stage: Stage | None, alone: Compared | None) -> None:
        leaf, told = self.recipe.leaves[at], self._opinion(at)
        reason = ""
        if stage == "alone" and alone is not None:
            reason = (
                f"a quarter of it alone makes your held-out rows worse by {alone.difference:.3f} nats a token"
                f" ({alone.low:.3f} to {alone.high:.3f})"
            )
        if stage == "attested":
            reason = f"of those you follow, {told.worse} measured it as worse than the base, {told.better} as better"
        self._judged[at] = JudgedLeaf(
            id=leaf.id, stage=stage or "kept", reason=reason, alone=alone, better=told.better, worse=told.worse
        )

    def _leave_out(self, members: tuple[int, ...]) -> Generator[Question, Answer, tuple[int, ...]]:
        """Backward elimination over the votes: whose share makes the sum surely worse, the worst first.

        The share goes to nobody meanwhile. Given to the others, leaving out a weak but honest adapter would help too:
        it would make them stronger.
        """
        while len(parts := self._parts(members)) > 2 and not self._late:
            decision = self._summed(members)
            assert decision.coefficients is not None
            whole = yield from self._ask(Question("choosing", members, decision))
            worst: tuple[float, tuple[int, ...], Compared] | None = None
            for part in parts:
                if self._late:
                    break
                coefficients = np.where(np.isin(members, part), 0.0, decision.coefficients)
                without = Decision(decision.method, decision.strength_ppm, coefficients, None)
                found = compare((yield from self._ask(Question("choosing", members, without))), whole)
                for at in part:
                    self._judged[at] = replace(self._judged[at], without=found)
                sure = found.high is not None and found.high < -SLACK and surely(found, len(parts))
                if sure and (worst is None or found.loss < worst[0]):
                    worst = (found.loss, part, found)
            if worst is None:
                break
            _, part, found = worst
            for at in part:
                reason = f"without its share the average is better by {-found.difference:.3f} nats a token on your rows"
                self._judged[at] = replace(self._judged[at], stage="left out", reason=reason)
            members = tuple(at for at in members if at not in part)
        return members

    def _summed(self, members: tuple[int, ...]) -> Decision:
        """A weighted sum of them, at no more than its own strength."""
        inherited, given = self.recipe.inherited, self.recipe.strength
        method = MEAN if self.recipe.method == MEAN else DEFENDED
        return self.decided(members, method, min(1.0, inherited * (1.0 if given is None else given)) / inherited)

    def _strongest(
        self, members: tuple[int, ...]
    ) -> Generator[Question, Answer, tuple[str, float | None, tuple[Tried, ...]]]:
        """Method and strength by the loss at the rank that is written; of equal ones the first, which is weaker."""
        found: list[tuple[str, float | None, Tried]] = []
        seen: set[tuple[str, int]] = set()
        for method, strength in self._candidates(members):
            decision = self.decided(members, method, strength)
            if (method, decision.strength_ppm) in seen or (self._late and found):
                continue
            seen.add((method, decision.strength_ppm))
            losses = yield from self._ask(Question("choosing", members, decision, truncated=True))
            one = Tried(method=method, strength_ppm=decision.strength_ppm, loss=_finite(losses).ratio)
            found.append((method, strength, one))
        method, strength, chosen = min(found, key=lambda one: one[2].loss)
        tried = tuple(replace(one, chosen=one is chosen) for _, _, one in found)
        return method, strength, tried

    def _candidates(self, members: tuple[int, ...]) -> list[tuple[str, float | None]]:
        asked, given = self.recipe.method, self.recipe.strength
        methods = [asked]
        if asked == AUTO and given is None:  # TSV-M was better on alike adapters too: the data says (oneshot-alike)
            methods = [DEFENDED, UNLIKE]
        elif asked == AUTO:
            unlike = likeness(self._among(members), self._votes(members)).kind == "unlike"
            methods = [UNLIKE if unlike else DEFENDED]
        if given is not None:
            return [(method, given) for method in methods]
        return [(method, one) for method in methods for one in self._strengths(members, method)]

    def _strengths(self, members: tuple[int, ...], method: str) -> tuple[float, ...]:
        """What is tried, and the largest at which nobody gets too far."""
        votes = self._votes(members)
        if method == UNLIKE:  # a vote of weight w has g · w of its own strength in it
            most = max(MAX_REACH, 1 / len(votes.members)) / (len(votes.members) * float(votes.weights.max()))
            return tuple(dict.fromkeys(min(one, most) for one in WHITENED_STRENGTHS))
        most = votes.strongest if METHODS[method].voted else max(1.0, MAX_REACH * MILLION / max(self._ppm(members)))
        return tuple(dict.fromkeys(min(one, most) for one in (STRENGTHS if METHODS[method].linear else STRENGTHS[:1])))

    def _decide(
        self, members: tuple[int, ...], method: str, strength: float | None, tried: tuple[Tried, ...]
    ) -> Deliberation:
        base = yield from self._ask(Question("deciding"))
        finished = Question("deciding", members, self.decided(members, method, strength), truncated=True)
        ours = yield from self._ask(finished)
        against_base = compare(ours, base)
        ahead: list[tuple[float, str]] = []
        for at, judged in self._judged.items():
            if judged.stage in ("kept", "left out"):
                alone = compare(ours, (yield from self._ask(Question("deciding", (at,), single(1.0)))))
                self._judged[at] = replace(judged, single=alone)
                if alone.difference >= 0:
                    ahead.append((alone.against, judged.id))
        verdict, reason = _verdict(against_base, ahead)
        return Outcome(members, method, strength, verdict, reason, self.judged, tried, against_base, self._late)

    # ---- what they are made of ------------------------------------------------------------------------------------

    def _ask(self, question: Question) -> Generator[Question, Answer, Sums]:
        answer = yield question
        self._late |= answer.late
        return answer.losses

    def _opinion(self, at: int) -> Opinion:
        id = self.recipe.leaves[at].id
        return self.opinions.get(id, Opinion(adapter=id))

    def _left(self, members: Sequence[int]) -> tuple[int, ...]:
        left = tuple(at for at in members if self._judged[at].stage == "kept")
        if len(left) < 2:
            told = "; ".join(f"{one.id}: {one.reason}" for one in self._judged.values() if one.reason)
            raise TooFewPassed(f"{len(left)} of {len(self._judged)} adapters are left: {told}", field="adapters")
        return left

    def _among(self, members: Sequence[int]) -> Matrix:
        return self.inner[np.ix_(members, members)]

    def _ppm(self, members: Sequence[int]) -> list[int]:
        """As the recipe of these leaves alone has it."""
        leaves = [self.recipe.leaves[at] for at in members]
        ppm = weights_ppm([(leaf.id, leaf.weight) for leaf in leaves])
        return [ppm[leaf.id] for leaf in leaves]

    def _votes(self, members: Sequence[int]) -> Votes:
        leaves = [self.recipe.leaves[at] for at in members]
        return cast_votes(self._among(members), [leaf.author for leaf in leaves], self._ppm(members))

    def _parts(self, members: Sequence[int]) -> list[tuple[int, ...]]:
        """Who would be left out together: a vote; each by itself where nobody counts votes."""
        if self.recipe.method != AUTO and not METHODS[self.recipe.method].voted:
            return [(at,) for at in members]
        return [tuple(members[place] for place in vote) for vote in self._votes(members).members]

    def decided(self, members: Sequence[int], method: str, strength: float | None) -> Decision:
        """What the recipe of these leaves alone makes of them."""
        leaves = [self.recipe.leaves[at] for at in members]
        inherited = self.recipe.inherited
        return decide(method, self._among(members), leaves, self._ppm(members), strength, inherited)


def _verdict(against_base: Compared, ahead: list[tuple[float, str]]) -> tuple[Verdict, str]:
    """`ahead` are the adapters that alone are as good or better: (loss, id)."""
    told = f"loss {against_base.loss:.3f} on your held-out rows, the base's {against_base.against:.3f}"
    if not against_base.surely_better:
        sure = "is not better than the base" if against_base.difference >= 0 else "is not surely better than the base"
        return "candidate", f"{told}: it {sure}"
    if ahead:
        loss, id = min(ahead)
        return "candidate", f"{told}, but {id} by itself has {loss:.3f}: use that one"
    return "better", f"{told}: better than the base and than each adapter by itself"
