"""Leak reports at the node: what may be published, and how a report that came later is signed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from orchd import leaks
from orchd.average.recipe import recipe_digest
from orchd.errors import AdapterUnknown, LeakReportMissing, LeaksTooMuch, LeakUnmeasurable
from orchd.jobs.states import Job, State
from orchd.leaks import LeakNote, LeakShown
from orchd.node import Node
from orchd.records import Leaf, Lineage, parse_id
from orchd.records.ids import ADAPTER
from orchd.registry import DatasetRow
from orchd.registry.local_rows import Deployment, Run
from orchd.registry.own import Datasets, Deployments
from orchd.rpc.methods_adapters import AdapterPublish, adapter_publish
from orchd.train.leak.figures import CanaryFigure, Centroid, LeakReport
from orchd.train.specs import LeakResult, LeakSettings, Settled, TrainSpec
from tests.helpers import ALICE, BOB, Lab, lora_tensors
from tests.net.support import cluster
from tests.rpc.test_methods_network import node_of

REPORT = LeakReport(
    auc=0.6,
    auc_loss=0.6,
    auc_ratio=0.55,
    interval=0.05,
    members=300,
    heldout=60,
    longest_run=9,
    heldout_run=4,
    excerpt="",
    canaries=(),
    synthetic=False,
    verdict="hints at who was in it: AUC 0.60 ± 0.05",
    stops=False,
    lower=(),
    seconds=1.0,
)
CANARY = CanaryFigure(name="a b", secret="c d", rank=1, alternatives=300, bits=8.2, emitted=True)
CENTROID = Centroid(layer=1, prompts=60, centroid=(0.5, -1.25), spread=(0.1, 2.0))
replace = msgspec.structs.replace


class Home:
    """A node with a registry, data sets, and jobs that are only known."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.told: list[str] = []
        self.jobs: dict[str, Job] = {}
        local = lab.registry.local
        self.node = cast(
            Node,
            SimpleNamespace(
                registry=lab.registry,
                identity=ALICE,
                clock=lambda: lab.now_ms,
                datasets=Datasets(local, lab.root / "datasets", lambda: lab.now_ms),
                deployments=Deployments(local),
                jobs=SimpleNamespace(get=self._get),
                tell_admitted=lambda admission: self.told.append(admission.id),
            ),
        )

    async def _get(self, id: str) -> Job:
        return self.jobs[id]

    def trained(self, name: str = "ours", seed: int = 0, dataset: str = "", **stated: Any) -> str:
        """An adapter of this node's that was trained here; its id."""
        folder = self.lab.folder(name, tensors=lora_tensors(seed))
        claim = self.lab.claim(folder, name=name, author=ALICE.public_key, **stated)
        id = self.lab.admit(folder, claim, origin="trained").id
        self.node.datasets.add_run(Run(adapter=id, dataset=dataset or "dst_x", job="job_1", salt=bytes(32)))
        return id

    def dataset(self, name: str) -> str:
        folder = self.lab.root / f"new {name}"
        folder.mkdir()
        row = DatasetRow(
            id=f"dst_{name}", name=name, kind="qa", train=1, validation=0, test=0, skipped=0, warnings=(), created_ms=1
        )
        return self.node.datasets.add(row, folder).id

    def check(self, id: str, *, despite: bool = False) -> None:
        leaks.check(self.node, self.node.registry.adapter(id), despite=despite)

    async def measured(self, id: str, report: LeakReport, centroid: Centroid | None = None) -> LeakShown:
        note = msgspec.to_builtins(LeakNote(adapter=id))
        job = Job(id="job_2", kind="leak", title="", state=State.RUNNING, created_ms=1, note=note)
        self.lab.now_ms += 1
        return await leaks.finish(self.node, job, LeakResult(report=report, centroid=centroid), Path())


@pytest.fixture
def home(lab: Lab) -> Home:
    return Home(lab)


# ---- signing ------------------------------------------------------------------------------------------------------


