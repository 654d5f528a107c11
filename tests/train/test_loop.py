from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from orchd.errors import AdapterUnfit, DatasetUnusable, JobCancelled, TrainingRefused
from orchd.importers.conversation import Conversation
from orchd.jobs.context import JobContext
from orchd.lm.adapter import adapter_weights, load_adapter, save_adapter, set_weights, start_adapter
from orchd.lm.base import load_base
from orchd.train import evaluate, loop, outcome, prepare
from orchd.train.datasets.store import read_info
from orchd.train.specs import AdapterPath, EvaluateSpec, TrainSpec

from .conftest import DEMO_BASE, MakeDataset, Recorder, new_job, pair


def spec(dataset: Path, **fields: Any) -> TrainSpec:
    small = {"rank": 4, "steps": 4, "batch_size": 8, "dtype": "F32", "lora_dropout": 0.0}
    return TrainSpec(base=str(DEMO_BASE), dataset=str(dataset), **(small | fields))


def test_a_skill_is_learnt(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext, wire: Recorder
) -> None:
    folder = dataset(reversals)
    result = loop.run(spec(folder, rank=8, steps=60, batch_size=16, dtype="BF16"), job)
    (score,) = result.heldout
    assert score.base_exact_match == 0
    assert score.exact_match > 0.5
    assert score.loss < 0.3 * score.base_loss
    assert (score.split, score.examples) == ("test", 12)
    assert (result.examples, result.steps, result.rank, result.alpha) == (96, 60, 8, 16)
    assert result.parameters == 61_440
    assert result.target_modules == (
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")  # fmt: skip
    files = sorted(path.name for path in (job.workdir / result.adapter).iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    last = [one for one in wire.sent if one.get("unit") == "steps"][-1]
    assert (last["done"], last["total"]) == (60, 60)
    assert last["figures"]["loss"] == pytest.approx(result.train_loss, abs=0.2)


def weights_of(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_the_same_seed_gives_the_same_bytes(
    dataset: MakeDataset, reversals: list[Conversation], tmp_path: Path
) -> None:
    folder = dataset(reversals, split="train")
    jobs = [new_job(tmp_path / name) for name in ("one", "two", "three")]
    for job, seed in zip(jobs, (7, 7, 8), strict=True):
        assert loop.run(spec(folder, seed=seed), job).heldout == ()
    one, two, three = (weights_of(job.workdir) for job in jobs)
    assert one == two != three


def test_the_default_number_of_steps(dataset: MakeDataset, tmp_path: Path) -> None:
    folder = dataset([pair("copy: sun", "sun")], split="train")
    result = loop.run(spec(folder, steps=0, batch_size=1), new_job(tmp_path / "w"))
    assert result.steps == 25


def random_adapter(folder: Path, rank: int, alpha: float) -> torch.Tensor:
    """An adapter with some effect; returns the logits of the base with it."""
    model = start_adapter(load_base(DEMO_BASE), rank, alpha)
    torch.manual_seed(1)
    set_weights(model, {name: torch.randn_like(t) * 0.1 for name, t in adapter_weights(model).items()})
    save_adapter(model, folder, "F32")
    return logits(model)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.tensor([[2, 60, 400, 3]]), use_cache=False).logits
        return found


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (4, 1.0), (16, 32.0)])
def test_going_on_starts_from_the_same_function(tmp_path: Path, rank: int, alpha: float) -> None:
    want = random_adapter(tmp_path / "first", rank=4, alpha=4)
    model = start_adapter(load_base(DEMO_BASE), rank, alpha)
    prepare.continue_from(model, tmp_path / "first")
    assert torch.allclose(logits(model), want, atol=1e-4)


def test_an_average_with_ranks_by_module_can_be_gone_on_from(tmp_path: Path) -> None:
    random_adapter(tmp_path / "first", rank=4, alpha=4)
    config = tmp_path / "first" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rank_pattern": {"q_proj": 2}}))
    model = start_adapter(load_base(DEMO_BASE), 8, 8)
    with pytest.raises(AdapterUnfit, match="differ by module"):
        prepare.continue_from(model, tmp_path / "first")


def test_a_lower_rank_is_refused(tmp_path: Path) -> None:
    random_adapter(tmp_path / "first", rank=4, alpha=4)
    with pytest.raises(TrainingRefused, match="rank 2 cannot hold"):
        prepare.continue_from(start_adapter(load_base(DEMO_BASE), 2, 4), tmp_path / "first")


def test_rows_longer_than_a_pass_have_the_same_gradients(dataset: MakeDataset, reversals: list[Conversation]) -> None:
    base = load_base(DEMO_BASE)
    batch = prepare.read_data(base, TrainSpec(base="", dataset=str(dataset(reversals, split="train")))).examples[:8]
    found = []
    for room in (1024, 40):
        torch.manual_seed(0)
        model = start_adapter(base, 4, 8)
        loss, _ = loop.backward(model, batch, row_tokens=room)
        gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]
        found.append((loss, gradients))
        base.model.eval()
        model.unload()
    (loss_a, gradients_a), (loss_b, gradients_b) = found
    assert loss_a == pytest.approx(loss_b, abs=1e-4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(gradients_a, gradients_b, strict=True))


