"""What the demo measured, as values. `Results.ok` is computed from them; nothing sets it.

Losses are nats a completion token, exact matches are shares from 0 to 1 (greedy, right to the last letter).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: What `ok` asks for, on sentences that mix both halves.
AVERAGE_AT_LEAST = 0.8
SINGLE_AT_MOST = 0.02


@dataclass(frozen=True, kw_only=True)
class Score:
    """One adapter (or the bare base) on one data set."""

    loss: float
    exact_match: float
    examples: int


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What one node was given to learn from. C and D have none, the pooled node has both halves."""

    node: str
    source: str
    kind: str
    train: int
    heldout: int
    words: tuple[str, ...]
    #: (`English`, `invented`) of one of its sentences, shown to the reader of the report.
    example: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """One peer's adapter of one round, scored by A on A's held-out sentences and by B on B's."""

    node: str
    id: str
    author: str
    size: int
    base: Score
    own: Score
    other: Score
    exam: Score


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What one peer found when it recomputed the other's average."""

    by: str
    relative_error: float
    tolerance: float
    holds: bool
    recipe_matches: bool


@dataclass(frozen=True, kw_only=True)
class Average:
    """A's and B's averages of one round, which must name the same recipe."""

    ids: tuple[str, str]
    recipes: tuple[str, str]
    verifications: tuple[Verification, ...]
    own: tuple[Score, Score]
    exam: Score

    @property
    def agreed(self) -> bool:
        """The same recipe, and each peer could recompute the other's result."""
        return len(set(self.recipes)) == 1 and all(v.holds and v.recipe_matches for v in self.verifications)

    @property
    def exact_match(self) -> float:
        """On the held-out sentences of both halves, each scored by its owner."""
        return sum(score.exact_match for score in self.own) / len(self.own)


@dataclass(frozen=True, kw_only=True)
class Round:
    number: int
    contributions: tuple[Contribution, ...]
    average: Average
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One line of the exam's table."""

    key: str
    label: str
    steps: int
    exam: Score


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """The tampered copy, and what became of the honest one."""

    reason: str
    code: int
    name: str
    bytes_changed: int
    then_admitted: bool


