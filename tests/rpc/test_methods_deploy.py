"""Beginning a deployment: what is done already, what is under way, and what is refused before anything is built."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from orchd.deploying import STAGING, Made
from orchd.errors import DeployOntoRefused, DeployUnderWay, TargetNameRefused, TargetUnreachable
from orchd.importers.conversation import Message
from orchd.notes import DeployNote
from orchd.registry.local_rows import Deployment
from orchd.registry.own import Deployments
from orchd.rpc.methods_serving import DeployStart, deploy_start
from orchd.serve.ollama import OllamaTarget
from orchd.serve.specs import Golden
from tests.helpers import Lab
from tests.rpc.test_methods_training import Work

GOLDEN = (Golden(messages=(Message("user", "hello"),), rendered="hello", answer="zavo", max_new_tokens=4),)


@pytest.fixture
def work(lab: Lab) -> Work:
    made = Work(lab)
    node: Any = made.node
    node.deployments = Deployments(lab.registry.local)
    node.deployment_row = _row

    async def there(name: str, target: Any, *, replace: bool) -> bool:
        return any(row.name == name for row in node.deployments.list())

    node.deploying.check_free = there
    return made


async def _row(row: Deployment) -> Any:
    return SimpleNamespace(name=row.name)


def deployed(work: Work, **changes: Any) -> None:
    row = Deployment(
        name="us",
        adapter=None,
        target="embedded",
        state="ready",
        base="tiny",
        blob="00" * 32,
        size=1,
        quantize="F16",
        parity=None,
        created=0,
        made=msgspec.json.encode(Made(golden=GOLDEN)).decode(),
    )
    work.node.deployments.put(msgspec.structs.replace(row, **changes))


async def test_the_same_again_does_nothing_and_says_so(work: Work) -> None:
    wanted = DeployStart(name="us", base="tiny", quantize="F16")
    assert (await deploy_start(work.node, wanted)).job == "job_1"
    deployed(work)
    again = await deploy_start(work.node, wanted)
    assert (again.job, again.note) == (None, "us answers so already: nothing was done")
    assert again.deployment is not None
    assert len(work.specs) == 1
    assert (await deploy_start(work.node, msgspec.structs.replace(wanted, force=True))).job


@pytest.mark.parametrize(
    "other",
    [{"adapter": "adp_x"}, {"quantize": "Q8_0"}, {"target": "ollama"}, {"state": "rolled_back"}, {"made": ""}],
    ids=lambda other: next(iter(other)),
)
async def test_what_is_not_the_same_is_made(work: Work, other: dict[str, Any]) -> None:
    deployed(work, **other)
    assert (await deploy_start(work.node, DeployStart(name="us", base="tiny", quantize="F16"))).job == "job_1"


async def test_the_second_of_two_at_once_is_told(work: Work) -> None:
    note = DeployNote(name="us", adapter=None, target="embedded", base="tiny", force=False)
    job = SimpleNamespace(id="job_9", note=msgspec.to_builtins(note))
    work.node.jobs.going = lambda kind: [job] if kind == "deploy" else []  # type: ignore[method-assign]
    with pytest.raises(DeployUnderWay, match="by job_9") as refused:
        await deploy_start(work.node, DeployStart(name="us", base="tiny"))
    assert "orchctl job cancel job_9" in refused.value.hint
    assert (await deploy_start(work.node, DeployStart(name="them", base="tiny"))).job == "job_1"


@pytest.mark.parametrize("name", ["a/b", "x" * 200, "", "-x", f"{STAGING}1", "ü"])
async def test_names_that_are_none(work: Work, name: str) -> None:
    with pytest.raises(TargetNameRefused):
        await deploy_start(work.node, DeployStart(name=name, base="tiny"))
    assert work.specs == []


async def test_only_ollama_has_models_to_deploy_onto(work: Work) -> None:
    work.node.target = lambda kind: SimpleNamespace(kind=kind, check_name=lambda name: None)  # type: ignore
    with pytest.raises(DeployOntoRefused):
        await deploy_start(work.node, DeployStart(name="us", base="tiny", onto="gemma"))
    work.node.target = lambda kind: OllamaTarget("127.0.0.1:9")  # type: ignore
    with pytest.raises(TargetUnreachable):  # before anything is built
        await deploy_start(work.node, DeployStart(name="us", base="tiny", target="ollama", onto="gemma"))
    assert work.specs == []
