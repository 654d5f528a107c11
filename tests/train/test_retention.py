"""What an adapter forgets: measured, lowered by replay, made for a base that has no set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchd.errors import DatasetUnusable, TrainingRefused
from orchd.importers.conversation import Conversation
from orchd.jobs.context import JobContext
from orchd.lm.adapter import start_adapter
from orchd.lm.base import load_base
from orchd.registry.bases import load
from orchd.train import evaluate, loop, prepare, retention
from orchd.train.retention_store import SHIPPED, Kept, RetentionSets, is_shipped, read, write
from orchd.train.specs import AdapterPath, EvaluateSpec, TrainSpec

from .conftest import DEMO_BASE, MakeDataset, new_job
from .test_loop import spec

FINGERPRINT = load("demo", DEMO_BASE).fingerprint


def shipped() -> Path:
    return SHIPPED / f"{FINGERPRINT}.jsonl"


def test_the_demo_bases_set_is_shipped_and_it_knows_what_is_in_it() -> None:
    """Fails when the base was made anew without `make_retention.py`."""
    assert is_shipped(FINGERPRINT)
    base = load_base(DEMO_BASE)
    rows = retention.measured(base, shipped())
    assert len(rows) == len(retention.replayed(base, shipped())) == 100
    assert {one.prompt.split(":")[0] for one in read(shipped())} > {"copy", "double", "echo"}
    model = start_adapter(base, 2, 4.0).eval()
    found = retention.forgetting(model, rows, model.disable_adapter)
    assert found is not None
    assert found.base_loss < 0.5
    assert (found.rise, found.kl) == (0, 0)  # a new adapter changes nothing


def test_what_measures_is_never_replayed() -> None:
    base = load_base(DEMO_BASE)
    one, other = ({row.ids for row in part(base, shipped())} for part in (retention.measured, retention.replayed))
    assert one.isdisjoint(other)


def test_replay_lowers_what_is_forgotten_and_the_skill_is_learnt_all_the_same(
    dataset: MakeDataset, reversals: list[Conversation], tmp_path: Path
) -> None:
    folder = dataset(reversals)
    settings = {"rank": 8, "steps": 60, "batch_size": 16, "learning_rate": 1e-2, "retention": str(shipped())}
    plain = loop.run(spec(folder, **settings), new_job(tmp_path / "plain"))
    replayed = loop.run(spec(folder, **settings, replay=0.5), new_job(tmp_path / "replayed"))
    assert plain.forgetting is not None
    assert replayed.forgetting is not None
    assert plain.forgetting.low > 1
    assert plain.forgetting.kl > 0.5
    assert replayed.forgetting.high < 0.5 * plain.forgetting.rise
    assert replayed.forgetting.kl < 0.5 * plain.forgetting.kl
    assert replayed.heldout[0].loss < 0.2 * replayed.heldout[0].base_loss
    assert (plain.examples, replayed.examples) == (96, 96)  # the base's own answers are not the user's data
    assert plain.retention == ""


def test_whole_weights_and_what_is_extracted_from_them_forget_too(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext
) -> None:
    settings = {"method": "full", "extract_rank": 4, "steps": 6, "learning_rate": 1e-3, "retention": str(shipped())}
    result = loop.run(spec(dataset(reversals), **settings), job)
    assert result.forgetting is not None
    assert result.forgetting.rise > 0.01
    assert result.extracted is not None
    assert result.extracted.forgetting is not None
    assert result.extracted.forgetting.loss != result.forgetting.loss
    assert result.extracted.forgetting.base_loss == pytest.approx(result.forgetting.base_loss, abs=1e-5)


def test_an_evaluation_measures_the_same_as_the_training_did(
    dataset: MakeDataset, reversals: list[Conversation], tmp_path: Path, job: JobContext
) -> None:
    folder, trained = dataset(reversals), new_job(tmp_path / "train")
    result = loop.run(spec(folder, steps=20, retention=str(shipped())), trained)
    path = AdapterPath(id="x", path=str(trained.workdir / result.adapter))
    asked = EvaluateSpec(base=str(DEMO_BASE), adapters=(path,), dataset=str(folder), retention=str(shipped()))
    base, row = evaluate.run(asked, job).rows
    assert base.forgetting is None
    assert row.forgetting is not None
    assert result.forgetting is not None
    assert row.forgetting.loss == pytest.approx(result.forgetting.loss, abs=1e-4)
    assert row.forgetting.kl == pytest.approx(result.forgetting.kl, abs=1e-4)


def test_the_divergence_is_that_of_the_definition() -> None:
    base = load_base(DEMO_BASE)
    rows = retention.measured(base, shipped())[:3]
    torch.manual_seed(0)
    model = start_adapter(base, 2, 4.0).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.6)
    found = retention.forgetting(model, rows, model.disable_adapter)
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([row.ids])
            new = model(input_ids=ids).logits[0].softmax(-1)
            with model.disable_adapter():
                old = model(input_ids=ids).logits[0].softmax(-1)
            for at in range(1, len(row.ids)):
                if row.counted[at]:
                    p, q = old[at - 1], new[at - 1]
                    total += float((p * (p / q).log()).sum())
                    tokens += 1
    assert found is not None
    assert found.kl == pytest.approx(total / tokens, rel=1e-3)
    assert found.kl > 0.1


def test_a_base_without_a_set_makes_its_own_and_nobody_elses_luck_changes(tmp_path: Path) -> None:
    base = load_base(DEMO_BASE)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    path = retention.find(base, "", tmp_path / "new")
    assert torch.equal(torch.rand(3), wanted)
    rows = read(path)
    assert len(rows) > 40
    assert rows == retention.make(base)
    assert all(row.answer for row in rows)
    assert retention.find(base, str(shipped()), tmp_path / "new") == path  # what a run began with stays
    assert retention.find(base, str(shipped()), tmp_path / "other") == shipped()


def test_a_set_that_was_made_is_kept_once(tmp_path: Path) -> None:
    sets = RetentionSets(tmp_path / "sets")
    assert sets.path(FINGERPRINT) == str(shipped())
    assert sets.path("base_new") == ""
    write(tmp_path / "one.jsonl", [Kept("a", "b")])
    write(tmp_path / "two.jsonl", [Kept("c", "d")])
    sets.keep("base_new", tmp_path / "one.jsonl")
    sets.keep("base_new", tmp_path / "two.jsonl")
    assert read(Path(sets.path("base_new"))) == [Kept("a", "b")]
    Path(sets.path("base_new")).write_text("{")
    with pytest.raises(DatasetUnusable, match="retention set"):
        read(Path(sets.path("base_new")))


def test_mixing_makes_the_share_that_is_asked_for() -> None:
    base = load_base(DEMO_BASE)
    rows = retention.replayed(base, shipped())
    mixed = retention.mixed(["own"] * 300, rows, 0.5)
    assert (len(mixed), mixed.count("own")) == (600, 300)
    assert retention.mixed(["own"] * 3, rows, 0.25).count("own") == 3
    assert retention.mixed(["own"], [], 0.5) == ["own"]


@pytest.mark.parametrize(
    "fields", [{"replay": 0.95, "retention": ""}, {"replay": -0.1, "retention": ""}, {"replay": 0.5}]
)
def test_a_replay_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(TrainingRefused, match="replay"):
        prepare.check(TrainSpec(base="", dataset="", **fields))  # type: ignore[arg-type]