async def test_a_report_that_came_later_makes_a_new_version(home: Home) -> None:
    id = home.trained(extra={"next": 1})
    home.node.registry.pin(id)
    shown = await home.measured(id, replace(REPORT, canaries=(CANARY,)), CENTROID)
    registry = home.node.registry
    record = registry.manifest(shown.adapter.id).record
    assert record.leak is not None
    assert (record.leak.auc_ppm, record.leak.verdict) == (600_000, REPORT.verdict)
    assert record.extra["next"] == 1
    figures = record.leak_extra
    assert (figures.members, figures.heldout, figures.interval_ppm) == (300, 60, 50_000)
    assert (figures.longest_run, figures.heldout_run, figures.canaries, figures.emitted) == (9, 4, 1, 1)
    assert record.routing is not None
    assert (record.routing.layer, record.routing.scale) == (1, 10_000)
    assert (record.routing.centroid, record.routing.spread) == ((5_000, -12_500), (1_000, 20_000))
    assert record.supersedes == parse_id(id, ADAPTER)
    assert record.files == registry.manifest(id).record.files
    assert (shown.was, shown.kept, home.told) == (id, False, [shown.adapter.id])
    assert registry.resolve("ours") == shown.adapter.id  # one alone has the name
    assert registry.adapter(shown.adapter.id).pinned
    run = registry.local.get(Run, shown.adapter.id)
    assert run is not None
    assert run.dataset == "dst_x"
    registry.undo(id)
    assert registry.adapter(id).state == "admitted"


async def test_a_daemon_killed_after_signing_signs_no_second_time(home: Home) -> None:
    id = home.trained()
    first = await home.measured(id, REPORT)
    again = await home.measured(id, REPORT)
    assert (again.adapter.id, again.was, again.kept) == (first.adapter.id, id, False)
    assert len(home.told) == 1


async def test_one_that_is_in_use_stays(home: Home) -> None:
    id = home.trained()
    home.node.deployments.put(
        Deployment(
            name="d",
            adapter=id,
            target="t",
            state="ready",
            base="b",
            blob="00",
            size=1,
            quantize="",
            parity=None,
            created=1,
        )
    )
    shown = await home.measured(id, REPORT)
    assert (shown.was, shown.kept) == (id, True)
    assert home.node.registry.adapter(id).state == "admitted"


async def test_what_is_signed_already_is_not_signed_again(home: Home) -> None:
    id = home.trained(**leaks.signed_parts(REPORT, None))
    shown = await home.measured(id, replace(REPORT, auc=0.9))
    assert (shown.adapter.id, shown.was, shown.report.auc) == (id, "", 0.9)
    again = await home.measured(id, REPORT, CENTROID)  # the centroid is new
    assert again.was == id


async def test_nobody_elses_manifest_is_signed(home: Home) -> None:
    folder = home.lab.folder("theirs")
    from orchd.records import sign

    signed = sign(home.lab.claim(folder, author=BOB.public_key), BOB)
    id = home.lab.admit_signed(signed, folder).id
    assert (await home.measured(id, REPORT)).adapter.id == id
    home.check(id)  # theirs to judge


def test_a_foreign_extra_is_no_report(home: Home) -> None:
    parts = leaks.signed_parts(REPORT, None)
    row = home.node.registry.adapter(home.trained(leak=parts["leak"], extra={"leak": {"emitted": "many"}}))
    assert row.leak is not None
    assert (row.leak.auc, row.leak.emitted) == (0.6, 0)


# ---- what may be published ----------------------------------------------------------------------------------------


def test_a_training_without_a_report_is_not_published(home: Home) -> None:
    id = home.trained(dataset=home.dataset("mine"))
    for despite in (False, True):  # the verdict is signed either way
        with pytest.raises(LeakReportMissing, match="ours") as refused:
            home.check(id, despite=despite)
        assert f"leak-report {id}" in str(refused.value.hint)


def test_what_can_not_be_measured_any_more_is_published_by_name(home: Home) -> None:
    id = home.trained(dataset="dst_gone")
    with pytest.raises(LeakReportMissing, match="ours") as refused:
        home.check(id)
    assert "--despite-leak" in str(refused.value.hint)
    home.check(id, despite=True)


@pytest.mark.parametrize(
    ("report", "error"),
    [
        (REPORT, None),
        (replace(REPORT, auc=0.65), None),
        (replace(REPORT, auc=0.6501, verdict="gives away who was in it"), LeaksTooMuch),
        (replace(REPORT, auc=0.5, canaries=(CANARY,)), LeaksTooMuch),
        (replace(REPORT, auc=0.99, canaries=(CANARY,), synthetic=True), None),
        (replace(REPORT, auc=None, verdict="not measured: few"), LeakReportMissing),
    ],
)
def test_the_signed_figure_decides(home: Home, report: LeakReport, error: type[Exception] | None) -> None:
    id = home.trained(**leaks.signed_parts(report, None))
    if error is None:
        home.check(id)
        return
    with pytest.raises(error, match=report.verdict):
        home.check(id)
    home.check(id, despite=True)


