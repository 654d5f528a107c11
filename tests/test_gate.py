"""The gate of newer versions: what they are compared with, where they wait, and what a crash in the middle leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from orchd import gate as module
from orchd.errors import JobFailed, NotAdmitted
from orchd.gate import WAITS, Gate, before, waits
from orchd.jobs import State
from orchd.node import Node
from orchd.records import parse_id
from orchd.records.ids import ADAPTER
from orchd.registry import ADMITTED, QUARANTINED, AdapterRow
from orchd.registry.local_rows import Deployment, Succession
from orchd.registry.own import Deployments
from orchd.rpc.methods_adapters import AdapterPublish, adapter_publish
from orchd.rpc.methods_serving import DeployStart
from tests.helpers import ALICE, BOB, Lab, lora_tensors


@dataclass
class Ended:
    id: str
    result: Any
    state: State
    title: str = "test"


class House:
    """Bob's node with versions by Alice; a measurement gives the loss that was noted for an adapter."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lab = Lab(root, author=BOB)
        self.loss: dict[str, float] = {}
        self.measured: list[tuple[str, str]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.deployed: list[tuple[str, str]] = []
        self.exams = [
            SimpleNamespace(id="dst_new", name="exam", test=3),
            SimpleNamespace(id="dst_old", name="o", test=1),
        ]
        self.fails = False
        self.jobs: dict[str, Ended] = {}
        self.deploy_state = State.DONE
        self.meanwhile: Any = None
        monkeypatch.setattr(module, "evaluation", self._evaluation)
        monkeypatch.setattr(module, "deploy_start", self._deploy)
        self.begin()

    def begin(self) -> None:
        """As after a start: nothing is remembered but what is on disk."""
        registry = self.lab.registry
        parts = {
            "registry": registry,
            "deployments": Deployments(registry.local),
            "datasets": SimpleNamespace(list=lambda: self.exams),
            "jobs": SimpleNamespace(submit=self._submit, wait=self._wait),
            "events": SimpleNamespace(emit=lambda kind, data: self.events.append((kind, data))),
            "clock": lambda: self.lab.now_ms,
        }
        self.node = cast(Node, SimpleNamespace(**parts))
        self.gate = Gate(self.node)

    def crash(self) -> None:
        self.lab.registry.close()
        self.lab.open()
        self.begin()

    def version(self, loss: float, supersedes: str | None = None, *, tested: bool = True, name: str = "style") -> str:
        number = len(self.loss) + 1
        self.lab.now_ms += 1000
        folder = self.lab.folder(f"v{number}", tensors=lora_tensors(seed=number))
        old = None if supersedes is None else parse_id(supersedes, ADAPTER)
        claim = self.lab.claim(folder, name=name, supersedes=old)
        id = self.lab.admit(folder, claim, checks=(waits(self.node),) if tested else ()).id
        self.loss[id] = loss
        return id

    def row(self, id: str) -> AdapterRow:
        return self.node.registry.adapter(id)

    def deploy(self, name: str, adapter: str) -> None:
        row = Deployment(
            name=name,
            adapter=adapter,
            target="embedded",
            state="ready",
            base="tiny",
            blob="00" * 32,
            size=1,
            quantize="Q8_0",
            parity=None,
            created=1,
        )
        self.node.deployments.put(row)

    async def _evaluation(self, node: Node, rows: Sequence[AdapterRow], *, dataset: str, base: bool) -> Any:
        assert (dataset, base) == ("dst_new", False)
        if self.meanwhile is not None:
            self.meanwhile()
        if self.fails:
            raise JobFailed("no memory is left")
        return [row.id for row in rows]

    async def _submit(self, kind: str, spec: Any, *, title: str) -> Ended:
        one, other = spec
        self.measured.append((one, other))
        row = {"name": "", "examples": 1, "tokens": 1, "exact_match": 0.0, "loss_interval": 0.0, "seconds": 0.0}
        self.jobs[title] = Ended(title, {"rows": [row | {"id": id, "loss": self.loss[id]} for id in spec]}, State.DONE)
        return self.jobs[title]

    async def _deploy(self, node: Node, p: DeployStart) -> Any:
        assert p.adapter is not None
        if self.row(p.adapter).state != ADMITTED:
            raise NotAdmitted("in quarantine")
        self.deployed.append((p.name, p.adapter))
        self.jobs["deploy"] = Ended("deploy", None, self.deploy_state)
        return SimpleNamespace(job="deploy")

    async def _wait(self, job: str) -> Ended:
        return self.jobs[job]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House(tmp_path, monkeypatch)


async def test_each_version_is_compared_with_the_newest_admitted_one(house: House) -> None:
    first = house.version(6.639, tested=False)
    second = house.version(9.0, first)
    await house.gate.pass_through(second)
    third = house.version(10.567, second)
    await house.gate.pass_through(third)
    fourth = house.version(7.028, third)  # better than what it supersedes, worse than what is in use
    await house.gate.pass_through(fourth)
    assert house.measured == [(first, second), (first, third), (first, fourth)]
    assert {house.row(one).state for one in (second, third, fourth)} == {QUARANTINED}
    assert "worse on your data set exam than" in house.row(fourth).reason
    assert f"style ({first}), the newest version that is admitted: loss 7.028, before 6.639" in house.row(fourth).reason
    fifth = house.version(6.0, fourth)
    await house.gate.pass_through(fifth)
    assert (house.row(fifth).state, house.row(fifth).reason) == (ADMITTED, "")
    kind, told = house.events[-1]
    assert (kind, told["id"], told["instead_of"]) == ("adapter.updated", fifth, first)
    assert told["reason"] == "no worse on your data set exam: loss 6.000, before 6.639"


async def test_it_is_in_quarantine_until_it_was_tested(house: House) -> None:
    first = house.version(6.6, tested=False)
    new = house.version(6.0, first)
    seen: list[tuple[str, str]] = []
    house.meanwhile = lambda: seen.append((house.row(new).state, house.node.registry.resolve(f"style@{ALICE.author}")))
    row = house.row(new)
    assert (row.state, row.reason) == (QUARANTINED, f"{WAITS} on your data set exam")
    with pytest.raises(NotAdmitted, match="waits for its test"):
        await adapter_publish(house.node, AdapterPublish(adapter=new, topics=["a/b"]))
    await house.gate.pass_through(new)
    assert seen == [(QUARANTINED, first)]
    assert house.node.registry.resolve(f"style@{ALICE.author}") == new


async def test_what_can_not_be_tested_is_let_in(house: House) -> None:
    first = house.version(6.6, tested=False)
    house.exams = []
    new = house.version(99.0, first)
    await house.gate.pass_through(new)
    assert house.row(new).state == ADMITTED
    assert house.events[-1][1]["reason"] == "nothing to test it on"


async def test_a_test_that_fails_decides_nothing_and_is_made_again(house: House) -> None:
    first = house.version(6.6, tested=False)
    new = house.version(99.0, first)
    house.fails = True
    await house.gate.pass_through(new)
    assert house.row(new).state == QUARANTINED
    assert house.row(new).reason.startswith(f"{WAITS}: it could not be made (no memory is left)")
    assert house.events[-1][0] == "adapter.update_untested"
    house.fails = False
    await house.gate.finish()
    assert "worse on your data set exam" in house.row(new).reason
    assert WAITS not in house.row(new).reason


async def test_who_was_let_in_by_hand_is_not_tested(house: House) -> None:
    first = house.version(6.6, tested=False)
    new = house.version(99.0, first)
    house.node.registry.release(new)
    await house.gate.pass_through(new)
    assert (house.row(new).state, house.measured) == (ADMITTED, [])


async def test_deployments_go_over_once(house: House) -> None:
    first = house.version(6.6, tested=False)
    house.deploy("serving", first)
    new = house.version(6.0, first)
    await house.gate.pass_through(new)
    assert house.deployed == [("serving", new)]
    await house.gate.pass_through(new)
    await house.gate.finish()
    assert house.deployed == [("serving", new)], "whoever went back to the old one is left there"


async def test_a_crash_before_the_test_was_done(house: House) -> None:
    first = house.version(6.6, tested=False)
    new = house.version(9.0, first)
    with trio.CancelScope() as scope:
        house.meanwhile = scope.cancel
        await house.gate.pass_through(new)
    house.meanwhile = None
    house.crash()
    assert house.row(new).state == QUARANTINED
    await house.gate.finish()
    assert "worse on your data set exam" in house.row(new).reason


async def test_a_crash_before_the_deployments_went_over(house: House) -> None:
    first = house.version(6.6, tested=False)
    house.deploy("serving", first)
    new = house.version(6.0, first)
    house.deploy_state = State.INTERRUPTED
    await house.gate.pass_through(new)
    house.crash()
    house.deploy_state = State.DONE
    assert house.row(new).state == ADMITTED
    assert [row.was for row in house.node.registry.local.all(Succession)] == [first]
    house.deployed.clear()
    await house.gate.finish()
    assert house.deployed == [("serving", new)]
    assert house.node.registry.local.all(Succession) == []


async def test_what_was_replaced_by_a_newer_one_takes_nothing_over(house: House) -> None:
    first = house.version(6.6, tested=False)
    house.deploy("serving", first)
    second = house.version(6.0, first)
    third = house.version(5.0, second)
    await house.gate.pass_through(third)
    await house.gate.pass_through(second)
    assert house.row(second).state == house.row(third).state == ADMITTED
    assert house.deployed == [("serving", third)]


def test_an_older_version_is_never_the_measure_of_what_came_before_it(house: House) -> None:
    first = house.version(6.6, tested=False)
    second = house.version(6.0, first, tested=False)
    assert before(house.node, house.row(first)) is None
    found = before(house.node, house.row(second))
    assert found is not None
    assert found.id == first
