"""`orchctl demo --real`: the story on SmolLM2-135M. Two households teach one model what only they know.

Everything happens through the nodes' sockets. A marks its own household's exam and B its own; A serves the average.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from orchd.demo import model
from orchd.demo.cast import Cast
from orchd.demo.households import Household, Question, households
from orchd.demo.node import Adapter, Averaged, Dataset, Node, Schedule, Served
from orchd.demo.real_results import Asked, Mark, RealResults
from orchd.demo.real_screen import RealScreen
from orchd.demo.together import Together
from orchd.paths import Paths

BASE: Final = "smollm2"
TOPIC: Final = "demo/households"
RANK: Final = 16
ROUNDS: Final = 3
STEPS_A_ROUND: Final = 30
SETTINGS: Final[dict[str, Any]] = {
    "base": BASE,
    "learning_rate": 1e-3,
    "alpha": 32,
    "batch_size": 8,
    "compute": "F32",
    "forgetting": False,
}
"""As they were measured on two cores. Nothing is left to try out, and nobody lives in these households."""

SPACE: Final = 3_000_000_000
"""Bytes of two homes: the model as it came and as it is trained on, and the three models that are served."""

SERVED: Final = ("a", "b", "average")


@dataclass(frozen=True, kw_only=True)
class Home:
    """A household's node, what it learns from and its exam."""

    node: Node
    household: Household
    learnt: Dataset
    exam: Dataset

    def train(self, number: int, initial: str | None, seed: int, progress: Any) -> Adapter:
        """One round of the schedule that all rounds share, and the adapter published."""
        schedule = Schedule(steps=STEPS_A_ROUND, total=ROUNDS * STEPS_A_ROUND, offset=STEPS_A_ROUND * (number - 1))
        adapter = self.node.train(
            self.learnt,
            name=f"{self.node.name} round {number}",
            schedule=schedule,
            initial=initial,
            rank=RANK,
            seed=seed,
            progress=progress,
            settings=SETTINGS,
        )
        self.node.publish(adapter.id, TOPIC)
        return adapter


@dataclass(frozen=True, kw_only=True)
class Round:
    adapters: tuple[Adapter, Adapter]
    averages: tuple[Averaged, Averaged]
    seconds: float