@dataclass(frozen=True, kw_only=True)
class Departure:
    """What left A's machine, read before encryption. `leak`: what its last adapter tells of the sentences, as it is
    signed."""

    bytes: int
    streams: int
    by_protocol: tuple[tuple[str, int], ...]
    records: int
    connects: int
    beyond_loopback: tuple[str, ...]
    sentences_searched: int
    sentences_found: int
    leak: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One sentence, asked of the three deployments."""

    prompt: str
    expected: str
    a: str
    b: str
    average: str


@dataclass(frozen=True, kw_only=True)
class Deployment:
    target: str
    size: int
    parity: bool
    parity_detail: str
    answers: tuple[Answer, ...]
    #: Other targets that answered on loopback, or why one did not take the adapter.
    also: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Took:
    """One adapter at C that the revocation reached."""

    id: str
    name: str
    state: str


@dataclass(frozen=True, kw_only=True)
class Revocation:
    """A takes an adapter back; what becomes of it, of what C made from it, and of C's deployment of that.

    `before` and `after` are the deployment's answers to one question, `base` what the plain base answers.
    """

    id: str
    reason: str
    contained: str
    affected: tuple[Took, ...]
    rolled_back: tuple[str, ...]
    seconds: float
    question: str
    before: str
    after: str
    base: str

    @property
    def held(self) -> bool:
        """Both C's copy and the average that contains it are in quarantine, and the base answers."""
        quarantined = {took.id for took in self.affected if took.state == "quarantined"}
        return {self.id, self.contained} <= quarantined and bool(self.rolled_back) and self.after == self.base

    @property
    def spared(self) -> bool:
        """Nothing else was reached: the average of the rounds, which does not contain it, is in use as before."""
        return {took.id for took in self.affected} <= {self.id, self.contained}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One condition of `ok`, with the figures that decided it."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Results:
    seconds: float
    nodes: int
    steps: int
    seed: int
    knowledge: tuple[Knowledge, ...]
    rounds: tuple[Round, ...]
    exam: tuple[Entrant, ...]
    refused: tuple[Refusal, ...]
    departure: Departure
    deployment: Deployment
    revoked: Revocation

    @property
    def last(self) -> Round:
        return self.rounds[-1]

    def entrant(self, key: str) -> Entrant:
        return next(entrant for entrant in self.exam if entrant.key == key)

    def words_of(self, node: str) -> frozenset[str]:
        """The English words that this node's sentences use."""
        return frozenset(next(known.words for known in self.knowledge if known.node == node))

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks())

    def checks(self) -> tuple[Check, ...]:
        """The conditions of `ok`, in the order of the story."""
        return (
            self._better_than_base(),
            self._averages_agree(),
            self._average_knows_both(),
            self._singles_do_not(),
            self._tampering_refused(),
            self._nothing_left(),
            Check(name="the served model is the trained one", ok=self.deployment.parity,
                  detail=self.deployment.parity_detail),
            self._revocation_reached(),
        )  # fmt: skip

    def _better_than_base(self) -> Check:
        pairs = [(c.node, c.base.loss, c.own.loss) for c in self.last.contributions]
        return Check(
            name="each adapter beats the base on its own half",
            ok=all(own < base for _, base, own in pairs),
            detail=", ".join(f"{node}: loss {base:.2f} → {own:.3f}" for node, base, own in pairs),
        )

    def _averages_agree(self) -> Check:
        errors = [v.relative_error for r in self.rounds for v in r.average.verifications]
        return Check(
            name="both computed the same average",
            ok=all(r.average.agreed for r in self.rounds),
            detail=f"recipe digests equal in {sum(len(set(r.average.recipes)) == 1 for r in self.rounds)} of "
            f"{len(self.rounds)} rounds, largest distance {max(errors, default=0):.1e}",
        )

    def _average_knows_both(self) -> Check:
        share = self.last.average.exam.exact_match
        return Check(
            name=f"the average translates at least {AVERAGE_AT_LEAST:.0%} of the mixed sentences",
            ok=share >= AVERAGE_AT_LEAST,
            detail=f"{share:.0%} of {self.last.average.exam.examples}",
        )

    def _singles_do_not(self) -> Check:
        shares = [(c.node, c.exam.exact_match) for c in self.last.contributions]
        shares += [(f"{key.upper()} alone", self.entrant(f"{key}-alone").exam.exact_match) for key in "ab"]
        return Check(
            name=f"no single adapter translates more than {SINGLE_AT_MOST:.0%} of them",
            ok=all(share <= SINGLE_AT_MOST for _, share in shares),
            detail=", ".join(f"{who} {share:.0%}" for who, share in shares),
        )

    def _tampering_refused(self) -> Check:
        return Check(
            name="the tampered copy was refused",
            ok=bool(self.refused) and all(refusal.then_admitted for refusal in self.refused),
            detail="; ".join(f"{r.code} {r.name}, then the honest copy was admitted" for r in self.refused),
        )

    def _revocation_reached(self) -> Check:
        revoked = self.revoked
        names = ", ".join(f"{took.name} {took.state}" for took in revoked.affected)
        answers = "the base answers" if revoked.after == revoked.base else "the base does NOT answer"
        return Check(
            name="what A revoked is out of use at C",
            ok=revoked.held,
            detail=f"{names}; {', '.join(revoked.rolled_back) or 'nothing'} rolled back, {answers}",
        )

    def _nothing_left(self) -> Check:
        left = self.departure
        return Check(
            name="no training sentence left A's machine",
            ok=left.sentences_found == 0 and left.bytes > 0 and not left.beyond_loopback,
            detail=f"{left.sentences_found} of {left.sentences_searched} found in {left.bytes:,} bytes",
        )

    def to_json(self) -> Mapping[str, Any]:
        """The object that `--json` prints.

        `heldout_loss` of an adapter is on its owner's held-out sentences; of the average, the one-shot merge and
        the pooled one it is on the exam, which nobody trained on.
        """
        average, deployment = self.last.average, self.deployment
        return {
            "ok": self.ok,
            "seconds": round(self.seconds, 1),
            "nodes": self.nodes,
            "rounds": [_round(r) for r in self.rounds],
            "adapters": [_adapter(c) for c in self.last.contributions],
            "average": {
                "id": average.ids[0],
                "heldout_loss": average.exam.loss,
                "exact_match": average.exact_match,
                "mixed_exact_match": average.exam.exact_match,
            },
            "refused": [{"reason": r.reason, "code": r.code} for r in self.refused],
            "oneshot": _entrant(self.entrant("oneshot")),
            "pooled": _entrant(self.entrant("pooled")),
            "deployment": {
                "target": deployment.target,
                "parity": deployment.parity,
                "parity_detail": deployment.parity_detail,
                "answers": [
                    {"prompt": a.prompt, "expected": a.expected, "a": a.a, "b": a.b, "average": a.average}
                    for a in deployment.answers
                ],
            },
            "revoked": {
                "affected": [took.id for took in self.revoked.affected],
                "rolled_back": list(self.revoked.rolled_back),
            },
        }


def _round(r: Round) -> Mapping[str, Any]:
    return {
        "round": r.number,
        "adapters": [
            {"id": c.id, "author": c.author, "own_loss": c.own.loss, "other_loss": c.other.loss}
            for c in r.contributions
        ],
        "average": {
            "id": r.average.ids[0],
            "loss": r.average.exam.loss,
            "exact_match": r.average.exam.exact_match,
        },
    }


def _adapter(c: Contribution) -> Mapping[str, Any]:
    return {
        "id": c.id,
        "author": c.author,
        "base_loss": c.base.loss,
        "heldout_loss": c.own.loss,
        "exact_match": c.own.exact_match,
        "mixed_exact_match": c.exam.exact_match,
    }


def _entrant(entrant: Entrant) -> Mapping[str, Any]:
    return {"heldout_loss": entrant.exam.loss, "mixed_exact_match": entrant.exam.exact_match}