async def test_publishing_asks_for_the_report(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a")
        node, id = node_of(a), a.make().id
        node.datasets = Datasets(a.registry.local, tmp_path / "datasets", lambda: 1)
        node.datasets.add_run(Run(adapter=id, dataset="dst_gone", job="job_1", salt=bytes(32)))
        asked = AdapterPublish(adapter=id, topics=["ours"])
        for preview in (True, False):
            with pytest.raises(LeakReportMissing):
                await adapter_publish(node, replace(asked, preview=preview))
        assert not a.network.topics()
        assert (await adapter_publish(node, replace(asked, despite_leak=True))).announcements


async def test_an_average_is_as_good_as_its_leaves(home: Home) -> None:
    one = home.trained("one", 1, **leaks.signed_parts(REPORT, None))
    two = home.trained("two", 2)
    leaves = tuple(sorted((parse_id(id, ADAPTER), 500_000) for id in (one, two)))
    digest = recipe_digest(leaves, method="mean", rank=4, strength_ppm=1_000_000, dtype="F32")
    lineage = Lineage(
        recipe=digest,
        method="mean",
        rank=4,
        strength_ppm=1_000_000,
        leaves=tuple(Leaf(id=id, weight_ppm=weight) for id, weight in leaves),
        previous=None,
        outer=None,
        residual_ppm=0,
        tolerance_ppm=0,
    )
    folder = home.lab.folder("both", tensors=lora_tensors(3))
    claim = home.lab.claim(folder, name="both", author=ALICE.public_key, training=None, lineage=lineage)
    average = home.lab.admit(folder, claim, origin="averaged").id
    with pytest.raises(LeakReportMissing, match=r"two .*, a leaf of both"):
        home.check(average)
    shown = await home.measured(two, REPORT)
    assert shown.kept  # the average is made of it
    home.check(average)
    with pytest.raises(LeakReportMissing) as refused:
        home.check(two)
    assert shown.adapter.id in str(refused.value.hint)
    assert next(leaks.with_ancestors(home.node, average)) == average
    assert set(leaks.with_ancestors(home.node, average)) == {average, one, two}


# ---- what is measured ---------------------------------------------------------------------------------------------


async def test_it_is_measured_on_all_that_it_learnt(home: Home) -> None:
    first, second = home.dataset("first"), home.dataset("second")
    before = home.trained("before", 1, dataset=first)
    training = home.lab.claim(home.lab.folder("x")).training
    assert training is not None
    id = home.trained("after", 2, dataset=second, training=replace(training, initial=parse_id(before, ADAPTER)))
    spec = msgspec.to_builtins(TrainSpec(base="", dataset="", seed=7, canaries=3))
    plan = Settled(
        rank=4, alpha=8.0, learning_rate=0.01, batch_size=8, steps=9, warmup_steps=1, max_length=64, row_tokens=64,
        gradient_checkpointing="off", lora_dropout=0.2,
    )  # fmt: skip
    result = {"epochs": 5.0, "settled": msgspec.to_builtins(plan)}
    home.jobs["job_1"] = Job(
        id="job_1", kind="train", title="", state=State.DONE, created_ms=1, spec=spec, result=result
    )
    found, note = await leaks.plan(home.node, "after", None, routing=True)
    assert note == LeakNote(adapter=id, datasets=(second, first), routing=True)
    folders = [str(home.node.datasets.folder(dataset)) for dataset in (second, first)]
    assert list(found.datasets) == folders
    assert found.settings == LeakSettings(seed=7, canaries=3, routing=True, epochs=5.0, dropout=0.2)
    found, _ = await leaks.plan(home.node, "after", "first", routing=False)
    assert (found.datasets, found.settings) == ((folders[1],), LeakSettings())


async def test_without_its_data_there_is_no_report(home: Home) -> None:
    id = home.trained(dataset="dst_gone")
    with pytest.raises(LeakUnmeasurable, match="is not here"):
        await leaks.plan(home.node, id, None, routing=False)
    with pytest.raises(AdapterUnknown):
        await leaks.plan(home.node, "nobody", None, routing=False)
