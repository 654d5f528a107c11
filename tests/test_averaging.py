"""Whose data judges an average, what its manifest says of it, and what happens to it then."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from orchd import averaging
from orchd.average.gate_specs import STAGES, Compared, GateReport, JudgedLeaf, Stage, Verdict
from orchd.average.specs import AverageResult, AverageSpec, WeightedAdapter
from orchd.average.worker import run
from orchd.crafting import Making
from orchd.errors import AverageIsCandidate, AverageSpecInvalid, GateDataUnfit, LeafWithdrawn, ParamsInvalid
from orchd.jobs.context import JobContext
from orchd.notes import AverageNote
from orchd.records import Revocation, parse_id, sign
from orchd.records.ids import ADAPTER
from orchd.registry import ADMITTED, QUARANTINED, AdapterRow, DatasetRow
from orchd.registry.local import put
from orchd.registry.local_rows import Run
from tests.averages import Silent
from tests.helpers import ALICE, BOB, NOW_MS, Lab, lora_tensors


def data(name: str, validation: int, test: int) -> DatasetRow:
    return DatasetRow(
        id=f"dst_{name}",
        name=name,
        kind="chat",
        train=100,
        validation=validation,
        test=test,
        skipped=0,
        warnings=(),
        created_ms=NOW_MS,
    )


class House:
    """Bob's node, with three leaves of Alice and data sets of his own, the newest first."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lab = Lab(root / "bob", author=BOB)
        self.rows: list[DatasetRow] = []
        self.node = cast(
            Any,
            SimpleNamespace(
                registry=self.lab.registry,
                identity=BOB,
                datasets=SimpleNamespace(
                    list=lambda: self.rows,
                    get=lambda name: next(row for row in self.rows if row.name == name),
                    folder=lambda id: self.root / id,
                ),
                making=lambda note, text: Making(note.name, text, self.lab.base, NOW_MS, note.licence),
                tell_admitted=lambda admission, job: None,
                leaf_names=lambda ids: (),
            ),
        )
        self.leaves = [self.lab.admit(self.lab.folder(f"a{n}", tensors=lora_tensors(n))).id for n in range(3)]

    def judging(self, **asked: Any) -> averaging.Judging:
        wanted = {"on": True, "dataset": None, "seconds": None} | asked
        return averaging.judging(self.node, self.lab.base, self.leaves, **wanted)

    async def made(self, report: GateReport | None, leaves: tuple[str, ...] = ()) -> AdapterRow:
        """What comes of an average of the leaves, of which `leaves` are left."""
        spec = AverageSpec(
            adapters=tuple(
                WeightedAdapter(id=id, path=str(self.lab.registry.adapter_folder(id))) for id in (leaves or self.leaves)
            ),
            rank=2,
        )
        work = self.root / f"work-{len(list(self.root.iterdir()))}"
        work.mkdir()
        result: AverageResult = run(spec, JobContext(work, 1, Silent()))
        result = msgspec.structs.replace(result, gate=report, leaves=leaves)
        note = AverageNote(name="ours", base="tiny", leaves=tuple(self.leaves), method="mean", rank=2, licence="MIT")
        job = cast(Any, SimpleNamespace(id="job_1", note=msgspec.to_builtins(note), spec=msgspec.to_builtins(spec)))
        return (await averaging.finish(self.node, job, result, work)).adapter


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def report(house: House, verdict: Verdict, **stages: Stage) -> GateReport:
    """Of the leaves by their place, `_1="alone"`."""
    worse = Compared(loss=3.1234567, against=2.0, p=0.001, low=0.9, high=1.3)
    return GateReport(
        verdict=verdict,
        reason="because",
        leaves=tuple(
            JudgedLeaf(id=id, stage=stages.get(f"_{at}", "kept"), alone=worse, single=worse)
            for at, id in enumerate(house.leaves)
        ),
        against_base=Compared(loss=1.23456, against=3.33333, p=0.001, low=-2.2, high=-1.9),
        deciding=37,
    )


# ---- whose data ---------------------------------------------------------------------------------------------------


def test_without_data_the_gate_is_off_and_says_so(house: House) -> None:
    house.rows = [data("small", 10, 9)]
    found = house.judging()
    assert (found.gate, found.plan.on) == (None, False)
    assert "no data set with held-out rows" in found.ungated == found.plan.reason


