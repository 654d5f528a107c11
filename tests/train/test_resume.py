"""A training that is killed anywhere and goes on ends with the bytes of one that was not."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from orchd.errors import CheckpointUnfit, JobCancelled, TrainingDiverged
from orchd.importers.read import ImportLog
from orchd.lm.adapter import load_adapter
from orchd.lm.base import load_base
from orchd.train import checkpoints, loop, measure, objective, outcome, runs
from orchd.train.curves import StepPoint, read_points, validations
from orchd.train.datasets.build import Parts, build
from orchd.train.runs import Runs
from orchd.train.specs import Checkpointing, EarlyStopping, TrainResult, TrainSpec

from .conftest import DEMO_BASE, MakeDataset, Recorder, new_job, pair

STEPS = 24
EVERY = 4


class Killed(BaseException):
    """Stands for a kill -9: nothing that the loop does about its own errors may catch it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ("sun", "cat", "key", "zavo", "mirut", "moon")
    triples = list(itertools.permutations(words, 3))
    rows = [pair("reverse: " + " ".join(triple), " ".join(triple[::-1])) for triple in triples]
    folder = tmp_path_factory.mktemp("data") / "dataset"
    build(rows, ImportLog(), folder, Parts(), "test")
    return folder


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """What comes after the loop takes most of the time of so short a training; validations come often."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(outcome, "score", lambda *arguments: ())
        patched.setattr(loop, "validate_every", lambda *arguments: EVERY)
        yield


def plan(data: Path, run: Path, **fields: Any) -> TrainSpec:
    """A training with dropout."""
    small: dict[str, Any] = {
        "rank": 4,
        "steps": STEPS,
        "learning_rate": 5e-3,
        "batch_size": 8,
        "dtype": "F32",
        "lora_dropout": 0.2,
        "checkpointing": Checkpointing(interval=3),
    }
    return TrainSpec(**({"base": str(DEMO_BASE), "dataset": str(data), "run": str(run)} | small | fields))


@pytest.fixture
def spec(data: Path, tmp_path: Path) -> Callable[..., TrainSpec]:
    """`spec("name", …)`: a training in the run folder of that name."""
    return lambda run, **fields: plan(data, tmp_path / run, **fields)


class Whole(NamedTuple):
    """The training that nobody disturbed."""

    result: TrainResult
    weights: bytes
    run: Path


@pytest.fixture(scope="module")
def whole(data: Path, quick: None, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return Whole(*train(plan(data, folder / "run"), folder / "work"), folder / "run")


def train(spec: TrainSpec, folder: Path, wire: Recorder | None = None) -> tuple[TrainResult, bytes]:
    job = new_job(folder, wire)
    result = loop.run(spec, job)
    return result, (job.workdir / "adapter" / "adapter_model.safetensors").read_bytes()


def killed_at(count: int, wire: Recorder) -> None:
    """The process is gone while it tells for the `count`-th time how far it is."""
    left = iter(range(count))

    def send(message: Any) -> None:
        wire.sent.append(message)
        if message["event"] == "progress" and next(left, None) is None:
            raise Killed

    wire.send = send  # type: ignore[method-assign]


def same_points(first: Path, second: Path) -> bool:
    """The curves, but for speed and memory."""

    def told(folder: Path) -> list[object]:
        points = read_points(folder / runs.METRICS_FILE)
        return [(p.step, p.loss, p.accuracy) if isinstance(p, StepPoint) else p for p in points]

    return told(first) == told(second)


def test_killed_again_and_again_it_ends_with_the_same_bytes(spec: Any, whole: Whole, tmp_path: Path) -> None:
    rng = random.Random(0)
    kills = 0
    for attempt in range(40):
        wire = Recorder()
        killed_at(rng.randrange(2, 12), wire)
        try:
            result, bytes_of_killed = train(spec("killed"), tmp_path / f"b{attempt}", wire)
        except Killed:
            kills += 1
            continue
        break
    assert kills > 3
    assert bytes_of_killed == whole.weights
    assert same_points(whole.run, tmp_path / "killed")
    ignored = {"seconds": 0.0}
    assert {**vars_of(result), **ignored} == {**vars_of(whole.result), **ignored}


def vars_of(result: TrainResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in result.__struct_fields__}


def train_in_a_process(spec: TrainSpec, folder: str, kill_at: int) -> None:
    """A worker's process: it is killed by a signal in the middle of step `kill_at`, or never (0)."""
    torch.set_num_threads(1)
    steps = 0
    scores = objective.token_scores

    def counted(*arguments: Any) -> Any:
        nonlocal steps
        found = scores(*arguments)
        if not torch.is_inference_mode_enabled():
            steps += 1
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return found

    objective.token_scores = counted
    train(spec, Path(folder))


