"""What `demo --real` measured, as values. `RealResults.ok` is computed from them; nothing sets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from orchd.demo.results import Check, Verification

AVERAGE_AT_LEAST: Final = 0.9
"""Of either household's exam, said word for word, by the average."""

OTHER_AT_MOST: Final = 0.5
"""By a single one, of the exam of the other's household: names and weekdays come back, so that some are guessed."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One adapter, or the plain base, on both households' exams: shares said word for word, by transformers."""

    label: str
    steps: int
    a: float
    b: float


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question of an exam, put to the served average. `a`, `b`: what the single adapters answered, served too."""

    household: str
    prompt: str
    expected: str
    average: str
    a: str
    b: str

    @property
    def right(self) -> bool:
        return self.average == self.expected


@dataclass(frozen=True, kw_only=True)
class RealResults:
    """`training` are the seconds of each round. `marks`: the plain base, A alone, B alone, others, and in the end the
    average of the last round. `size` of the served file in bytes.
    """

    seconds: float
    training: tuple[float, ...]
    taught: int
    marks: tuple[Mark, ...]
    verifications: tuple[Verification, ...]
    same_recipe: bool
    size: int
    parity: bool
    parity_detail: str
    asked: tuple[Asked, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks())

    @property
    def alone(self) -> tuple[Mark, Mark]:
        """A's and B's adapters of round 1: each has seen its own household's questions and nothing else."""
        return self.marks[1], self.marks[2]

    def served(self, household: str) -> float:
        """The share of an exam that the served average answered word for word."""
        own = [one for one in self.asked if one.household == household]
        return sum(one.right for one in own) / len(own)

    def checks(self) -> tuple[Check, ...]:
        (a, b), average = self.alone, self.marks[-1]
        served = self.served("A"), self.served("B")
        return (
            Check(
                name="the average knows both households",
                ok=min(average.a, average.b) >= AVERAGE_AT_LEAST,
                detail=f"{average.a:.0%} of A's exam, {average.b:.0%} of B's",
            ),
            Check(
                name="each single one knows only its own",
                ok=max(a.b, b.a) <= OTHER_AT_MOST < min(a.a, b.b),
                detail=f"A {a.a:.0%} and {a.b:.0%}, B {b.a:.0%} and {b.b:.0%}",
            ),
            Check(
                name="both averaged the same",
                ok=self.same_recipe and all(one.holds for one in self.verifications),
                detail=f"distance {max(one.relative_error for one in self.verifications):.0e}",
            ),
            Check(name="what is served is what was trained", ok=self.parity, detail=self.parity_detail),
            Check(
                name="the served average answers",
                ok=min(served) >= AVERAGE_AT_LEAST,
                detail=f"{served[0]:.0%} of A's exam, {served[1]:.0%} of B's, word for word",
            ),
        )

    def to_json(self) -> Mapping[str, Any]:
        """The object that `--json` prints."""
        return {
            "ok": self.ok,
            "seconds": round(self.seconds, 1),
            "training_seconds": [round(one, 1) for one in self.training],
            "marks": [{"label": one.label, "steps": one.steps, "a": one.a, "b": one.b} for one in self.marks],
            "served": {"a": self.served("A"), "b": self.served("B"), "size": self.size, "parity": self.parity},
            "answers": [
                {"household": one.household, "prompt": one.prompt, "expected": one.expected, "average": one.average}
                for one in self.asked
            ],
        }
