"""What is refused before a job is started."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from orchd.errors import AdapterUnknown, AverageSpecInvalid, ParamsInvalid
from orchd.jobs.states import Job
from orchd.node import Node
from orchd.rpc.methods_average import AverageStart, average_start
from orchd.rpc.methods_serving import DeployStart, deploy_start
from orchd.rpc.methods_training import AdapterEvaluate, TrainStart, adapter_evaluate, train_start
from orchd.train.retention_store import RetentionSets
from orchd.train.runs import Runs
from tests.helpers import Lab


class Work:
    """A node with a base, whose jobs are only noted down."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.specs: list[Any] = []
        self.notes: list[Any] = []
        #: By run: the adapter that it ended with.
        self.ended: dict[str, str] = {}
        self.jobs: dict[str, Job] = {}
        self.full: Callable[[], None] = lambda: None
        self.data = lab.root / "datasets"
        self.kind = "chat"
        self.node = cast(
            Node,
            SimpleNamespace(
                registry=lab.registry,
                jobs=SimpleNamespace(
                    submit=self._submit,
                    submit_local=self._submit,
                    next_id=lambda: "job_new",
                    get=self._get,
                    going=lambda kind: [],
                ),
                deploying=SimpleNamespace(starting=trio.Lock(), check_free=self._free),
                datasets=SimpleNamespace(
                    get=lambda text: SimpleNamespace(id=text, name=text, kind=self.kind),
                    folder=lambda id: self.data / id,
                    adapter_of=self.ended.get,
                ),
                runs=Runs(lab.root / "runs"),
                retention=RetentionSets(lab.root / "retention"),
                unfinished_jobs=self._unfinished,
                target=lambda kind: SimpleNamespace(check_name=lambda name: None),
                network=SimpleNamespace(caught_up=self._caught_up),
                environment=SimpleNamespace(note=self._nothing),
            ),
        )

    async def _free(self, name: str, target: Any, *, replace: bool) -> bool:
        return False

    async def _nothing(self) -> str:
        return ""

    async def _caught_up(self) -> None:
        pass

    async def _submit(self, kind: str, spec: Any, **more: Any) -> Any:
        self.specs.append(spec)
        self.notes.append(more.get("note"))
        return SimpleNamespace(id="job_1")

    async def _get(self, id: str) -> Job:
        return self.jobs[id]

    async def _unfinished(self) -> list[Job]:
        return [job for job in self.jobs.values() if not job.state.ended]


@pytest.fixture
def work(lab: Lab) -> Work:
    return Work(lab)


@pytest.mark.parametrize("adapters", [[], ["alone"]])
async def test_an_average_is_of_two_or_more(lab: Lab, adapters: list[str]) -> None:
    node = cast(Node, SimpleNamespace(registry=lab.registry))
    with pytest.raises(AverageSpecInvalid, match=f"two adapters or more, not of {len(adapters)}") as refused:
        await average_start(node, AverageStart(adapters=adapters))
    assert refused.value.field == "adapters"


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        ({"schedule_total": 10, "schedule_offset": 50}, "schedule_offset", "a schedule of 10 steps has none left"),
        ({"schedule_total": 100, "schedule_offset": 50, "steps": 60}, "steps", "60 steps after the first 50"),
        ({"schedule_offset": 50}, "schedule_offset", "an offset of 50 steps is into no schedule"),
        ({"steps": -5}, "steps", "steps -5 is not from 0 to 1,000,000"),
        ({"learning_rate": 2.0}, "learning_rate", "from 1e-07 to 1"),
    ],
)
async def test_steps_that_fit_no_schedule(asked: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(ParamsInvalid, match=said) as refused:
        await train_start(cast(Node, None), TrainStart(dataset="mine", **asked))
    assert refused.value.field == field
    assert "the message says" not in refused.value.hint


async def test_a_run_without_steps_takes_what_its_schedule_has_left(work: Work) -> None:
    await train_start(work.node, TrainStart(dataset="mine", base="tiny", schedule_total=100, schedule_offset=30))
    await train_start(work.node, TrainStart(dataset="mine", base="tiny", schedule_total=100, steps=20))
    await train_start(work.node, TrainStart(dataset="mine", base="tiny"))
    assert [spec.steps for spec in work.specs] == [70, 20, 0]


async def test_a_file_kind_is_known_in_any_case(work: Work) -> None:
    await deploy_start(work.node, DeployStart(name="us", base="tiny", quantize="q8_0"))
    assert work.specs[0].quantize == "Q8_0"
    with pytest.raises(ParamsInvalid, match="'q5' is not F32, F16, Q8_0"):
        await deploy_start(work.node, DeployStart(name="us", base="tiny", quantize="q5"))


async def test_adapters_that_are_not_here_are_said_of_adapters(work: Work) -> None:
    with pytest.raises(AdapterUnknown) as refused:
        await adapter_evaluate(work.node, AdapterEvaluate(adapters=["nobody"], dataset="mine"))
    assert refused.value.field == "adapters"
