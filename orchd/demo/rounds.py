"""The rounds: each trains on its own sentences, both average, both go on from the average."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from orchd.demo.node import Adapter, Averaged, Node
from orchd.demo.players import RANK, TOPIC, Examiner, Peer, Plan
from orchd.demo.results import Average, Contribution, Round, Score, Verification
from orchd.demo.screen import Screen
from orchd.demo.together import Together

Adapters = tuple[Adapter, Adapter]
Averages = tuple[Averaged, Averaged]
#: The exam's scores of the base, A's adapter, B's adapter, the average.
Marks = list[Score]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What A and B made in one round, and what others still find out about it."""

    number: int
    adapters: Adapters
    averages: Averages
    seconds: float
    verifications: tuple[Future[Verification], Future[Verification]]
    marks: Future[Marks]


@dataclass(frozen=True, kw_only=True)
class Played:
    """What the rounds left: their measurements, the base's exam, the last adapters and averages."""

    rounds: tuple[Round, ...]
    base: Score
    adapters: Adapters
    averages: Averages


class Rounds:
    """Plays the rounds between two peers. C marks one round while A and B are at the next."""

    def __init__(self, plan: Plan, peers: tuple[Peer, Peer], examiner: Examiner, screen: Screen) -> None:
        self.plan = plan
        self.a, self.b = peers
        self.examiner = examiner
        self.screen = screen

    def play(self) -> Played:
        made: list[Made] = []
        with Together() as nodes:
            for number in range(1, self.plan.rounds + 1):
                made.append(self._round(nodes, number, made[-1] if made else None))
            held_out = nodes.start(self.a.score, _everything(made, 0)), nodes.start(self.b.score, _everything(made, 1))
        return Played(
            rounds=tuple(
                _measured((self.a.node, self.b.node), one, (held_out[0].result(), held_out[1].result())) for one in made
            ),
            base=made[0].marks.result()[0],
            adapters=made[-1].adapters,
            averages=made[-1].averages,
        )

    def _round(self, nodes: Together, number: int, before: Made | None) -> Made:
        started = time.monotonic()
        adapters = self._train(number, before)
        averages = self._exchange(number, adapters)
        seconds = time.monotonic() - started
        verifications = (
            nodes.start(_verify, self.a.node, averages[1]),
            nodes.start(_verify, self.b.node, averages[0]),
        )
        marks = nodes.start(self._mark, number, adapters, averages, verifications, before)
        return Made(
            number=number,
            adapters=adapters,
            averages=averages,
            seconds=seconds,
            verifications=verifications,
            marks=marks,
        )

    def _train(self, number: int, before: Made | None) -> Adapters:
        """Each from its own average (which equals the other's) on its own sentences."""
        starts = (None, None) if before is None else (before.averages[0].adapter.id, before.averages[1].adapter.id)
        with Together() as peers:
            a = peers.start(self._train_one, self.a, number, starts[0])
            b = peers.start(self._train_one, self.b, number, starts[1])
        return a.result(), b.result()

    def _train_one(self, peer: Peer, number: int, initial: str | None) -> Adapter:
        name = peer.node.name
        with self.screen.working(f"{name} trains") as progress:
            seed = self.plan.training_seed(number, name)
            adapter = peer.train(f"{name} round {number}", self.plan.round(number), seed, initial, progress)
        peer.node.publish(adapter.id, TOPIC)
        if number == 1:
            self.screen.announced(name, adapter)
        return adapter

    def _exchange(self, number: int, adapters: Adapters) -> Averages:
        """Each finds the other's adapter on the DHT, fetches it, and averages by itself."""
        with Together() as peers:
            a = peers.start(self._exchange_one, self.a, self.b, number, adapters, adapters[1])
            b = peers.start(self._exchange_one, self.b, self.a, number, adapters, adapters[0])
        return a.result(), b.result()

    def _exchange_one(self, peer: Peer, other: Peer, number: int, both: Adapters, theirs: Adapter) -> Averaged:
        begun = time.monotonic()
        peer.node.find_and_fetch(theirs.id)
        if number == 1:
            self.screen.fetched(peer.node.name, other.node.name, theirs, time.monotonic() - begun)
        averaged = peer.node.average([adapter.id for adapter in both], name=f"average {number}", rank=RANK)
        peer.node.publish(averaged.adapter.id, TOPIC)
        return averaged

    def _mark(
        self,
        number: int,
        adapters: Adapters,
        averages: Averages,
        verifications: Sequence[Future[Verification]],
        before: Made | None,
    ) -> Marks:
        """C fetches the round's adapters and marks the exam, one round after the other."""
        wanted = [*adapters, averages[0].adapter]
        for adapter in wanted:
            self.examiner.node.find_and_fetch(adapter.id)
        base = None if before is None else before.marks.result()[0]
        with self.screen.working("C marks the exam"):
            marks = self.examiner.mark(wanted, base)
        if number == 1:
            self.screen.averages_made(averages, [verification.result() for verification in verifications])
            self.screen.table_head(marks[0])
        self.screen.round_done(number, marks)
        return marks


def _verify(node: Node, theirs: Averaged) -> Verification:
    node.find_and_fetch(theirs.adapter.id)
    return node.verify_average(theirs.adapter.id)


def _everything(made: Sequence[Made], peer: int) -> list[Adapter]:
    """What one peer scores on its held-out sentences: of each round both adapters and its own average."""
    return [adapter for one in made for adapter in (*one.adapters, one.averages[peer].adapter)]


def _measured(nodes: tuple[Node, Node], one: Made, held_out: tuple[Sequence[Score], Sequence[Score]]) -> Round:
    """The round with its scores; `held_out` is A's and B's list, the base first, then three scores a round."""
    first = 1 + 3 * (one.number - 1)
    exam = one.marks.result()
    contributions = tuple(
        Contribution(
            node=nodes[i].name,
            id=one.adapters[i].id,
            author=one.adapters[i].author,
            size=one.adapters[i].size,
            base=held_out[i][0],
            own=held_out[i][first + i],
            other=held_out[1 - i][first + i],
            exam=exam[1 + i],
        )
        for i in (0, 1)
    )
    average = Average(
        ids=(one.averages[0].adapter.id, one.averages[1].adapter.id),
        recipes=(one.averages[0].recipe, one.averages[1].recipe),
        verifications=(one.verifications[0].result(), one.verifications[1].result()),
        own=(held_out[0][first + 2], held_out[1][first + 2]),
        exam=exam[3],
    )
    return Round(number=one.number, contributions=contributions, average=average, seconds=one.seconds)
