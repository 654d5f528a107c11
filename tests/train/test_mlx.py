"""The mlx backend, on mlx's build for processors. Not run where mlx is not installed: `pip install 'orchd[mlx]'`."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

pytest.importorskip("mlx_lm", reason="not run: mlx is not installed (`pip install 'orchd[mlx]'`)")

from orchd.errors import BackendMissing, BackendUnfit, BaseUnusable
from orchd.importers.conversation import Conversation, Message, Preference
from orchd.jobs.context import JobContext
from orchd.lm import mlx_base
from orchd.lm.adapter import load_adapter, read_config, start_adapter
from orchd.lm.base import Base, load_base
from orchd.lm.chat import Encoded
from orchd.lm.losses import token_logits, token_scores
from orchd.lm.mlx_base import load_mlx_base
from orchd.train import backends, loop, planner, prepare, runs
from orchd.train.curves import StepPoint, read_points, validations
from orchd.train.plan_specs import PlanSpec, ValidateSpec
from orchd.train.specs import Checkpointing, TrainSpec

from .conftest import DEMO_BASE, MakeDataset, Recorder, new_job
from .test_loop import spec
from .test_resume import Killed, killed_at

ROUNDING: float = 1e-4
"""Nats, and units of a logit. Two libraries add in another order: 2e-5 was measured, the adapter's effect is 8."""


@pytest.fixture(scope="module")
def bases() -> tuple[Base, Base]:
    """The demo base, computed by torch and by mlx."""
    return load_base(DEMO_BASE), load_mlx_base(DEMO_BASE)


@pytest.fixture
def row(bases: tuple[Base, Base], dataset: MakeDataset, reversals: list[Conversation]) -> Sequence[Any]:
    """Documents of several lengths, as one packed row."""
    found: Any = prepare.read_data(bases[0], spec(dataset(reversals, split="train"))).examples[:6]
    long = Encoded(found[0].ids + found[1].ids, found[0].counted + found[1].counted)
    return [found[2], long, *found[3:]]


def adapted(base: Base, **fields: Any) -> Any:
    """A base with an adapter that does something; the same for the same fields, whoever computes."""
    torch.manual_seed(5)
    model = start_adapter(base, 8, 16.0, **fields)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(0, 0.05)
    return model.train()


