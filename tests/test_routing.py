"""Routing at the node: who takes part, and what happens to whom."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import trio
import trio.testing

from orchd import routing
from orchd.answering import Answerers
from orchd.config import JobsConfig
from orchd.errors import RouteUnknown, RouteUnready
from orchd.importers.conversation import Message
from orchd.node import Node
from orchd.records.manifest import Routing
from orchd.registry import QUARANTINED
from orchd.registry.held import hold
from orchd.registry.local_rows import Deployment, RouteLesson
from orchd.registry.own import Datasets, Deployments
from orchd.routing import AUTO, Routes
from orchd.rpc.methods_routing import RouteCorrect, RouteExplain, RouteOf, route_correct, route_explain, route_status
from orchd.serve.half import Reader
from orchd.serve.routes import RouteSpec
from orchd.train.retention_prompts import PROMPTS
from orchd.train.words import ENGLISH_WORDS
from tests.helpers import ALICE, BOB, Lab, lora_tensors

DEMO = Path(__file__).parents[1] / "orchd" / "train" / "base" / "demo"
WORDINGS = {
    "letters": ("how do the islanders say {}?", "{} in their tongue", "what would a local call {}?", "teach me {}"),
    "queue": ("send the leader of {} behind", "roll {} along", "next in line for {}", "spin {} a little"),
}
ASKED = {"letters": "how do the islanders say owl salt?", "queue": "send the leader of owl salt behind"}


@pytest.fixture(scope="module")
def centroids() -> dict[str, Routing]:
    reader, found = Reader(DEMO), dict[str, Routing]()
    texts = {"everything": PROMPTS} | {
        topic: [
            one.format(" ".join(random.Random(f"{topic}{at}").sample(ENGLISH_WORDS, 3)))
            for at in range(12)
            for one in forms
        ]
        for topic, forms in WORDINGS.items()
    }
    for topic, prompts in texts.items():
        vectors = np.stack([reader.read(prompt).vector for prompt in prompts])
        centroid, spread = (tuple(round(float(n) * 10_000) for n in part) for part in (vectors.mean(0), vectors.std(0)))
        found[topic] = Routing(layer=1, scale=10_000, centroid=centroid, spread=spread)
    return found


class House:
    """A node with a registry, deployments and a router."""

    def __init__(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lab = lab
        self.events: list[tuple[str, Any]] = []
        self.node = cast(
            Node,
            SimpleNamespace(
                registry=lab.registry,
                clock=lambda: lab.now_ms,
                datasets=Datasets(lab.registry.local, lab.root / "datasets", lambda: lab.now_ms),
                deployments=Deployments(lab.registry.local),
                paths=SimpleNamespace(cache=lab.root / "cache"),
                config=SimpleNamespace(jobs=JobsConfig()),
                events=SimpleNamespace(emit=lambda kind, data, job=None: self.events.append((kind, data))),
            ),
        )
        self.node.answerers = Answerers(self.node)
        self.node.routes = Routes(self.node)
        spec = RouteSpec(base=str(DEMO), public=(PROMPTS,), key="test")
        monkeypatch.setattr(routing, "_spec", lambda node, base: spec)

    def deploy(self, name: str, adapter: str | None, **changes: Any) -> None:
        row = Deployment(
            name=name,
            adapter=adapter,
            target="embedded",
            state="ready",
            base="tiny",
            blob="00" * 32,
            size=1,
            quantize="F16",
            parity=None,
            created=self.lab.now_ms,
        )
        self.node.deployments.put(msgspec.structs.replace(row, **changes))

    def adapter(self, name: str, seed: int, routing: Routing | None, author: Any = ALICE) -> str:
        """Admitted and deployed; its id."""
        from orchd.records import sign

        folder = self.lab.folder(name, tensors=lora_tensors(seed))
        claim = self.lab.claim(folder, name=name, author=author.public_key, routing=routing)
        self.lab.now_ms += 1
        id = self.lab.admit_signed(sign(claim, author), folder).id
        self.deploy(name, id)
        return id

    async def ask(self, text: str) -> str:
        return (await self.node.routes.choose([Message("system", "be brief"), Message("user", text)])).deployment

    async def left_out(self) -> dict[str, str]:
        return {one.name: one.reason for one in (await route_status(self.node, RouteOf())).left_out}


@pytest.fixture
async def house(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    made = House(lab, monkeypatch)
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            await nursery.start(made.node.routes.runtime.run)
            yield made
            await made.node.routes.runtime.stop()
            nursery.cancel_scope.cancel()


async def test_nothing_and_no_plain_base_is_said(house: House, centroids: dict[str, Routing]) -> None:
    with pytest.raises(RouteUnready, match="nothing is deployed"):
        await house.ask("hello")
    house.adapter("queue", 1, centroids["queue"])
    with pytest.raises(RouteUnready, match="the plain base tiny") as told:
        await house.ask("hello")
    assert "--base tiny" in told.value.hint
    house.deploy("plain", None, base="demo")  # of another base
    with pytest.raises(RouteUnready):
        await house.ask("hello")


async def test_the_plain_base_alone_answers_without_a_router(house: House) -> None:
    house.deploy("plain", None)
    assert await house.ask("hello") == "plain"
    assert house.node.routes.runtime.worker_pid is None


async def test_each_goes_to_its_own_and_is_told(house: House, centroids: dict[str, Routing]) -> None:
    house.deploy("plain", None)
    for seed, topic in enumerate(WORDINGS):
        house.adapter(topic, seed, centroids[topic])
    for topic, text in ASKED.items():
        assert await house.ask(text) == topic
    assert await house.ask("What is the capital of Portugal?") == "plain"
    assert [kind for kind, _ in house.events] == ["route.chosen"] * 3
    assert not any("owl" in str(data) for _, data in house.events)  # what was asked is nobody's business
    shown = await route_status(house.node, RouteOf())
    assert {row.deployment: row.chosen for row in shown.rows} == {"letters": 1, "queue": 1, "plain": 1}
    explained = await route_explain(house.node, RouteExplain(text=ASKED["queue"]))
    assert (explained.deployment, explained.distances[0].deployment) == ("queue", "queue")
    assert sum(house.node.routes.counts.values()) == 3  # explaining is not asking
    resolved = await house.node.answerers.resolvers[AUTO]((Message("user", ASKED["queue"]),))
    assert (resolved.name, bool(resolved.why)) == ("queue", True)


async def test_a_lost_router_is_said_and_the_plain_base_answers(house: House, centroids: dict[str, Routing]) -> None:
    house.deploy("plain", None)
    house.adapter("queue", 1, centroids["queue"])
    assert await house.ask(ASKED["queue"]) == "queue"
    pid = house.node.routes.runtime.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    found: list[routing.Routed] = []

    async def ask() -> None:
        found.append(await house.node.routes.choose([Message("user", ASKED["queue"])]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        os.kill(pid, signal.SIGKILL)
    assert (found[0].deployment, found[0].lost) == ("plain", True)
    assert "could not say" in found[0].why
    assert await house.ask(ASKED["queue"]) == "queue"


async def test_who_does_not_take_part(house: House, centroids: dict[str, Routing]) -> None:
    house.deploy("plain", None)
    mine = house.adapter("queue", 1, centroids["queue"])
    house.deploy("again", mine, created=house.lab.now_ms + 1)
    house.adapter("silent", 2, None)
    house.adapter("stranger's", 3, centroids["letters"], author=BOB)
    house.deploy("gone", "adp_gone")
    out = await house.left_out()
    assert set(out) == {"again", "silent", "stranger's", "gone"}
    assert "the same adapter as queue" in out["again"]
    assert "by name only" in out["silent"]
    assert f"`orchctl trust follow {BOB.author}`" in out["stranger's"]
    assert "not here any more" in out["gone"]


async def test_what_is_quarantined_leaves_at_once(house: House, centroids: dict[str, Routing]) -> None:
    house.deploy("plain", None)
    id = house.adapter("queue", 1, centroids["queue"])
    assert await house.ask(ASKED["queue"]) == "queue"
    assert hold(house.node.registry, id, "a test says so")
    assert await house.ask(ASKED["queue"]) == "plain"
    assert "quarantined: a test says so" in (await house.left_out())["queue"]
    house.node.registry.release(id)
    assert await house.ask(ASKED["queue"]) == "queue"
    assert not hold(house.node.registry, id, "another reason")  # the user has let it out


async def test_a_catcher_of_a_strangers_is_quarantined_with_its_figure(
    house: House, centroids: dict[str, Routing]
) -> None:
    house.deploy("plain", None)
    house.node.registry.local.act("trust", *_followed(BOB.author))
    house.node.registry.people.forget()
    catcher = house.adapter("catcher", 3, centroids["everything"], author=BOB)
    own = house.adapter("own", 4, centroids["everything"])
    assert await house.ask("What is the capital of Portugal?") == "plain"
    row = house.node.registry.adapter(catcher)
    assert row.state == QUARANTINED
    assert "% of the base's own prompts" in row.reason
    assert house.node.registry.adapter(own).state != QUARANTINED
    assert "% of the base's own prompts" in (await house.left_out())["own"]


def _followed(author: str) -> list[Any]:
    from orchd.registry.local import put
    from orchd.registry.local_rows import Trust

    return [put(Trust(subject=author, kind="author", verdict="follow", note="", auto_update=False, since=1))]


async def test_a_correction_moves_the_decision_and_can_be_undone(house: House, centroids: dict[str, Routing]) -> None:
    house.deploy("plain", None)
    for seed, topic in enumerate(WORDINGS):
        house.adapter(topic, seed, centroids[topic])
    with pytest.raises(RouteUnknown, match="nothing was routed"):
        await route_correct(house.node, RouteCorrect())
    assert await house.ask(ASKED["queue"]) == "queue"
    with pytest.raises(RouteUnknown, match="'nobody' does not take part"):
        await route_correct(house.node, RouteCorrect(deployment="nobody"))
    done = await route_correct(house.node, RouteCorrect(deployment="letters"))
    assert (done.was, done.deployment) == ("queue", "letters")
    assert await house.ask(ASKED["queue"]) == "letters"
    undone = house.node.registry.undo()
    assert undone.act == "route.correct"
    assert house.node.registry.local.all(RouteLesson) == []
    assert await house.ask(ASKED["queue"]) == "queue"
    done = await route_correct(house.node, RouteCorrect(text=ASKED["letters"]))  # the next nearest
    assert done.was == "letters" != done.deployment