class RealStory:
    """One run. After `run` the nodes still answer, until the cast is closed.

    `file` is the model's GGUF file; without one it is fetched.
    """

    def __init__(self, file: Path | None, seed: int, cast: Cast, screen: RealScreen) -> None:
        self.file = file
        self.seed = seed
        self.cast = cast
        self.screen = screen
        self.homes: tuple[Home, Home]

    def run(self) -> RealResults:
        """What was measured. Raises a numbered error when a step did not work."""
        started = time.monotonic()
        self.screen.opening(ROUNDS)
        self._open(self.file or self._fetched())
        rounds = list[Round]()
        for number in range(1, ROUNDS + 1):
            rounds.append(self._round(number, rounds[-1] if rounds else None))
            self.screen.round_over(number, rounds[-1].seconds)
        with Together() as nodes:
            verifications = [
                nodes.start(self._verify, at.node, rounds[-1].averages[1 - i]) for i, at in enumerate(self.homes)
            ]
        marks = self._marks(rounds)
        self.screen.marked(marks)
        served = self._deploy(rounds[-1], rounds[0])
        asked = self._ask_all()
        self.screen.served(served, asked)
        recipes = {one.recipe for one in rounds[-1].averages}
        return RealResults(
            seconds=time.monotonic() - started,
            training=tuple(one.seconds for one in rounds),
            taught=len(self.homes[0].household.learnt),
            marks=marks,
            verifications=tuple(one.result() for one in verifications),
            same_recipe=len(recipes) == 1,
            size=served.size,
            parity=served.parity,
            parity_detail=served.parity_detail,
            asked=asked,
        )

    # ---- the households --------------------------------------------------------------------------------------

    def _fetched(self) -> Path:
        cache = Paths.from_env().cache
        if not model.place(cache).is_file():
            self.screen.fetching(model.DOWNLOAD)
        return model.fetch(cache)

    def _open(self, file: Path) -> None:
        """A first; B is told A's address and nothing else."""
        told = households(self.seed)
        first = self.cast.start("A")
        with Together() as nodes:
            a = nodes.start(self._home, first, told[0], file)
            b = nodes.start(self._late_home, first.address, told[1], file)
        self.homes = a.result(), b.result()
        self.screen.households(told)

    def _late_home(self, bootstrap: str, told: Household, file: Path) -> Home:
        return self._home(self.cast.start("B", bootstrap=bootstrap), told, file)

    def _home(self, node: Node, told: Household, file: Path) -> Home:
        node.join(TOPIC)
        learnt, exam = told.write(node.home)
        with self.screen.working(f"{node.name} unpacks the model") as progress:
            node.add_base(file, BASE, progress)
        return Home(
            node=node,
            household=told,
            learnt=node.import_dataset(learnt, name="learnt", split="train", near_duplicates="keep"),
            exam=node.import_dataset(exam, name="exam", split="test", near_duplicates="keep"),
        )

    # ---- rounds ----------------------------------------------------------------------------------------------

    def _round(self, number: int, before: Round | None) -> Round:
        started = time.monotonic()
        with Together() as nodes:
            trained = [nodes.start(self._train, home, number, i, before) for i, home in enumerate(self.homes)]
        adapters = trained[0].result(), trained[1].result()
        with Together() as nodes:
            made = [nodes.start(self._average, home, number, adapters, i) for i, home in enumerate(self.homes)]
        averages = made[0].result(), made[1].result()
        return Round(adapters=adapters, averages=averages, seconds=time.monotonic() - started)

    def _train(self, home: Home, number: int, which: int, before: Round | None) -> Adapter:
        initial = None if before is None else before.averages[which].adapter.id
        with self.screen.working(f"{home.node.name} trains") as progress:
            return home.train(number, initial, 1000 * self.seed + 10 * number + which, progress)

    def _average(self, home: Home, number: int, adapters: tuple[Adapter, Adapter], which: int) -> Averaged:
        """Fetches the other's adapter, and averages by itself."""
        home.node.find_and_fetch(adapters[1 - which].id)
        averaged = home.node.average([one.id for one in adapters], name=f"average {number}", rank=RANK)
        home.node.publish(averaged.adapter.id, TOPIC)
        return averaged

    @staticmethod
    def _verify(node: Node, theirs: Averaged) -> Any:
        node.find_and_fetch(theirs.adapter.id)
        return node.verify_average(theirs.adapter.id)

    # ---- the exam --------------------------------------------------------------------------------------------

    def _marks(self, rounds: Sequence[Round]) -> tuple[Mark, ...]:
        """The base, each one's of round 1, which has seen its own household alone, the averages, the last of each."""
        labels = ["the model as it came", *(f"{name} alone, round 1" for name in "AB")]
        labels += [f"average of round {number}" for number in range(1, ROUNDS)]
        labels += [*(f"{name}'s, round {ROUNDS}" for name in "AB"), f"average of round {ROUNDS}"]
        steps = [
            0,
            STEPS_A_ROUND,
            STEPS_A_ROUND,
            *(STEPS_A_ROUND * n for n in range(1, ROUNDS)),
            *[STEPS_A_ROUND * ROUNDS] * 3,
        ]
        with Together() as nodes, self.screen.working("both mark their exam"):
            told = [nodes.start(self._mark, home, rounds, i) for i, home in enumerate(self.homes)]
        shares = zip(told[0].result(), told[1].result(), strict=True)
        return tuple(
            Mark(label=label, steps=count, a=a, b=b) for label, count, (a, b) in zip(labels, steps, shares, strict=True)
        )

    @staticmethod
    def _mark(home: Home, rounds: Sequence[Round], which: int) -> list[float]:
        first, last = rounds[0], rounds[-1]
        averages = [one.averages[which].adapter for one in rounds]
        wanted = [*first.adapters, *averages[:-1], *last.adapters, averages[-1]]
        scores = home.node.evaluate([one.id for one in wanted], home.exam)
        return [scores[None].exact_match, *(scores[one.id].exact_match for one in wanted)]

    # ---- serving ---------------------------------------------------------------------------------------------

    def _deploy(self, last: Round, first: Round) -> Served:
        """A serves the average, folded into the very file that it came with; beside it what each knew alone."""
        a, b = self.homes
        with Together() as nodes, self.screen.working("A and B build what is served"):
            average = nodes.start(self._serve, a, last.averages[0].adapter, "average")
            nodes.start(self._serve, b, first.adapters[1], "b")
            nodes.start(self._serve, a, first.adapters[0], "a")
        return average.result()

    @staticmethod
    def _serve(home: Home, adapter: Adapter, name: str) -> Served:
        return home.node.deploy(adapter.id, name=name, target="embedded", dataset=home.exam)

    def _ask_all(self) -> tuple[Asked, ...]:
        with self.screen.working("the exam, put to what is served"):
            return tuple(
                self._asked(home.node.name, question) for home in self.homes for question in home.household.exam
            )

    def _asked(self, household: str, question: Question) -> Asked:
        a, b, average = self.ask(question.prompt)
        return Asked(household=household, prompt=question.prompt, expected=question.answer, average=average, a=a, b=b)

    def ask(self, prompt: str) -> tuple[str, str, str]:
        """The same question to what A knew alone, to what B knew alone, and to the average."""
        a, b = (home.node for home in self.homes)
        return a.ask("a", prompt), b.ask("b", prompt), a.ask("average", prompt)