def gradients(model: Any, weights: torch.Tensor, row: Sequence[Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(6)
    (token_scores(model, row)[0] * weights).sum().backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def same(found: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> bool:
    assert found.keys() == want.keys()
    return all((found[name] - want[name]).norm() < ROUNDING * want[name].norm() for name in want)


@pytest.fixture
def both(bases: tuple[Base, Base]) -> Any:
    """`both(…)`: models with the same adapter, by torch and by mlx; it is taken off afterwards."""
    made: list[Any] = []

    def make(**fields: Any) -> list[Any]:
        made.extend(adapted(base, **fields) for base in bases)
        return made

    yield make
    for model in made:
        model.unload()


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("gathers", [True, False])
def test_losses_and_gradients_are_those_of_torch(both: Any, row: Sequence[Any], packs: bool, gathers: bool) -> None:
    torchs, own = both(rslora=True)
    scorer = own.scorer
    assert (scorer._packs, scorer._gathers) == (True, True)  # this base can do both
    scorer._packs, scorer._gathers = packs, gathers
    try:
        (want, hits), (found, also) = token_scores(torchs, row), token_scores(own, row)
        assert (found - want).abs().max() < ROUNDING
        assert (hits == also).all()
        for weights in (torch.full_like(want, 1 / 7).detach(), torch.linspace(0.1, 1, len(want))):
            assert same(gradients(own, weights, row), gradients(torchs, weights, row))
    finally:
        scorer._packs = scorer._gathers = True


def test_the_base_alone_is_that_of_torch(both: Any, row: Sequence[Any]) -> None:
    torchs, own = both()
    with torchs.disable_adapter(), own.disable_adapter(), torch.inference_mode():
        want, found = token_scores(torchs, row)[0], token_scores(own, row)[0]
    assert (found - want).abs().max() < ROUNDING
    assert (token_scores(own, row)[0] - want).abs().max() > 1


def test_what_is_left_out_is_the_same_when_layers_are_computed_twice(row: Sequence[Any]) -> None:
    base = load_mlx_base(DEMO_BASE)
    model = adapted(base, dropout=0.3)
    weights = torch.ones(sum(sum(one.counted[1:]) for one in row))
    once = gradients(model, weights, row)
    model.scorer.recompute()
    assert same(gradients(model, weights, row), once)
    model.eval()
    assert not same(gradients(model, weights, row), once)


def test_in_bf16_it_is_nearly_the_same_and_no_compiler_is_called(
    tmp_path: Path, row: Sequence[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    base = load_mlx_base(DEMO_BASE, torch.bfloat16)
    with torch.inference_mode():
        found, want = token_scores(base.model, row)[0], token_scores(load_base(DEMO_BASE).model, row)[0]
    assert base.model.dtype == torch.bfloat16
    assert 0 < (found - want).abs().mean() < 0.1
    assert not (tmp_path / "mlx").exists()


def test_what_it_leaves_is_an_adapter_of_pefts(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext, row: Sequence[Any]
) -> None:
    asked = spec(dataset(reversals), rank=8, steps=12, learning_rate=1e-2, backend="mlx")
    _, training = loop.trained(asked, job)
    model = training.trainee.model
    with torch.inference_mode():
        token_scores(model, row)
        logits = torch.tensor(model.scorer._logits(row).tolist())
    training.trainee.write(job.workdir / "written", "F32")
    with torch.inference_mode():
        want, _ = token_logits(load_adapter(load_base(DEMO_BASE), job.workdir / "written"), row)
        alone, _ = token_logits(load_base(DEMO_BASE).model, row)
    assert (logits - want).abs().max() < ROUNDING
    assert (logits - alone).abs().max() > 5


def test_a_skill_is_learnt_and_scored_as_always(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext, wire: Recorder
) -> None:
    asked = spec(
        dataset(reversals), rank=8, steps=40, learning_rate=1e-2, dtype="BF16", backend="mlx", leak_report=True
    )
    result = loop.run(asked, job)
    (score,) = result.heldout
    assert score.base_exact_match == 0
    assert score.exact_match is not None
    assert score.exact_match > 0.3
    assert score.loss < 0.3 * score.base_loss
    assert result.leak is not None
    assert result.settled.backend == "mlx"
    assert ", mlx 0." in result.software
    assert read_config(job.workdir / result.adapter).r == 8
    told = [str(one["text"]) for one in wire.sent if one["event"] == "log"]
    assert any("on mlx (" in text for text in told)
    assert "backend mlx: as asked" in told


def losses(folder: Path) -> list[float]:
    points = read_points(folder / runs.METRICS_FILE)
    return [one.loss for one in points if one.loss is not None and (isinstance(one, StepPoint) or one.step)]


def test_the_same_seed_and_data_go_the_same_way_as_with_torch(
    dataset: MakeDataset, reversals: list[Conversation], tmp_path: Path
) -> None:
    folder, found = dataset(reversals), {}
    for backend in ("torch", "mlx"):
        job = new_job(tmp_path / backend)
        asked = spec(folder, steps=10, learning_rate=5e-3, validation_split=0.1, backend=backend)
        loop.trained(asked, job)
        found[backend] = losses(job.workdir / "run")
        assert validations(read_points(job.workdir / "run" / runs.METRICS_FILE))
    assert found["mlx"] == pytest.approx(found["torch"], abs=1e-3)
    assert found["mlx"][-1] < 0.8 * found["mlx"][0]


def test_killed_it_ends_with_the_same_bytes(
    dataset: MakeDataset, reversals: list[Conversation], tmp_path: Path
) -> None:
    """With dropout, and in the packed row's own order: on a processor mlx repeats itself to the last bit."""
    folder = dataset(reversals, split="train")

    def train(run: str, work: str, wire: Recorder) -> Path:
        every = Checkpointing(interval=3)
        asked = spec(
            folder,
            steps=8,
            learning_rate=5e-3,
            backend="mlx",
            lora_dropout=0.2,
            run=str(tmp_path / run),
            checkpointing=every,
        )
        job = new_job(tmp_path / work, wire)
        _, training = loop.trained(asked, job)
        training.trainee.write(job.workdir / "adapter", "F32")
        return job.workdir / "adapter" / "adapter_model.safetensors"

    wire = Recorder()
    killed_at(7, wire)
    with pytest.raises(Killed):
        train("killed", "one", wire)
    assert runs.last_folders(tmp_path / "killed")
    again = Recorder()
    killed = train("killed", "two", again)
    assert any("going on after step" in str(one.get("text")) for one in again.sent)
    whole = train("whole", "three", Recorder())
    assert killed.read_bytes() == whole.read_bytes()


def test_preferences_are_learnt(dataset: MakeDataset, tmp_path: Path) -> None:
    words = ("sun", "cat", "key", "moon", "star", "tree", "fish", "bird", "red", "blue")
    rows = [
        Preference(id=word, messages=(Message("user", f"copy: {word}"),), chosen="zavo", rejected=word)
        for word in words
    ]
    folder, found = dataset(rows, "preference", split="train"), []
    for backend in ("torch", "mlx"):
        job = new_job(tmp_path / backend)
        loop.trained(spec(folder, steps=4, batch_size=4, learning_rate=3e-3, backend=backend), job)
        found.append(losses(job.workdir / "run"))
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    assert found[1][-1] < 0.9 * found[1][0]


@pytest.mark.parametrize(
    ("fields", "field"), [({"method": "full"}, "method"), ({"quantization": "nf4"}, "quantization")]
)
def test_what_it_does_not_offer_is_refused(
    fields: dict[str, Any], field: str, dataset: MakeDataset, reversals: list[Conversation], job: JobContext
) -> None:
    asked = spec(dataset(reversals), backend="mlx", **fields)
    with pytest.raises(BackendUnfit, match="mlx does not") as caught:
        loop.run(asked, job)
    assert caught.value.field == field
    assert "LoRA and rsLoRA" in caught.value.hint
    (error,) = planner.run_validate(ValidateSpec(train=asked), job).errors
    assert (error.field, error.message) == (field, caught.value.message)


def test_without_mlx_it_says_what_to_install(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlx_lm" else there(name))
    with pytest.raises(BackendMissing, match="mlx_lm") as caught:
        loop.run(spec(dataset(reversals), backend="mlx"), job)
    assert "orchd[mlx]" in caught.value.hint


def changed_base(folder: Path, **keys: Any) -> Path:
    shutil.copytree(DEMO_BASE, folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | keys))
    return folder


def test_a_base_with_code_is_refused_and_never_run(tmp_path: Path) -> None:
    folder = changed_base(tmp_path / "base", model_file="evil.py")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(BaseUnusable, match=r"a file of code, 'evil\.py'"):
        load_mlx_base(folder)
    assert not (tmp_path / "ran").exists()


def test_a_quantised_base_is_refused(tmp_path: Path) -> None:
    folder = changed_base(tmp_path / "base", quantization={"group_size": 64, "bits": 4})
    with pytest.raises(BackendUnfit, match="quantised already"):
        load_mlx_base(folder)


def test_a_base_that_mlx_builds_otherwise_is_torchs_unless_asked(tmp_path: Path) -> None:
    folder = changed_base(tmp_path / "base", model_type="olmo", architectures=["OlmoForCausalLM"])
    asked = TrainSpec(base=str(folder), dataset="", backend="mlx")
    with pytest.raises(BackendUnfit):
        backends.load(asked, torch.float32, "mlx")
    assert not hasattr(backends.load(TrainSpec(base=str(folder), dataset=""), torch.float32, "mlx").model, "scorer")


def test_on_apple_it_is_chosen_and_a_run_stays_with_it(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(backends, "apple", lambda: True)
    asked = spec(dataset(reversals, split="train"), learning_rate=5e-3, steps=2, run=str(tmp_path / "run"))
    plan = planner.run_plan(PlanSpec(train=asked), job)
    (line,) = [one for one in plan.lines if one.name == "backend"]
    assert (line.shown, line.why[:34]) == ("mlx", "this is one of Apple's processors,")
    assert plan.settled.backend == "mlx"
    assert plan.machine.device.startswith("mlx (")
    assert backends.chosen(spec(Path(asked.dataset), quantization="nf4"), tmp_path) == "torch"
    _, training = loop.trained(asked, new_job(tmp_path / "one"))
    assert training.settled.backend == "mlx"
    monkeypatch.setattr(backends, "apple", lambda: False)
    assert backends.chosen(asked, tmp_path / "run") == "mlx"
    assert backends.chosen(asked, tmp_path / "new") == "torch"


TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def tiny_base(folder: Path, config: Any) -> Path:
    """Random weights, strong enough that attention looks at places, in a folder that transformers wrote."""
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim > 1:
                tensor.normal_(0, 0.15)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (DEMO_BASE / name).is_file():
            shutil.copy(DEMO_BASE / name, folder / name)
    return folder


@pytest.mark.parametrize(
    "config", [LlamaConfig(**TINY, rope_parameters=LLAMA3), Qwen2Config(**TINY)], ids=["llama3", "qwen2"]
)
def test_other_architectures_are_those_of_torch(config: Any, tmp_path: Path, row: Sequence[Any]) -> None:
    """mlx-lm 0.32 does not read the angle of positions where transformers 5 writes it."""
    folder = tiny_base(tmp_path / "base", config)
    with torch.inference_mode():
        want = token_scores(load_base(folder).model, row)[0]
        assert (token_scores(load_mlx_base(folder).model, row)[0] - want).abs().max() < ROUNDING


def test_a_base_that_mlx_computes_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    window = tiny_base(tmp_path / "window", MistralConfig(**TINY, sliding_window=4096))
    with pytest.raises(BackendUnfit, match="mlx computes window otherwise than torch does"):
        load_mlx_base(window)
    monkeypatch.setattr(mlx_base, "_positions", lambda folder: {})
    with pytest.raises(BackendUnfit, match="mlx computes angle otherwise"):
        load_mlx_base(tiny_base(tmp_path / "angle", LlamaConfig(**TINY, rope_parameters=LLAMA3)))
