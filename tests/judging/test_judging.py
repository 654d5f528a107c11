"""The gate at work: real adapters, a real base, held-out rows; honest people, hostile ones, and what goes wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from orchd.average.gate_specs import GatePlan, Opinion
from orchd.average.specs import AverageResult, AverageSpec, PlanSpec, VerifySpec
from orchd.average.worker import run_verify
from orchd.errors import GateDataUnfit, JobCancelled, LeafUnreadable, TooFewPassed
from orchd.jobs.context import JobContext
from orchd.judging.job import run, run_plan
from tests.average.bench import Messages
from tests.judging.conftest import People
from tests.train.conftest import new_job

ALIKE = ("rev0", "rev1", "rev2")


@pytest.fixture
def work(tmp_path: Path) -> JobContext:
    return new_job(tmp_path / "job")


def stages(result: AverageResult) -> dict[str, str]:
    assert result.gate is not None
    return {leaf.id: leaf.stage for leaf in result.gate.leaves}


def test_honest_people_are_kept_and_their_average_is_better(people: People, work: JobContext) -> None:
    result = run(people.spec(*ALIKE), work)
    gate = result.gate
    assert gate is not None
    assert stages(result) == dict.fromkeys(ALIKE, "kept")
    assert result.leaves == ALIKE
    assert gate.against_base is not None
    assert gate.against_base.surely_better
    assert (gate.choosing, gate.deciding, gate.rows) == (36, 36, 72)
    assert not any(one.jumped for one in gate.probes)
    assert gate.evaluations >= 1 + 3 + 1 + 3 + 2 + 1 + 1 + 3 - 1
    best = min(leaf.single.against for leaf in gate.leaves if leaf.single is not None)
    assert gate.verdict == ("better" if gate.against_base.loss < best else "candidate")


@pytest.mark.parametrize("data", ["own", "mixed"])
@pytest.mark.parametrize("by", [-1.0, -3.0, -100.0])
def test_who_takes_back_what_others_learnt_is_refused(people: People, work: JobContext, data: str, by: float) -> None:
    """Among alike people, and among unlike ones: sign flipped, three times the opposite, a hundred times."""
    names = ALIKE if data == "own" else ("rev0", "rev1", "upper")
    bad = people.changed("rev2", lambda b: by * b)
    result = run(people.spec(*names, data=data, bad=bad), work)
    assert stages(result) == dict.fromkeys(names, "kept") | {"bad": "alone"}
    assert result.leaves == names
    assert result.gate is not None
    assert "makes your held-out rows worse" in result.gate.leaves[3].reason


def test_a_loud_one_is_clipped_and_its_shape_decides(people: People, work: JobContext) -> None:
    loud = people.changed("rev2", lambda b: 100 * b)
    result = run(people.spec("rev0", "rev1", loud=loud), work)
    assert stages(result)["loud"] == "kept"
    assert result.gate is not None
    assert result.gate.against_base is not None
    assert result.gate.against_base.surely_better


def test_what_the_gate_decided_can_be_verified_from_the_leaves(people: People, work: JobContext) -> None:
    bad = people.changed("rev2", torch.neg)
    spec = people.spec("rev0", "rev1", "upper", data="mixed", bad=bad)
    result = run(spec, work)
    kept = [leaf for leaf in spec.adapters if leaf.id in result.leaves]
    leaves = tuple(replace(leaf, weight=ppm) for leaf, ppm in zip(kept, result.weights_ppm, strict=True))
    check = VerifySpec(
        claimed=str(work.workdir / result.adapter),
        leaves=leaves,
        rank=spec.rank,
        method=result.method,
        strength=result.strength_ppm / 1e6,
        tolerance_ppm=result.tolerance_ppm,
        coefficients_ppm=result.coefficients_ppm,
    )
    assert run_verify(check, work).holds
    assert not run_verify(replace(check, strength=check.strength / 2), work).holds


def test_the_word_of_followed_people_counts_without_data(people: People, work: JobContext) -> None:
    spec = replace(people.spec(*ALIKE), gate=None, ungated="no data", opinions=(Opinion(adapter="rev1", worse=1),))
    result = run(spec, work)
    assert result.leaves == ("rev0", "rev2")
    assert result.gate is not None
    assert (result.gate.verdict, result.gate.reason) == ("off", "no data")
    assert stages(result)["rev1"] == "attested"


def test_nobody_asked_for_a_gate(people: People, work: JobContext) -> None:
    assert run(replace(people.spec(*ALIKE), gate=None), work).gate is None


def test_with_one_honest_adapter_left_there_is_no_average(people: People, work: JobContext) -> None:
    with pytest.raises(TooFewPassed, match=r"1 of 2 adapters are left: bad: a quarter of it alone"):
        run(people.spec("rev0", bad=people.changed("rev1", torch.neg)), work)
    assert list(work.workdir.iterdir()) == []


def test_hardly_any_time_takes_few_rows_and_still_decides(people: People, work: JobContext) -> None:
    result = run(people.spec(*ALIKE, seconds=1e-6), work)
    assert result.gate is not None
    assert (result.gate.choosing, result.gate.deciding, result.gate.late) == (10, 10, True)
    assert result.gate.verdict in ("better", "candidate")


def test_too_few_rows_are_refused(people: People, work: JobContext) -> None:
    with pytest.raises(GateDataUnfit, match="few: 4 held-out conversations or documents of one half fit this base, 10"):
        run(people.spec(*ALIKE, data="few"), work)


def test_a_leaf_whose_bytes_vanish_is_told_by_name(people: People, work: JobContext) -> None:
    gone = people.changed("rev0", lambda b: b)
    shutil.rmtree(gone)
    with pytest.raises(LeafUnreadable, match="gone: its files can't be read"):
        run(people.spec("rev1", "rev2", gone=gone), work)


def test_cancelled_between_two_questions_it_leaves_nothing(people: People, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()

    class Wire(Messages):
        def send(self, message: Any) -> None:
            super().send(message)
            if message.get("unit") == "gate evaluations" and message["done"] == 3 and self.job is not None:
                self.job.cancel()

    wire = Wire()
    job = wire.job = JobContext(tmp_path / "job", 1, wire, iter(map(float, range(10**6))).__next__)
    with pytest.raises(JobCancelled):
        run(people.spec(*ALIKE), job)
    assert list(job.workdir.iterdir()) == []
    last = wire.sent[-1]
    assert (last["unit"], last["done"]) == ("gate evaluations", 3)
    assert 0 < last["figures"]["time_left_s"] <= 600  # type: ignore[index]


def test_a_preview_asks_the_same_and_writes_nothing(people: People, work: JobContext) -> None:
    bad = people.changed("rev2", torch.neg)
    spec: AverageSpec = people.spec("rev0", "rev1", bad=bad)
    wanted = PlanSpec(average=spec, names=("a", "b", "c"), through=True, gate=GatePlan(on=True, reason="yours"))
    plan = run_plan(wanted, work)
    assert [leaf.name for leaf in plan.leaves] == ["a", "b"]
    assert plan.judged is not None
    assert [leaf.stage for leaf in plan.judged.leaves] == ["kept", "kept", "alone"]
    assert plan.preview is not None
    assert list(work.workdir.iterdir()) == []
    told = run_plan(replace(wanted, through=False), work)
    assert (told.judged, told.gate) == (None, wanted.gate)
