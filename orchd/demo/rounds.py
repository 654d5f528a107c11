"""The rounds: each trains on its own sentences, both average, both go on from the average."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from orchd.demo.node import Adapter, Averaged, Node
from orchd.demo.players import RANK, TOPIC, Examiner, Peer, Plan
from orchd.demo.results import Average, Contribution, Round, Score, Verification
from orchd.demo.screen import Screen
from orchd.demo.together import Together

Adapters = tuple[Adapter, Adapter]
Averages = tuple[Averaged, Averaged]


@dataclass(frozen=True, kw_only=True)
class Played:
    """What the rounds left: their measurements, the base's exam, the last adapters and averages."""

    rounds: tuple[Round, ...]
    base: Score
    adapters: Adapters
    averages: Averages


class Rounds:
    """Plays the rounds between two peers while C looks on and marks."""

    def __init__(self, plan: Plan, peers: tuple[Peer, Peer], examiner: Examiner, screen: Screen) -> None:
        self.plan = plan
        self.a, self.b = peers
        self.examiner = examiner
        self.screen = screen

    def play(self) -> Played:
        rounds: list[Round] = []
        averages: Averages | None = None
        for number in range(1, self.plan.rounds + 1):
            started = time.monotonic()
            adapters = self._train(number, averages)
            averages = self._exchange(number, adapters)
            done, base = self._score(number, adapters, averages, started)
            if number == 1:
                self.screen.averages_made(averages, done.average.verifications)
                self.screen.table_head(base)
            self.screen.round_done(done)
            rounds.append(done)
        assert averages is not None
        return Played(rounds=tuple(rounds), base=base, adapters=adapters, averages=averages)

    def _train(self, number: int, averages: Averages | None) -> Adapters:
        """Each from its own average (which equals the other's) on its own sentences."""
        starts = (None, None) if averages is None else (averages[0].adapter.id, averages[1].adapter.id)
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

    def _score(self, number: int, adapters: Adapters, averages: Averages, started: float) -> tuple[Round, Score]:
        """A and B on their own held-out sentences, C on the exam, and each recomputes the other's average."""
        with Together() as nodes:
            on_a = nodes.start(self.a.score, [*adapters, averages[0].adapter])
            on_b = nodes.start(self.b.score, [*adapters, averages[1].adapter])
            by_a = nodes.start(_verify, self.a.node, averages[1])
            by_b = nodes.start(_verify, self.b.node, averages[0])
            exam = nodes.start(self._mark, [*adapters, averages[0].adapter])
        contributions = _contributions(
            (self.a.node, self.b.node), adapters, (on_a.result(), on_b.result()), exam.result()
        )
        average = Average(
            ids=(averages[0].adapter.id, averages[1].adapter.id),
            recipes=(averages[0].recipe, averages[1].recipe),
            verifications=(by_a.result(), by_b.result()),
            own=(on_a.result()[3], on_b.result()[3]),
            exam=exam.result()[3],
        )
        seconds = time.monotonic() - started
        return Round(number=number, contributions=contributions, average=average, seconds=seconds), exam.result()[0]

    def _mark(self, adapters: list[Adapter]) -> list[Score]:
        for adapter in adapters:
            self.examiner.node.find_and_fetch(adapter.id)
        with self.screen.working("C marks the exam") as progress:
            progress(0, 0, "")
            return self.examiner.mark(adapters)


def _verify(node: Node, theirs: Averaged) -> Verification:
    node.find_and_fetch(theirs.adapter.id)
    return node.verify_average(theirs.adapter.id)


def _contributions(
    nodes: tuple[Node, Node],
    adapters: Adapters,
    held_out: tuple[Sequence[Score], Sequence[Score]],
    exam: Sequence[Score],
) -> tuple[Contribution, ...]:
    """The two adapters with their scores; each list holds the base, A's adapter, B's adapter, the average."""
    return tuple(
        Contribution(
            node=nodes[i].name,
            id=adapters[i].id,
            author=adapters[i].author,
            size=adapters[i].size,
            base=held_out[i][0],
            own=held_out[i][1 + i],
            other=held_out[1 - i][1 + i],
            exam=exam[1 + i],
        )
        for i in (0, 1)
    )