def test_sigkill_in_the_middle_of_a_step(spec: Any, whole: Whole, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    asked = spec("killed")
    for kill_at in (14, 0):
        workdir = tmp_path / f"work-{kill_at}"
        process = context.Process(target=train_in_a_process, args=(asked, str(workdir), kill_at))
        process.start()
        process.join(60)
        assert process.exitcode == (-signal.SIGKILL if kill_at else 0)
    assert (tmp_path / "work-0" / "adapter" / "adapter_model.safetensors").read_bytes() == whole.weights


@pytest.mark.parametrize("gone", ["weights", "moments", "random"])
def test_each_part_of_a_checkpoint_is_needed(
    gone: str, spec: Any, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the comparison above sees what is left out."""
    wire = Recorder()
    killed_at(14, wire)
    with pytest.raises(Killed):
        train(spec("killed"), tmp_path / "b", wire)
    left_out = {"weights": "_set_weights", "moments": "_set_moments", "random": "_set_random"}[gone]
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, left_out, lambda *arguments: None)
        _, resumed = train(spec("killed"), tmp_path / "c")
    assert resumed != whole.weights


def test_cancelled_it_leaves_a_checkpoint_of_that_step(spec: Any, whole: Whole, tmp_path: Path) -> None:
    wire = Recorder()
    job = new_job(tmp_path / "b", wire)
    heard = wire.send

    def cancel(message: Any) -> None:
        heard(message)
        if message.get("done") == 7:
            job.cancel()

    wire.send = cancel  # type: ignore[method-assign]
    asked = spec("cancelled", checkpointing=Checkpointing(enabled=False))
    with pytest.raises(JobCancelled):
        loop.run(asked, job)
    assert [path.name for path in runs.last_folders(tmp_path / "cancelled")] == ["last-00000007"]
    assert [good.step for good in runs.goods(tmp_path / "cancelled")] == [4]
    _, resumed = train(asked, tmp_path / "c")
    assert resumed == whole.weights


def test_cancelled_before_anything_was_good_it_leaves_what_it_has(spec: Any, whole: Whole, tmp_path: Path) -> None:
    wire = Recorder()
    job = new_job(tmp_path / "b", wire)
    heard = wire.send

    def cancel(message: Any) -> None:
        heard(message)
        if message.get("done") == 2:
            job.cancel()

    wire.send = cancel  # type: ignore[method-assign]
    with pytest.raises(JobCancelled):
        loop.run(spec("cancelled"), job)
    (good,) = runs.goods(tmp_path / "cancelled")
    assert (good.step, good.validation_loss) == (2, None)
    load_adapter(load_base(DEMO_BASE), runs.good_folder(tmp_path / "cancelled", 2))
    _, resumed = train(spec("cancelled"), tmp_path / "c")
    assert resumed == whole.weights
    assert not runs.good_folder(tmp_path / "cancelled", 2).exists()


def test_cancelled_between_two_passes_the_step_has_not_begun(
    spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a step has used random numbers and made gradients; both are taken back."""
    short = {"steps": 8, "row_tokens": 80, "checkpointing": Checkpointing(enabled=False)}
    _, whole = train(spec("whole", **short), tmp_path / "a")
    job = new_job(tmp_path / "b")
    passes = 0
    scores = objective.token_scores

    def cancel_at_ten(*arguments: Any) -> Any:
        nonlocal passes
        passes += not torch.is_inference_mode_enabled()
        if passes == 10:
            job.cancel()
        return scores(*arguments)

    monkeypatch.setattr(objective, "token_scores", cancel_at_ten)
    with pytest.raises(JobCancelled):
        loop.run(spec("cancelled", **short), job)
    monkeypatch.setattr(objective, "token_scores", scores)
    wire = Recorder()
    _, resumed = train(spec("cancelled", **short), tmp_path / "c", wire)
    (said,) = [one["text"] for one in wire.sent if one["event"] == "log" and "going on" in one["text"]]
    assert 0 < int(said.split()[-1]) < 8
    assert resumed == whole


def test_a_damaged_checkpoint_costs_its_time_and_nothing_else(spec: Any, whole: Whole, tmp_path: Path) -> None:
    wire = Recorder()
    killed_at(14, wire)
    with pytest.raises(Killed):
        train(spec("killed"), tmp_path / "b", wire)
    (last,) = runs.last_folders(tmp_path / "killed")
    data = bytearray((last / checkpoints.TENSORS_FILE).read_bytes())
    data[-40] ^= 1
    (last / checkpoints.TENSORS_FILE).write_bytes(data)
    (tmp_path / "killed" / "new-last-00000099").mkdir()
    _, resumed = train(spec("killed"), tmp_path / "c")
    assert resumed == whole.weights
    assert not list((tmp_path / "killed").glob("new-*"))


def test_a_checkpoint_of_other_settings_or_data_is_refused(spec: Any, dataset: MakeDataset, tmp_path: Path) -> None:
    train(spec("run"), tmp_path / "a")
    with pytest.raises(CheckpointUnfit, match="other settings or other data"):
        loop.run(spec("run", learning_rate=1e-3), new_job(tmp_path / "b"))
    other = str(dataset([pair("reverse: sun cat", "cat sun")], split="train"))
    with pytest.raises(CheckpointUnfit):
        loop.run(spec("run", dataset=other), new_job(tmp_path / "c"))


def test_a_run_that_was_planned_goes_on_with_its_plan(
    spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_settings = {"rank": 0, "learning_rate": 0.0, "batch_size": 0, "steps": 0, "max_steps": 3}
    first, _ = train(spec("run", **open_settings), tmp_path / "a")
    monkeypatch.setattr(measure, "settle", lambda *_: pytest.fail("planned again"))
    again, _ = train(spec("run", **open_settings), tmp_path / "b")
    assert again.settled == first.settled
    assert (again.settled.steps, again.settled.rank) == (3, 16)


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(
    spec: Any, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runs, "sync", full)
    wire = Recorder()
    _, trained = train(spec("full"), tmp_path / "b", wire)
    assert trained == whole.weights
    assert "No space left on device" in next(
        one["text"] for one in wire.sent if one["event"] == "log" and "could not be written" in one["text"]
    )
    assert [path.name for path in (tmp_path / "full").iterdir()] == [runs.METRICS_FILE]


def validated(losses: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """These are the validation losses, before the first step and then in order."""
    left = iter(losses)
    monkeypatch.setattr(loop, "score_validation", lambda t: (next(left), 0.5))


def test_the_best_by_validation_wins_and_the_best_few_are_kept(
    spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated((0.1, 0.9, 0.5, 0.7, float("nan"), 0.8, 0.6), monkeypatch)
    result, weights = train(spec("run", checkpointing=Checkpointing(keep_best=2)), tmp_path / "a")
    assert (result.best_step, result.validation_loss, result.steps) == (8, 0.5, STEPS)
    kept = runs.goods(tmp_path / "run")
    assert [(good.step, good.validation_loss) for good in kept] == [(8, 0.5), (24, 0.6)]
    assert [path.name for path in sorted((tmp_path / "run").glob("step-*"))] == ["step-00000008", "step-00000024"]
    best = runs.good_folder(tmp_path / "run", 8)
    assert weights == (best / "adapter_model.safetensors").read_bytes()
    load_adapter(load_base(DEMO_BASE), best)
    points = validations(read_points(tmp_path / "run" / runs.METRICS_FILE))
    assert [(p.step, p.loss) for p in points][3:5] == [(12, 0.7), (16, None)]


def test_one_schedule_over_several_runs_takes_the_last(
    spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated((0.1, 0.9, 0.5, 0.7, 0.9, 0.8, 0.6), monkeypatch)
    result, _ = train(spec("run", schedule_total=2 * STEPS), tmp_path / "a")
    assert (result.best_step, result.validation_loss) == (STEPS, None)


def test_it_stops_early_when_validation_says_so(spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validated((9.0, 1.0, 0.95, 0.5, 0.45, 0.44), monkeypatch)
    stopping = EarlyStopping(enabled=True, patience=2, min_delta=0.1)
    wire = Recorder()
    result, _ = train(spec("run", early_stopping=stopping), tmp_path / "a", wire)
    assert (result.steps, result.best_step) == (20, 20)
    assert result.stopped == "stopped early: 2 validations brought nothing better"
    phases = [one["figures"]["phase"] for one in wire.sent if one["event"] == "progress"]
    assert list(dict.fromkeys(phases)) == ["preparing", "validating", "training", "scoring"]


def broken(steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is no number at these steps (from 1)."""
    number = 0
    backward = loop.backward

    def sometimes(*arguments: Any) -> tuple[float, float]:
        nonlocal number
        number += 1
        loss, accuracy = backward(*arguments)
        return (float("nan") if number in steps else loss), accuracy

    monkeypatch.setattr(loop, "backward", sometimes)


def test_a_loss_that_is_no_number_skips_the_step(spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken({3, 4, 9}, monkeypatch)
    wire = Recorder()
    result, _ = train(spec("run"), tmp_path / "a", wire)
    assert (result.skipped, result.steps) == (3, STEPS)
    skipped = [p.step for p in read_points(tmp_path / "run" / runs.METRICS_FILE) if p.loss is None]
    assert skipped == [3, 4, 9]
    assert "step 3 was skipped: its loss or gradient is no number" in [one.get("text") for one in wire.sent]


def test_three_in_a_row_stop_it_with_the_last_good_one(
    spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken({8, 9, 10}, monkeypatch)
    with pytest.raises(TrainingDiverged, match=r"the last of them step 10; the adapter of step \d is kept") as told:
        train(spec("run", learning_rate=0.01), tmp_path / "a")
    assert "`orchctl train continue_from run` goes on" in told.value.hint
    assert runs.last_folders(tmp_path / "run") == [], "to go on would end there again"
    assert runs.goods(tmp_path / "run")[0].step == 7, "step 8 was skipped, so that its validation is of step 7"
    broken(set(range(99)), monkeypatch)
    with pytest.raises(TrainingDiverged) as nothing:
        train(spec("nothing"), tmp_path / "b")
    assert "is kept" not in nothing.value.message
    assert "Train again without" in nothing.value.hint
    assert runs.goods(tmp_path / "nothing") == []


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    for name in ("job_a", "job_c", "job_b", "other"):
        (tmp_path / name).mkdir()
    assert Runs(tmp_path).list() == ["job_c", "job_b", "job_a"]


def test_accumulated_batches_are_one_step(spec: Any, tmp_path: Path) -> None:
    once, bytes_of_once = train(spec("a", steps=4, batch_size=16), tmp_path / "a")
    twice, bytes_of_twice = train(spec("b", steps=4, batch_size=8, gradient_accumulation_steps=2), tmp_path / "b")
    assert bytes_of_once == bytes_of_twice
    assert once.tokens == twice.tokens
