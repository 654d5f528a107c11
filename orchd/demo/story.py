"""The story: A and B teach one model a language, C learns it from them, D fails to cheat, A takes something back.

Everything happens through the nodes' sockets; the only hand laid on a node's files is the hostile peer's, and A's
capture is read when all is over.
"""

from __future__ import annotations

import time
from pathlib import Path

from orchd.demo import examples
from orchd.demo.cast import Cast
from orchd.demo.finale import Finale
from orchd.demo.leaks import Capture, departure
from orchd.demo.node import Node
from orchd.demo.players import TOPIC, Examiner, Peer, Plan
from orchd.demo.results import Results
from orchd.demo.rounds import Rounds
from orchd.demo.screen import Screen
from orchd.demo.together import Together


class Story:
    """One run. After `run` the nodes still answer, until the cast is closed."""

    def __init__(self, plan: Plan, cast: Cast, screen: Screen) -> None:
        self.plan = plan
        self.cast = cast
        self.screen = screen
        self.peers: tuple[Peer, Peer]
        self.examiner: Examiner
        self.finale: Finale

    def run(self) -> Results:
        """What was measured. Raises a numbered error when a step did not work."""
        started = time.monotonic()
        self.screen.opening(self.plan.rounds)
        self._open()
        played = Rounds(self.plan, self.peers, self.examiner, self.screen).play()
        finale = self.finale = Finale(self.plan, self.cast, self.peers, self.examiner, self.screen)
        with Together() as nodes:
            alone = nodes.start(finale.alone)
            pooled = nodes.start(finale.pooled)
            deployment = nodes.start(finale.deploy, played)
        exam = finale.exam(played, alone.result(), pooled.result())
        self.screen.exam_table(exam, len(self.examiner.sentences))
        self.screen.deployed(deployment.result())
        revoked = finale.revoke(alone.result())
        self.screen.revoked(revoked)
        capture = Capture.read(self.peers[0].node.home / "capture")
        left = departure(capture, examples.texts(self.peers[0].sentences), played.adapters[0].leak)
        self.screen.left(left)
        return Results(
            seconds=time.monotonic() - started,
            nodes=self.cast.started,
            steps=self.plan.steps,
            seed=self.plan.seed,
            knowledge=tuple(peer.knowledge() for peer in self.peers),
            rounds=played.rounds,
            exam=exam,
            refused=alone.result().refused,
            departure=left,
            deployment=deployment.result(),
            revoked=revoked,
        )

    def _open(self) -> None:
        """A first; B and C are told A's address and nothing else."""
        files = self.plan.examples
        node_a = self.cast.start("A")
        with Together() as nodes:
            a = nodes.start(self._peer, node_a, files.a)
            b = nodes.start(self._late_peer, "B", node_a.address, files.b)
            c = nodes.start(self._examiner, "C", node_a.address, files.exam)
        self.peers, self.examiner = (a.result(), b.result()), c.result()
        self.screen.introduced([peer.knowledge() for peer in self.peers], len(self.examiner.sentences))
        self.screen.topic_joined(TOPIC)

    def _late_peer(self, name: str, bootstrap: str, source: Path) -> Peer:
        return self._peer(self.cast.start(name, bootstrap=bootstrap), source)

    def _peer(self, node: Node, source: Path) -> Peer:
        node.join(TOPIC)
        dataset = node.import_dataset(source, name=f"half {node.name}", seed=self.plan.seed)
        return Peer(node=node, dataset=dataset, sentences=tuple(node.sentences(dataset)), source=source.name)

    def _examiner(self, name: str, bootstrap: str, source: Path) -> Examiner:
        node = self.cast.start(name, bootstrap=bootstrap)
        node.join(TOPIC)
        exam = node.import_dataset(source, name="exam", split="test", seed=self.plan.seed)
        return Examiner(node=node, exam=exam, sentences=tuple(node.sentences(exam)))
