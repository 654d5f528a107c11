"""After the rounds: what one could have done without them, who tried to cheat, and the average put to use."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass

from orchd.demo import examples, ollama
from orchd.demo.cast import Cast
from orchd.demo.node import Adapter, Node, Sentence, Served
from orchd.demo.players import POOLED_TOPIC, RANK, TOPIC, Examiner, Peer, Plan
from orchd.demo.results import Answer, Deployment, Entrant, Refusal, Revocation, Took
from orchd.demo.rounds import Played
from orchd.demo.screen import Screen
from orchd.demo.tamper import tamper
from orchd.demo.together import Together
from orchd.errors import OrchdError, Refused

QUESTIONS = 3
OLLAMA_NAME = "orchd-demo"
MERGED_NAME, BASE_NAME = "one-shot", "base"
REASON = "trained on sentences that were not mine to use"
#: A node that trains at most once keeps no worker waiting for the next job.
ONE_JOB = {"ORCHD_JOBS__WARM_SECONDS": "0"}


@dataclass(frozen=True, kw_only=True)
class Alone:
    """A and B without each other, as many steps as all rounds together; both merged once; what C refused meanwhile."""

    a: Adapter
    b: Adapter
    merged: Adapter
    refused: tuple[Refusal, ...]


class Finale:
    """The rest of the story. Its scenes are called in order by `Story`."""

    def __init__(self, plan: Plan, cast: Cast, peers: tuple[Peer, Peer], examiner: Examiner, screen: Screen) -> None:
        self.plan = plan
        self.cast = cast
        self.a, self.b = peers
        self.c = examiner.node
        self.examiner = examiner
        self.screen = screen

    # ---- alone, and the hostile peer -------------------------------------------------------------------------

    def alone(self) -> Alone:
        """A and B train by themselves; D offers a tampered copy of what A made; C merges the two as if there had been
        no rounds."""
        with Together() as nodes:
            a = nodes.start(self._train_alone, self.a)
            b = nodes.start(self._train_alone, self.b)
            hostile = nodes.start(self.cast.start, "D", bootstrap=self.a.node.address, settings=ONE_JOB)
        refused = self._cheat(hostile.result(), a.result())
        self.cast.stop(hostile.result())
        self.c.find_and_fetch(b.result().id)
        merged = self.c.average([a.result().id, b.result().id], name="one-shot merge", rank=RANK).adapter
        return Alone(a=a.result(), b=b.result(), merged=merged, refused=refused)

    def _train_alone(self, peer: Peer) -> Adapter:
        name = peer.node.name
        with self.screen.working(f"{name} alone") as progress:
            seed = self.plan.training_seed(0, name)
            adapter = peer.train(f"{name} alone", self.plan.whole, seed, None, progress)
        peer.node.publish(adapter.id, TOPIC)
        return adapter

    def _cheat(self, hostile: Node, adapter: Adapter) -> tuple[Refusal, ...]:
        """What C said to the tampered copy; nothing if it took it."""
        hostile.join(TOPIC)
        hostile.find_and_fetch(adapter.id)
        changed = tamper(hostile.home, adapter.size)
        hostile.publish(adapter.id, TOPIC)
        self.c.find(adapter.id, announcer=hostile.author)
        try:
            self.c.fetch(adapter.id, peers=[hostile.peer_id])
        except Refused as refused:
            honest = self.c.fetch(adapter.id)
            refusal = Refusal(
                reason=refused.message,
                code=refused.code,
                name=refused.name,
                bytes_changed=changed,
                then_admitted=honest.id == adapter.id,
            )
            self.screen.refused(refusal)
            return (refusal,)
        return ()

    # ---- the pooled node, the exam ---------------------------------------------------------------------------

    def pooled(self) -> Adapter:
        """A node that was given both halves: the upper bound, and what A and B would not do. C fetches its adapter."""
        node = self.cast.start("P", bootstrap=self.a.node.address, settings=ONE_JOB)
        node.join(POOLED_TOPIC)
        self.c.join(POOLED_TOPIC)
        source = node.home / "both-halves.jsonl"
        source.write_text("".join(_chat_line(s) for s in (*self.a.sentences, *self.b.sentences)))
        dataset = node.import_dataset(source, name="both halves", seed=self.plan.seed)
        with self.screen.working("both halves pooled") as progress:
            seed = self.plan.training_seed(0, node.name)
            adapter = node.train(
                dataset, name="pooled", schedule=self.plan.whole, rank=RANK, seed=seed, progress=progress
            )
        node.publish(adapter.id, POOLED_TOPIC)
        self.c.find_and_fetch(adapter.id)
        self.cast.stop(node)
        return adapter

    def exam(self, played: Played, alone: Alone, pooled: Adapter) -> tuple[Entrant, ...]:
        """The whole table. What C marked in the rounds is not marked again."""
        with self.screen.working("C marks the exam"):
            _, *marks = self.examiner.mark([alone.a, alone.b, alone.merged, pooled], played.base)
        a_alone, b_alone, merged, upper = marks
        steps, last = self.plan.steps, played.rounds[-1]
        return (
            Entrant(key="base", label="the base, as shipped", steps=0, exam=played.base),
            Entrant(key="a-alone", label="A alone", steps=steps, exam=a_alone),
            Entrant(key="b-alone", label="B alone", steps=steps, exam=b_alone),
            *(
                Entrant(key=f"{c.node.lower()}-last", label=f"{c.node}'s last round", steps=steps, exam=c.exam)
                for c in last.contributions
            ),
            Entrant(key="oneshot", label="A alone and B alone, merged once", steps=steps, exam=merged),
            Entrant(key="average", label=f"the average, {last.number} rounds", steps=steps, exam=last.average.exam),
            Entrant(key="pooled", label="both halves on one machine (upper bound)", steps=steps, exam=upper),
        )

    # ---- the deployment --------------------------------------------------------------------------------------

    def deploy(self, played: Played) -> Deployment:
        """The average, and beside it the two single adapters, served by C; then the questions."""
        names = {"average": played.averages[0].adapter, "a": played.adapters[0], "b": played.adapters[1]}
        served = {name: self._deploy(name, adapter, "embedded") for name, adapter in names.items()}
        also = self.offer_to_ollama(played.averages[0].adapter)
        asked = examples.questions(self.examiner.sentences, QUESTIONS, self.plan.seed)
        return Deployment(
            target=served["average"].target,
            size=served["average"].size,
            parity=served["average"].parity,
            parity_detail=served["average"].parity_detail,
            answers=tuple(self._answer(sentence) for sentence in asked),
            also=also,
        )

    def _deploy(self, name: str, adapter: Adapter, target: str) -> Served:
        with self.screen.working(f"C builds {name}") as progress:
            return self.c.deploy(adapter.id, name=name, target=target, dataset=self.examiner.exam, progress=progress)

    def _answer(self, sentence: Sentence) -> Answer:
        prompt, expected = examples.bare(sentence, examples.instruction(self.examiner.sentences))
        a, b, average = self.ask(sentence.prompt)
        return Answer(prompt=prompt, expected=expected, a=a, b=b, average=average)

    def ask(self, prompt: str) -> tuple[str, str, str]:
        """The same prompt to A's adapter, B's adapter and the average."""
        return self.c.ask("a", prompt), self.c.ask("b", prompt), self.c.ask("average", prompt)

    # ---- the revocation --------------------------------------------------------------------------------------

    def revoke(self, alone: Alone) -> Revocation:
        """A takes back what it trained alone. C has it, has merged it with B's, and serves what came out."""
        self._deploy(MERGED_NAME, alone.merged, "embedded")
        with self.screen.working("C builds the base"):
            self.c.deploy(None, name=BASE_NAME, target="embedded", dataset=None)
        question = examples.questions(self.a.sentences, 1, self.plan.seed)[0].prompt
        before = self.c.ask(MERGED_NAME, question)
        begun = time.monotonic()
        self.a.node.revoke(alone.a.id, REASON)
        told = self.c.wait_event("adapter.revoked", lambda data: data["id"] == alone.a.id)
        self.c.wait_event("deployment.rolled_back", lambda data: data["name"] == MERGED_NAME)
        seconds = time.monotonic() - begun
        standing = [self.c.standing(id) for id in told["affected"]]
        deployments = self.c.call("deployment.list")["deployments"]
        skip = examples.instruction(self.a.sentences)
        return Revocation(
            id=alone.a.id,
            reason=REASON,
            contained=alone.merged.id,
            affected=tuple(Took(id=one.id, name=one.name, state=one.state) for one in standing),
            rolled_back=tuple(row["name"] for row in deployments if row["state"] == "rolled_back"),
            seconds=seconds,
            question=question.removeprefix(skip),
            before=before,
            after=self.c.ask(MERGED_NAME, question),
            base=self.c.ask(BASE_NAME, question),
        )

    def offer_to_ollama(self, adapter: Adapter) -> tuple[str, ...]:
        """To Ollama too, when one answers on loopback. What it says is told; the story does not hang on it."""
        found = ollama.version(ollama.loopback_address(os.environ))
        if found is None:
            return ()
        try:
            self._deploy(OLLAMA_NAME, adapter, "ollama")
            self.c.call("deployment.remove", deployment=OLLAMA_NAME)
        except OrchdError as error:
            return (f"Ollama {found} on this machine did not take it: {error.message}",)
        return (f"Ollama {found} on this machine served it too, gave the proven answers, and was rid of it again",)


def _chat_line(sentence: Sentence) -> str:
    messages = [{"role": "user", "content": sentence.prompt}, {"role": "assistant", "content": sentence.answer}]
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
