"""Switching what answers under a name, with a target that does as it is told. Whatever fails, what was served before
still is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio

from orchd.deploying import STAGING, Deploying, Made
from orchd.errors import (
    AnswerDiffers,
    DeploymentUnknown,
    NotAdmitted,
    NothingBefore,
    TargetNameTaken,
    TargetStreamBroken,
)
from orchd.importers.conversation import Message
from orchd.node import Node
from orchd.registry.local_rows import Deployment
from orchd.registry.own import Deployments
from orchd.registry.upkeep import LIVE
from orchd.serve.specs import Golden
from orchd.serve.targets import Artefact, Capabilities, Deployed, Progress, Verdict, no_progress
from tests.helpers import Lab

GOLDEN = (Golden(messages=(Message("user", "hello"),), rendered="hello", answer="zavo", max_new_tokens=4),)


class Target:
    """Holds digests by name. `fails` raises in `put` for names it says; `differs` answers otherwise."""

    stages = True

    def __init__(self, kind: str = "ollama") -> None:
        self.kind = kind
        self.held: dict[str, str] = {}
        self.fails: Callable[[str], bool] = lambda name: False
        self.differs = False
        self.seen: list[str] = []
        self.go_on = trio.Event()
        self.go_on.set()
        self.began = trio.Event()

    def check_name(self, name: str) -> None:
        pass

    def full_name(self, name: str) -> str:
        return (name if ":" in name else f"{name}:latest").casefold()

    def asked(self, name: str) -> str:
        return name

    async def probe(self) -> Capabilities:
        return Capabilities(kind=self.kind, address="", version="1")

    async def put(self, name: str, artefact: Artefact, progress: Progress = no_progress) -> Deployed:
        self.seen.append(f"put {name.removeprefix(STAGING)[:2] if name.startswith(STAGING) else name}")
        self.began.set()
        await self.go_on.wait()
        if self.fails(name):
            raise TargetStreamBroken(f"died at {name}")
        self.held[name] = artefact.sha256
        return Deployed(name=name, digest=artefact.sha256, size=artefact.size)

    async def verify(self, name: str, golden: Sequence[Golden]) -> Verdict:
        held = not self.differs and name in self.held
        return Verdict(held=held, compared=len(golden), equal=len(golden) * held, detail="as told")

    async def list(self) -> tuple[Deployed, ...]:
        return tuple(Deployed(name=name, digest=digest, size=1) for name, digest in self.held.items())

    async def remove(self, name: str) -> None:
        if self.held.pop(name, None) is None:
            raise DeploymentUnknown(f"no {name}")


class House:
    def __init__(self, lab: Lab, folder: Path) -> None:
        self.targets = {kind: Target(kind) for kind in ("ollama", "embedded")}
        self.refused: set[str] = set()
        self.events: list[str] = []
        self.lab, self.folder = lab, folder
        parts: dict[str, Any] = {
            "deployments": Deployments(lab.registry.local),
            "registry": lab.registry,
            "target": self.targets.__getitem__,
            "check_usable": self._check,
            "clock": lambda: 5,
            "events": SimpleNamespace(emit=lambda kind, data, job=None: self.events.append(kind)),
        }
        self.node = cast(Node, SimpleNamespace(**parts))
        self.deploying = Deploying(self.node)

    def _check(self, adapter: str | None) -> None:
        if adapter in self.refused:
            raise NotAdmitted(f"{adapter} may not be used")

    def made(self, adapter: str, *, target: str = "ollama", name: str = "us", golden: bool = True) -> Deployment:
        """A deployment whose file is in the store; its file's bytes are the adapter's name."""
        (self.folder / adapter).write_text(adapter)
        digest = hashlib.sha256(adapter.encode()).hexdigest()
        self.lab.registry.blobs.put_file(self.folder / adapter, bytes.fromhex(digest))
        return Deployment(
            name=name,
            adapter=adapter,
            target=target,
            state="ready",
            base="demo",
            blob=digest,
            size=len(adapter),
            quantize="F16",
            parity=None,
            created=1,
            made=msgspec.json.encode(Made(golden=GOLDEN if golden else ())).decode(),
        )

    def of_file(self, path: Path, golden: tuple[Golden, ...], *, template: str = "") -> Deployment:
        """A deployment of a real file, as `us` in Ollama."""
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        self.lab.registry.blobs.put_file(path, bytes.fromhex(digest))
        made = msgspec.json.encode(Made(golden=golden, template=template)).decode()
        return msgspec.structs.replace(self.made(digest[:8]), blob=digest, size=len(data), made=made)

    def now(self, name: str = "us") -> str | None:
        return self.node.deployments.get(name).adapter

    def here(self, adapter: str) -> bool:
        return self.lab.registry.blobs.has(hashlib.sha256(adapter.encode()).digest())

    @property
    def ollama(self) -> Target:
        return self.targets["ollama"]


@pytest.fixture
def house(lab: Lab, tmp_path: Path) -> House:
    return House(lab, tmp_path)


def held(adapter: str) -> str:
    return hashlib.sha256(adapter.encode()).hexdigest()


async def test_it_is_tried_beside_what_is_served_and_then_put_there(house: House) -> None:
    await house.deploying.switch(house.made("one"))
    assert house.ollama.held == {"us": held("one")}, "nothing that was tried is left"
    assert house.now() == "one"
    assert house.events == ["deployment.ready"]
    assert (await house.deploying.verify("us")).held


async def test_one_step_back_and_forth(house: House) -> None:
    for adapter in ("one", "two", "three"):
        await house.deploying.switch(house.made(adapter))
    assert [house.here(adapter) for adapter in ("one", "two", "three")] == [False, True, True]
    live = {blob for (blob,) in house.lab.registry.index.read(f"SELECT blob FROM ({LIVE})")}
    assert {held("two"), held("three")} <= live, "tidying up leaves what can be gone back to"
    await house.deploying.roll_back("us")
    assert (house.now(), house.ollama.held["us"]) == ("two", held("two"))
    await house.deploying.roll_back("us")
    assert (house.now(), house.ollama.held["us"]) == ("three", held("three"))
    await house.deploying.remove("us")
    assert house.ollama.held == {}
    assert not house.here("two")
    assert not house.here("three")


async def test_nothing_to_go_back_to(house: House) -> None:
    await house.deploying.switch(house.made("one"))
    with pytest.raises(NothingBefore):
        await house.deploying.roll_back("us")
    await house.deploying.switch(house.made("one"))  # the same again is no step
    with pytest.raises(NothingBefore):
        await house.deploying.roll_back("us")
    with pytest.raises(DeploymentUnknown):
        await house.deploying.roll_back("them")


async def test_what_was_before_may_not_be_used_any_more(house: House) -> None:
    await house.deploying.switch(house.made("one"))
    await house.deploying.switch(house.made("two"))
    house.refused.add("one")
    with pytest.raises(NotAdmitted):
        await house.deploying.roll_back("us")
    assert house.now() == "two"


@pytest.mark.parametrize("golden", [True, False], ids=["tried first", "nothing to try it by"])
async def test_a_target_that_dies_leaves_what_was_served(house: House, golden: bool) -> None:
    await house.deploying.switch(house.made("one"))
    house.ollama.fails = lambda name: True
    with pytest.raises(TargetStreamBroken):
        await house.deploying.switch(house.made("two", golden=golden))
    assert (house.now(), house.ollama.held) == ("one", {"us": held("one")})


async def test_a_target_that_dies_at_the_last_step(house: House) -> None:
    await house.deploying.switch(house.made("one"))
    house.ollama.fails = lambda name: name == "us"
    with pytest.raises(TargetStreamBroken):
        await house.deploying.switch(house.made("two"))
    assert (house.now(), house.ollama.held) == ("one", {"us": held("one")})


@pytest.mark.parametrize("stages", [True, False])
async def test_other_answers_are_not_switched_to(house: House, stages: bool) -> None:
    house.ollama.stages = stages
    await house.deploying.switch(house.made("one"))
    house.ollama.differs = True
    with pytest.raises(AnswerDiffers):
        await house.deploying.switch(house.made("two"))
    assert (house.now(), house.ollama.held) == ("one", {"us": held("one")})
    with pytest.raises(AnswerDiffers):
        await house.deploying.switch(house.made("new", name="new"))
    assert list(house.ollama.held) == ["us"]
    await house.deploying.switch(house.made("two"), force=True)
    assert (house.now(), house.ollama.held) == ("two", {"us": held("two")})


async def test_a_cancelled_switch_leaves_nothing(house: House) -> None:
    await house.deploying.switch(house.made("one"))
    house.ollama.began, house.ollama.go_on = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.deploying.switch, house.made("two"))
        await house.ollama.began.wait()
        nursery.cancel_scope.cancel()
    assert (house.now(), house.ollama.held) == ("one", {"us": held("one")})


async def test_two_at_once_to_one_name(house: House) -> None:
    """One after the other, in full: the name never stands for half of each."""
    async with trio.open_nursery() as nursery:
        for adapter in ("one", "two"):
            nursery.start_soon(house.deploying.switch, house.made(adapter))
    winner = house.now()
    assert winner in ("one", "two")
    assert house.ollama.held == {"us": held(winner or "")}
    assert house.here("one")
    assert house.here("two"), "the other one is what was there before"


async def test_a_name_moves_to_another_target(house: House) -> None:
    await house.deploying.switch(house.made("one"))
    await house.deploying.switch(house.made("two", target="embedded"))
    assert house.ollama.held == {}
    assert house.targets["embedded"].held == {"us": held("two")}
    await house.deploying.roll_back("us")
    assert (house.ollama.held, house.targets["embedded"].held) == ({"us": held("one")}, {})


async def test_what_a_dead_daemon_was_trying_is_tidied(house: House) -> None:
    house.ollama.held[f"{STAGING}dead:latest"] = "x"
    await house.deploying.switch(house.made("one"))
    assert list(house.ollama.held) == ["us"]


async def test_a_model_of_somebody_else_is_not_replaced(house: House) -> None:
    check = house.deploying.check_free
    house.ollama.held["Us:latest"] = "theirs"
    with pytest.raises(TargetNameTaken, match="not made by orchd") as refused:
        await check("us", house.ollama, replace=False)
    assert "--replace" in refused.value.hint
    assert await check("us", house.ollama, replace=True)
    del house.ollama.held["Us:latest"]
    assert not await check("us", house.ollama, replace=False)
    await house.deploying.switch(house.made("one"))
    assert await check("us", house.ollama, replace=False)
    with pytest.raises(TargetNameTaken, match="are one name"):
        await check("us:latest", house.ollama, replace=False)
    house.ollama.held["us"] = "changed by hand"
    with pytest.raises(TargetNameTaken, match="somebody else has changed"):
        await check("us", house.ollama, replace=False)


async def test_what_its_target_has_lost(house: House) -> None:
    await house.deploying.switch(house.made("one"))
    house.ollama.held.clear()
    with pytest.raises(DeploymentUnknown, match="no more"):
        await house.deploying.verify("us")
    await house.deploying.remove("us")
    assert not house.here("one")


async def test_a_deployment_of_an_older_orchd_says_that_it_can_not_be_asked(house: House) -> None:
    house.ollama.held["us"] = "x"
    house.node.deployments.put(msgspec.structs.replace(house.made("one"), made=""))
    found = await house.deploying.verify("us")
    assert not found.held
    assert "deploy it again" in found.detail


async def test_an_adapter_beside_its_base_is_kept_as_long_as_the_base(house: House) -> None:
    """Two files make such a deployment: both stay for the way back, and go with it."""

    def layered(adapter: str) -> Deployment:
        layer = house.made(f"layer of {adapter}").blob
        made = msgspec.json.encode(Made(golden=GOLDEN, layer=layer)).decode()
        return msgspec.structs.replace(house.made("shared"), adapter=adapter, made=made)

    for adapter in ("one", "two", "three"):
        await house.deploying.switch(layered(adapter))
    here = [house.here(f"layer of {adapter}") for adapter in ("one", "two", "three")]
    assert here == [False, True, True], "one base, but another adapter each time: each is a step"
    artefact = house.deploying.artefact(house.node.deployments.get("us"))
    assert artefact.layer is not None
    assert artefact.layer.read_text() == "layer of three"
    await house.deploying.roll_back("us")
    assert house.now() == "two"
    await house.deploying.remove("us")
    assert not any(house.here(name) for name in ("shared", "layer of two", "layer of three"))
