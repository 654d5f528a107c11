"""Who plays, with what, and how long: the plan of a run and the nodes with their data sets."""

from __future__ import annotations

from dataclasses import dataclass

from orchd.demo import examples
from orchd.demo.examples import Examples
from orchd.demo.node import Adapter, Dataset, Node, Progress, Schedule, Sentence
from orchd.demo.results import Knowledge, Score

RANK = 16
STEPS_A_ROUND = 100
TOPIC = "demo/translate"
#: The pooled node breaks the rule that the demo is about, so it is kept off the others' topic.
POOLED_TOPIC = "demo/pooled"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is asked to do."""

    examples: Examples
    rounds: int = 3
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps of one peer in all."""
        return self.rounds * STEPS_A_ROUND

    def round(self, number: int) -> Schedule:
        """The part of the one schedule that this round is."""
        return Schedule(steps=STEPS_A_ROUND, total=self.steps, offset=STEPS_A_ROUND * (number - 1))

    @property
    def whole(self) -> Schedule:
        """The same schedule without a pause."""
        return Schedule(steps=self.steps, total=self.steps, offset=0)

    def training_seed(self, number: int, node: str) -> int:
        """Every training run of a demo draws from its own stream; round 0 is the one without rounds."""
        return 1000 * self.seed + 10 * number + "ABP".index(node)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A node with the sentences that it learns from."""

    node: Node
    dataset: Dataset
    sentences: tuple[Sentence, ...]
    source: str

    def train(self, name: str, schedule: Schedule, seed: int, initial: str | None, progress: Progress) -> Adapter:
        return self.node.train(
            self.dataset, name=name, schedule=schedule, initial=initial, rank=RANK, seed=seed, progress=progress
        )

    def score(self, adapters: list[Adapter]) -> list[Score]:
        """On the held-out sentences: the base first, then each adapter."""
        scores = self.node.evaluate([adapter.id for adapter in adapters], self.dataset)
        return [scores[None], *(scores[adapter.id] for adapter in adapters)]

    def knowledge(self) -> Knowledge:
        skip = examples.instruction(self.sentences)
        return Knowledge(
            node=self.node.name,
            source=self.source,
            kind=self.dataset.format,
            train=self.dataset.train,
            heldout=self.dataset.heldout,
            words=examples.words(self.sentences),
            example=examples.bare(self.sentences[0], skip),
        )


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """C: nothing to learn from, only the exam."""

    node: Node
    exam: Dataset
    sentences: tuple[Sentence, ...]

    def mark(self, adapters: list[Adapter], base: Score | None = None) -> list[Score]:
        """The exam's scores: the base first, which is not marked again where its score is known, then each adapter."""
        scores = self.node.evaluate([adapter.id for adapter in adapters], self.exam, base=base is None)
        return [base or scores[None], *(scores[adapter.id] for adapter in adapters)]