def test_every_example_comes_once_before_any_comes_again() -> None:
    examples: list[Any] = list(range(10))
    import random

    batches = loop.draw_batches(examples, 4, random.Random(0))
    drawn = [one for _ in range(5) for one in next(batches)]
    assert sorted(drawn[:10]) == examples
    assert sorted(drawn[10:20]) == examples


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"rank": -1}, "rank"),
        ({"rank": 1000}, "rank"),
        ({"batch_size": -1}, "batch_size"),
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"alpha": -1.0}, "alpha"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"dtype": "F8"}, "dtype"),
        ({"steps": 10, "schedule_total": 15, "schedule_offset": 10}, "steps"),
    ],
)
def test_settings_that_are_refused_before_anything_is_loaded(
    fields: dict[str, Any], field: str, job: JobContext
) -> None:
    with pytest.raises(TrainingRefused) as caught:
        loop.run(spec(Path("nowhere"), **fields), job)
    assert caught.value.field == field


def test_nothing_to_train_on(dataset: MakeDataset, tmp_path: Path) -> None:
    exam = dataset([pair("copy: sun", "sun")], split="test")
    with pytest.raises(DatasetUnusable, match="it is empty"):
        loop.run(spec(exam), new_job(tmp_path / "a"))
    long = dataset([pair("copy: " + "sun " * 600, "sun")], split="train")
    with pytest.raises(DatasetUnusable, match="longer than 512 tokens"):
        loop.run(spec(long), new_job(tmp_path / "b"))


def test_cancelled_in_the_middle(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext, wire: Recorder
) -> None:
    send = wire.send

    def cancel_at_three(message: Any) -> None:
        send(message)
        if message.get("done") == 3:
            job.cancel()

    wire.send = cancel_at_three  # type: ignore[method-assign]
    with pytest.raises(JobCancelled):
        loop.run(spec(dataset(reversals), steps=50), job)
    assert [one for one in wire.sent if one["event"] == "progress"][-1]["done"] == 3
    assert wire.sent[-1]["text"] == "stopped after step 3; it can go on from there"
    assert not (job.workdir / "adapter").exists()


def test_several_adapters_are_scored_in_one_go(
    dataset: MakeDataset, reversals: list[Conversation], tmp_path: Path, job: JobContext
) -> None:
    folder = dataset(reversals)
    trained = new_job(tmp_path / "train")
    own = loop.run(spec(folder, rank=8, steps=40, batch_size=16), trained)
    random_adapter(tmp_path / "noise", rank=2, alpha=2)
    adapters = (
        AdapterPath(id="noise", path=str(tmp_path / "noise")),
        AdapterPath(id="own", name="mine", path=str(trained.workdir / own.adapter)),
        AdapterPath(id="again", path=str(trained.workdir / own.adapter)),
    )
    asked = EvaluateSpec(base=str(DEMO_BASE), adapters=adapters, dataset=str(folder), split="test")
    rows = evaluate.run(asked, job).rows
    assert [row.id for row in rows] == [None, "noise", "own", "again"]
    assert (rows[0].name, rows[2].name) == (None, "mine")
    assert rows[2].loss == rows[3].loss < rows[0].loss
    assert rows[0].exact_match == 0
    assert rows[0].examples == 12
    with pytest.raises(DatasetUnusable, match="no rows"):
        evaluate.run(
            EvaluateSpec(base=str(DEMO_BASE), adapters=(), dataset=str(dataset(reversals, split="train"))), job
        )


def test_what_was_scored_while_training_is_what_evaluation_finds(
    dataset: MakeDataset, reversals: list[Conversation], tmp_path: Path, job: JobContext
) -> None:
    folder = dataset(reversals, validation_share=0.0)
    trained = new_job(tmp_path / "train")
    result = loop.run(spec(folder, steps=20), trained)
    path = AdapterPath(id="x", path=str(trained.workdir / result.adapter))
    rows = evaluate.run(EvaluateSpec(base=str(DEMO_BASE), adapters=(path,), dataset=str(folder)), job).rows
    (score,) = result.heldout
    assert [row.loss for row in rows] == pytest.approx([score.base_loss, score.loss], abs=1e-4)
    model = load_adapter(load_base(DEMO_BASE), path.path)
    assert sum(tensor.numel() for tensor in adapter_weights(model).values()) == result.parameters


def test_rows_that_were_changed_meanwhile_are_not_scored(
    dataset: MakeDataset, reversals: list[Conversation], tmp_path: Path
) -> None:
    made = dataset(reversals)
    folder = made.rename(tmp_path / read_info(made).id)
    asked = spec(folder, run=str(tmp_path / "run"))
    job = new_job(tmp_path / "one")
    rows = (folder / "test.jsonl").read_text()
    base, training = loop.trained(asked, job)
    (folder / "test.jsonl").write_text(rows.replace("reverse", "rotate"))
    with pytest.raises(DatasetUnusable, match="was changed in its folder"):
        outcome.leave(training.spec, training.trainee, base, training.folder, 1.0, job)
    assert not (job.workdir / "adapter").exists()
    (folder / "test.jsonl").write_text(rows)
    assert loop.run(asked, new_job(tmp_path / "two")).heldout[0].examples == 12
