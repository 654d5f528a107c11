"""Trainings that were begun: which can go on, what is kept of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchd.errors import CheckpointUnknown, OrchdError, ParamsInvalid, RunNotResumable, TrainingDiverged
from orchd.jobs.states import ErrorInfo, Job, State
from orchd.notes import TrainNote
from orchd.rpc import methods_runs as runs_methods
from orchd.rpc.methods_jobs import JobParams
from orchd.rpc.methods_runs import CheckpointCleanup, CheckpointList
from orchd.rpc.methods_training import TrainContinue, TrainStart, train_continue_from, train_start
from orchd.train import runs
from orchd.train.curves import Curves, StepPoint, ValidationPoint
from orchd.train.runs import Good
from orchd.train.specs import Checkpointing, EarlyStopping, Settled, TrainSpec
from tests.helpers import Lab
from tests.rpc.test_methods_training import Work

RUN = "job_first"


@pytest.fixture
def work(lab: Lab) -> Work:
    """A training with two good checkpoints and a place to go on, whose job was cancelled."""
    made = Work(lab)
    folder = made.node.runs.folder(RUN)
    for step, loss in ((20, 0.5), (10, 0.9)):
        with runs.whole_folder(runs.good_folder(folder, step)) as draft:
            good = Good(step=step, epoch=step / 10, tokens=100 * step, train_loss=1.0, validation_loss=loss)
            (draft / runs.CHECKPOINT_FILE).write_bytes(msgspec.json.encode(good))
    with runs.whole_folder(runs.last_folder(folder, 25)) as draft:
        (draft / runs.STATE_FILE).write_bytes(b"x" * 50)
    job(made, RUN, State.CANCELLED)
    return made


def job(work: Work, id: str, state: State, **more: Any) -> None:
    spec = TrainSpec(
        base="/old/base", dataset="/old/data", run=f"/old/runs/{RUN}", steps=50, rank=4, learning_rate=0.01
    )
    note = TrainNote(name="ours", description="", base="tiny", dataset="mine", initial=None)
    plain = {"spec": msgspec.to_builtins(spec), "note": msgspec.to_builtins(note)}
    work.jobs[id] = Job(id=id, kind="train", title="train ours", state=state, created_ms=1, **plain, **more)


async def test_it_goes_on_in_the_same_run_wherever_the_home_is_now(work: Work) -> None:
    await runs_methods.train_resume(work.node, JobParams(job=RUN))
    (spec,) = work.specs
    assert spec.run == str(work.node.runs.folder(RUN))
    assert (spec.dataset, spec.base) == (str(work.data / "mine"), str(work.lab.base.path))
    assert (spec.steps, spec.rank, spec.learning_rate) == (50, 4, 0.01)
    assert work.notes[0].name == "ours"


DIVERGED = ErrorInfo.of(TrainingDiverged("no number"))


@pytest.mark.parametrize(
    ("also", "ended", "said"),
    [
        (("job_second", State.RUNNING, {}), {}, "goes on already, as job_second: running"),
        ((RUN, State.QUEUED, {}), {}, "goes on already"),
        ((RUN, State.DONE, {}), {}, "has ended"),
        ((RUN, State.CANCELLED, {}), {RUN: "adp_x"}, "has ended, with the adapter adp_x"),
        ((RUN, State.FAILED, {"error": DIVERGED}), {}, "would end as it did: no number"),
    ],
)
async def test_what_can_not_go_on(work: Work, also: Any, ended: dict[str, str], said: str) -> None:
    id, state, more = also
    job(work, id, state, **more)
    work.ended.update(ended)
    with pytest.raises(RunNotResumable, match=said):
        await runs_methods.train_resume(work.node, JobParams(job=RUN))
    assert work.specs == []


async def test_only_trainings_can_go_on(work: Work) -> None:
    work.jobs["job_other"] = Job(id="job_other", kind="deploy", title="t", state=State.FAILED, created_ms=1)
    for call in (runs_methods.train_resume, runs_methods.checkpoint_best, runs_methods.job_report):
        with pytest.raises(ParamsInvalid, match="is no training"):
            await call(work.node, JobParams(job="job_other"))


async def test_from_a_checkpoint_with_a_schedule_of_its_own(work: Work) -> None:
    await train_continue_from(work.node, TrainContinue(source=RUN))
    await train_continue_from(work.node, TrainContinue(source=RUN, step=10, rank=8, learning_rate=1e-3, name="two"))
    best, tenth = work.specs
    assert Path(best.initial).name == "step-00000020"
    assert (best.rank, best.learning_rate, best.steps) == (4, 0.005, 0)
    assert best.run == str(work.node.runs.folder("job_new"))
    assert (work.notes[0].earlier_steps, work.notes[0].earlier_tokens) == (20, 2000)
    assert (Path(tenth.initial).name, tenth.rank, tenth.learning_rate) == ("step-00000010", 8, 1e-3)
    assert (work.notes[0].name, work.notes[1].name) == ("ours", "two")
    with pytest.raises(CheckpointUnknown, match="no checkpoint of step 11"):
        await train_continue_from(work.node, TrainContinue(source=RUN, step=11))


async def test_what_diverged_does_not_go_on_at_half_of_what_was_too_much(work: Work) -> None:
    job(work, RUN, State.FAILED, error=ErrorInfo.of(TrainingDiverged("the loss is no number")))
    await train_continue_from(work.node, TrainContinue(source=RUN))
    await train_continue_from(work.node, TrainContinue(source=RUN, learning_rate=1e-3))
    planned, asked = work.specs
    assert (planned.learning_rate, asked.learning_rate) == (0, 1e-3)
    assert planned.rank == 4


async def test_the_adapter_that_a_training_ended_with_is_named_in_what_goes_on_from_it(work: Work) -> None:
    adapter = work.lab.admit(work.lab.folder(), origin="trained").row
    work.ended[RUN] = adapter.id
    await train_continue_from(work.node, TrainContinue(source=RUN))
    await train_continue_from(work.node, TrainContinue(source=RUN, step=10))
    told = [(note.initial, note.earlier_steps) for note in work.notes]
    assert told == [(adapter.id, 0), (None, 10)]  # a checkpoint is no adapter, and its steps are the new one's


async def test_from_an_adapter(work: Work) -> None:
    adapter = work.lab.admit(work.lab.folder(), origin="trained").row
    await train_continue_from(work.node, TrainContinue(source=adapter.id, dataset="mine"))
    (spec,) = work.specs
    assert (spec.rank, spec.learning_rate) == (0, 0.0), "left to the plan, which knows that it goes on"
    assert work.notes[0].initial == adapter.id
    with pytest.raises(ParamsInvalid, match="no data set"):
        await train_continue_from(work.node, TrainContinue(source=adapter.id))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"early_stopping": EarlyStopping(patience=0)}, "early_stopping.patience"),
        ({"checkpointing": Checkpointing(keep_best=0)}, "checkpointing.keep_best"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
    ],
)
async def test_settings_out_of_bounds(work: Work, wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(OrchdError) as refused:
        await train_continue_from(work.node, TrainContinue(source=RUN, **wrong))
    assert refused.value.field == field


async def test_checkpoints_are_listed_best_first(work: Work) -> None:
    for asked in (CheckpointList(), CheckpointList(job=RUN)):
        rows = (await runs_methods.checkpoint_list(work.node, asked)).checkpoints
        assert [(row.step, row.kind, row.validation_loss) for row in rows] == [
            (20, "best", 0.5), (10, "good", 0.9), (25, "resume", None)]  # fmt: skip
        assert rows[2].size == 50
    best = await runs_methods.checkpoint_best(work.node, JobParams(job=RUN))
    assert (best.step, best.path) == (20, str(runs.good_folder(work.node.runs.folder(RUN), 20)))


async def cleaned(work: Work, **asked: Any) -> tuple[int, list[str]]:
    done = await runs_methods.checkpoint_cleanup(work.node, CheckpointCleanup(**asked))
    return done.checkpoints, sorted(path.name for path in work.node.runs.folder(RUN).iterdir())


async def test_cleaning_up_takes_nothing_that_is_needed(work: Work) -> None:
    everything = ["last-00000025", "step-00000010", "step-00000020"]
    assert await cleaned(work) == (0, everything), "it can still go on, and needs what was good so far"
    job(work, "job_second", State.RUNNING)
    assert await cleaned(work, resume=True) == (0, everything)
    with pytest.raises(RunNotResumable, match="goes on just now"):
        await cleaned(work, job=RUN, resume=True)
    del work.jobs["job_second"]
    with pytest.raises(ParamsInvalid, match="keep -1"):
        await cleaned(work, keep=-1)
    assert await cleaned(work, resume=True) == (2, ["step-00000020"])
    assert await cleaned(work, keep=0) == (1, [])


async def test_the_report_shows_the_curves(work: Work) -> None:
    with Curves(work.node.runs.folder(RUN) / runs.METRICS_FILE) as curves:
        for step in range(1, 1001):
            point = {"step": step, "epoch": step / 10, "accuracy": 0.5}
            loss = None if step == 3 else 5 / step
            curves.add(StepPoint(**point, loss=loss, rate=0.01, tokens_s=900.0, memory=400_000_000))
            if step % 100 == 0:
                curves.add(ValidationPoint(**point, loss=6 / step))
    planned = Settled(
        rank=23,
        alpha=46.0,
        learning_rate=7e-3,
        batch_size=9,
        steps=1234,
        warmup_steps=5,
        max_length=50,
        row_tokens=1024,
        gradient_checkpointing="off",
    )
    runs.keep_settled(work.node.runs.folder(RUN), planned)
    page = (await runs_methods.job_report(work.node, JobParams(job=RUN))).html
    for shown in ("23", "1234", "0.007"):
        assert f"<td>{shown}</td>" in page, "what the plan chose is told"
    assert page.count("<polyline") == 6
    assert "<h1>train ours</h1>" in page
    assert "400 MB" in page
    assert max(line.count(",") for line in page.split("points=")) < 320
    for outside in ("http:", "https:", "<script", "src="):
        assert outside not in page
    work.jobs[RUN] = msgspec.structs.replace(work.jobs[RUN], title="<b>&")
    assert "<h1>&lt;b&gt;&amp;</h1>" in (await runs_methods.job_report(work.node, JobParams(job=RUN))).html


@pytest.mark.parametrize(
    ("kind", "asked", "found"),
    [("preference", "auto", "dpo"), ("preference", "sft", "sft"), ("qa", "auto", "sft"), ("preference", "dpo", "dpo")],
)
async def test_preferences_are_learnt_as_such(work: Work, kind: str, asked: Any, found: str) -> None:
    work.kind = kind
    await train_continue_from(work.node, TrainContinue(source=RUN, objective=asked))
    await train_start(work.node, TrainStart(dataset="mine", base="tiny", objective=asked))
    assert [spec.objective for spec in work.specs] == [found, found]


async def test_nothing_else_can_be_preferred(work: Work) -> None:
    with pytest.raises(ParamsInvalid, match="kind is chat"):
        await train_start(work.node, TrainStart(dataset="mine", base="tiny", objective="dpo"))