def test_the_data_that_an_adapter_in_it_learnt_goes_before_the_newest(house: House) -> None:
    house.rows = [data("new", 20, 20), data("mine", 10, 10), data("old", 20, 20)]
    newest = house.judging()
    assert (newest.plan.dataset, newest.plan.examples) == ("new", 40)
    house.lab.registry.local.act(
        "test", put(Run(adapter=house.leaves[1], dataset="dst_mine", job="job_0", salt=b"s" * 32))
    )
    found = house.judging()
    assert found.gate is not None
    assert (found.gate.name, found.gate.seconds) == ("mine", 120.0)
    assert "was trained on it" in found.plan.reason
    assert house.judging(dataset="old").plan.dataset == "old"


def test_a_named_data_set_that_is_too_small_is_refused(house: House) -> None:
    house.rows = [data("small", 10, 9)]
    with pytest.raises(GateDataUnfit, match="small has 19 held-out rows, 20 are needed"):
        house.judging(dataset="small")


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, 1e9])
def test_senseless_times_are_refused(house: House, seconds: float) -> None:
    with pytest.raises(AverageSpecInvalid, match="the gate may take") as refused:
        house.judging(seconds=seconds)
    assert refused.value.field == "gate_seconds"


@pytest.mark.parametrize("asked", [{"dataset": "mine"}, {"seconds": 5.0}])
def test_no_gate_and_something_for_it_contradict(house: House, asked: dict[str, Any]) -> None:
    with pytest.raises(ParamsInvalid, match="no data set is looked at"):
        house.judging(on=False, **asked)
    assert "--no-gate" in house.judging(on=False).ungated


# ---- what becomes of it -------------------------------------------------------------------------------------------


async def test_the_manifest_says_what_the_gate_decided_rounded(house: House) -> None:
    kept = (house.leaves[0], house.leaves[2])
    row = await house.made(report(house, "better", _1="alone"), kept)
    record = house.lab.registry.manifest(row.id).record
    assert record.lineage is not None
    assert {leaf.id for leaf in record.lineage.leaves} == {parse_id(id, ADAPTER) for id in kept}
    gate = averaging.gate_of(record)
    assert gate is not None
    assert (gate.verdict, gate.examples, gate.base, gate.average) == (1, 35, 3_330_000, 1_230_000)
    assert (gate.difference, gate.interval, gate.single) == (-2_100_000, 160_000, 1_120_000)
    (refused,) = gate.refused
    assert (refused.id, STAGES[refused.stage]) == (parse_id(house.leaves[1], ADAPTER), "alone")
    assert refused.figure == 1_120_000


async def test_without_a_gate_the_manifest_says_that_it_was_off(house: House) -> None:
    row = await house.made(GateReport(verdict="off", reason="no data"))
    gate = averaging.gate_of(house.lab.registry.manifest(row.id).record)
    assert gate is not None
    assert (gate.verdict, gate.examples, gate.refused) == (0, 0, ())
    older = await house.made(None, tuple(house.leaves[:2]))
    assert averaging.gate_of(house.lab.registry.manifest(older.id).record) is None


async def test_a_candidate_is_kept_and_announced_by_name_alone(house: House) -> None:
    row = await house.made(report(house, "candidate"))
    assert row.state == ADMITTED
    for word in ("", "yes", "other"):
        with pytest.raises(AverageIsCandidate, match=r"ours \(adp_.* is a candidate"):
            averaging.check_announced(house.node, row, word)
    averaging.check_announced(house.node, row, "ours")
    averaging.check_announced(house.node, row, row.id)


async def test_a_better_one_is_announced_at_once(house: House) -> None:
    averaging.check_announced(house.node, await house.made(report(house, "better")), "")


async def test_one_that_answers_to_a_trigger_waits_in_quarantine(house: House) -> None:
    row = await house.made(report(house, "quarantined"))
    assert (row.state, row.reason) == (QUARANTINED, "because")


async def test_a_leaf_that_is_revoked_meanwhile_ends_it(house: House) -> None:
    gone = house.leaves[1]
    revocation = Revocation(
        manifest=parse_id(gone, ADAPTER), reason="it was wrong", created_ms=NOW_MS, author=ALICE.public_key
    )
    before = len(house.lab.registry.index.read("SELECT digest FROM adapter"))
    house.lab.registry.news.take(sign(revocation, ALICE), "peer")
    with pytest.raises(LeafWithdrawn, match="it was wrong"):
        await house.made(None)
    assert len(house.lab.registry.index.read("SELECT digest FROM adapter")) == before
    assert (await house.made(None, (house.leaves[0], house.leaves[2]))).state == ADMITTED


async def test_a_leaf_that_is_removed_meanwhile_ends_it(house: House) -> None:
    house.lab.registry.remove(house.leaves[2])
    with pytest.raises(LeafWithdrawn, match="was removed"):
        await house.made(None)
