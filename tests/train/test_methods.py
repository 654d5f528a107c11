"""Each way to train: what it changes, and that it learns."""

from __future__ import annotations

import importlib.util
import math
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import torch

from orchd.cli.run import parser
from orchd.errors import QuantizationMissing, TrainingRefused
from orchd.importers.conversation import Conversation, Message, Preference
from orchd.jobs.context import JobContext
from orchd.lm.adapter import (
    adapter_weights,
    load_adapter,
    read_config,
    read_weights,
    save_adapter,
    set_weights,
    start_adapter,
)
from orchd.lm.base import Base, load_base
from orchd.lm.chat import Encoded
from orchd.lm.losses import token_losses
from orchd.registry.known_bases import read as known_base
from orchd.train import advice, evaluate, loop, prepare, report, runs
from orchd.train.curves import StepPoint, read_points, validations
from orchd.train.datasets.store import PreferenceRow
from orchd.train.objective import Dpo, Pair, encode_pair
from orchd.train.places import check, chosen
from orchd.train.specs import AdapterPath, Change, Checkpointing, EarlyStopping, EvaluateSpec, TrainSpec, alpha_of
from orchd.train.targets import adapter_targets, linear_in_layers

from .conftest import DEMO_BASE, MakeDataset, Recorder, new_job
from .test_loop import logits, random_adapter, spec
from .test_resume import Killed, killed_at

NAMES = (
    *(f"model.layers.{layer}.self_attn.{name}" for layer in range(3) for name in ("q_proj", "v_proj")),
    *(f"model.layers.{layer}.mlp.up_proj" for layer in range(3)),
    "model.norm",
)


def test_rslora_is_signed_for_and_learns(dataset: MakeDataset, reversals: list[Conversation], job: JobContext) -> None:
    result = loop.run(spec(dataset(reversals), rank=32, steps=60, batch_size=16, rslora=True), job)
    config = read_config(job.workdir / "adapter")
    assert (config.use_rslora, config.r, config.lora_alpha) == (True, 32, 8.0)
    assert config.scale == pytest.approx(8 / 32**0.5)
    assert result.rslora
    assert result.heldout[0].exact_match > 0.5


@pytest.mark.parametrize(
    ("fields", "alpha"), [({"rank": 4}, 8), ({"rank": 4, "rslora": True}, 8), ({"alpha": 3.0, "rslora": True}, 3)]
)
def test_alpha_where_none_is_given(fields: dict[str, Any], alpha: float) -> None:
    assert alpha_of(TrainSpec(base="", dataset="", **fields)) == alpha


@pytest.mark.parametrize("rslora", [True, False])
def test_going_on_with_another_scale_is_the_same_function(tmp_path: Path, rslora: bool) -> None:
    want = random_adapter(tmp_path / "first", rank=4, alpha=4)
    asked = TrainSpec(base="", dataset="", initial=str(tmp_path / "first"), rank=9, rslora=rslora)
    assert abs(logits(prepare.new_adapter(asked, load_base(DEMO_BASE))) - want).max() < 1e-4


def test_only_the_chosen_places_are_trained(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext
) -> None:
    asked = spec(dataset(reversals, split="train"), modules=("q_proj", "mlp"), layers=(-1,))
    result = loop.run(asked, job)
    want = ("model.layers.2.mlp.down_proj", "model.layers.2.mlp.gate_proj", "model.layers.2.mlp.up_proj",
            "model.layers.2.self_attn.q_proj")  # fmt: skip
    assert result.target_modules == want
    there = {
        name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in read_weights(job.workdir / "adapter")
    }
    assert there == set(want)


def test_going_on_keeps_the_places(tmp_path: Path) -> None:
    base = load_base(DEMO_BASE)
    first = TrainSpec(base="", dataset="", modules=("self_attn",), rank=4)
    save_adapter(prepare.new_adapter(first, base), tmp_path / "first", "F32")
    then = TrainSpec(base="", dataset="", initial=str(tmp_path / "first"), rank=4)
    again = prepare.new_adapter(then, load_base(DEMO_BASE))
    assert set(again.peft_config["default"].target_modules) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    wider = TrainSpec(base="", dataset="", initial=str(tmp_path / "first"), rank=4, modules=("self_attn", "mlp"))
    assert "up_proj" in prepare.new_adapter(wider, load_base(DEMO_BASE)).peft_config["default"].target_modules


@pytest.mark.parametrize(
    ("modules", "layers", "found"),
    [
        ((), (), NAMES),
        (("q_proj",), (0, -1), (NAMES[0], NAMES[4])),
        (("mlp",), (), NAMES[6:9]),
        (("norm",), (), (NAMES[9],)),
        ((), (1,), (NAMES[2], NAMES[3], NAMES[7])),
    ],
)
def test_chosen(modules: tuple[str, ...], layers: tuple[int, ...], found: tuple[str, ...]) -> None:
    assert chosen(NAMES, modules, layers) == list(found)


@pytest.mark.parametrize(
    ("modules", "layers", "field", "said"),
    [
        (("q_prj",), (), "modules", "no 'q_prj'"),
        ((), (3,), "layers", "3 layers, none is 3"),
        ((), (-4,), "layers", "none is -4"),
        (("norm",), (0,), "modules", "no norm in the chosen layers"),
    ],
)
def test_what_the_base_lacks(modules: Any, layers: Any, field: str, said: str) -> None:
    with pytest.raises(TrainingRefused, match=said) as refused:
        chosen(NAMES, modules, layers)
    assert refused.value.field == field


def test_what_the_base_lacks_is_seen_by_the_shapes_of_its_weights() -> None:
    """Those that the daemon knows: the same places as those of the loaded base."""
    shapes = known_base("demo", DEMO_BASE).shapes
    linear = linear_in_layers(load_base(DEMO_BASE).model)
    assert {name.removesuffix(".weight") for name in shapes if "_proj" in name} == set(linear)
    check(shapes, ("q_proj", "mlp"), (0, -1), full=False)
    check(shapes, ("embed_tokens",), (), full=True)
    for modules, layers, full in (("embed_tokens",), (), False), (("q_prj",), (), True), ((), (-9,), False):
        with pytest.raises(TrainingRefused) as refused:
            check(shapes, modules, layers, full=full)
        assert modules != ("q_prj",) or refused.value.hint == "Did you mean `q_proj`?"


def test_the_head_gets_no_adapter() -> None:
    model = load_base(DEMO_BASE).model
    assert adapter_targets(model, (), ()) == "all-linear"
    with pytest.raises(TrainingRefused, match="lm_head"):
        adapter_targets(model, ("lm_head",), ())


def test_the_next_command_says_it() -> None:
    used = TrainSpec(base="", dataset="", rslora=True, modules=("mlp", "q_proj"), layers=(-2, -1), leak_report=True)
    line = advice.again(used, [Change(option="steps", value=9)], words=("mine",), options={"name": "a b", "base": ""})
    assert line == "orchctl train start mine --name 'a b' --steps 9 --rslora --modules=mlp,q_proj --layers=-2,-1"


def test_the_next_command_can_be_pasted() -> None:
    """It is parsed as a shell and `orchctl` do, and asks for what it was made of; the rate stays within its bounds."""
    used = TrainSpec(
        base="",
        dataset="",
        steps=1_234_567,
        seed=20_251_122,
        learning_rate=0.9,
        warmup_steps=40,
        canaries=4,
        forgetting=False,
        early_stopping=EarlyStopping(enabled=True, patience=3, min_delta=0.0125),
        checkpointing=Checkpointing(interval=7, keep_best=2),
    )
    changes = [Change(option="learning_rate", value=2.0, times=True), Change(option="steps", value=40)]
    words = shlex.split(advice.again(used, changes, words=("my data",), options={}))
    asked = vars(parser("train").parse_args(words[2:]))
    assert (asked["dataset"], asked["seed"], asked["steps"], asked["learning_rate"]) == ("my data", 20_251_122, 40, 1.0)
    assert (asked["canaries"], asked["warmup_steps"], asked["leak_report"]) == (4, None, False)
    assert asked["forgetting"] is False
    assert asked["early_stopping"] == {"enabled": True, "patience": 3, "min_delta": 0.0125}
    assert asked["checkpointing"] == {"interval": 7, "keep_best": 2}
    assert "--checkpointing off" in advice.again(
        msgspec.structs.replace(used, checkpointing=Checkpointing(enabled=False)), words=("x",), options={}
    )


# ---- preferences ----------------------------------------------------------------------------------------------------


@pytest.fixture
def preferences(reversals: list[Conversation]) -> list[Preference]:
    """The words in reverse are better than their copy, which is what the base gives."""
    found = []
    for one in reversals:
        words = one.messages[0].content.removeprefix("reverse: ")
        asked = (Message("user", f"copy: {words}"),)
        chosen = one.messages[1].content
        found.append(Preference(id=one.id, messages=asked, chosen=chosen, rejected=words))
    return found


def test_a_preference_is_learnt(dataset: MakeDataset, preferences: list[Preference], job: JobContext) -> None:
    folder = dataset(preferences, "preference")
    result = loop.run(spec(folder, steps=60, batch_size=16, run=str(job.workdir / "run")), job)
    (score,) = result.heldout
    assert result.objective == "dpo"
    assert score.base_preferred == 0
    assert score.preferred is not None
    assert score.preferred > 0.9
    assert score.exact_match > 0.5
    points = read_points(job.workdir / "run" / runs.METRICS_FILE)
    assert validations(points)[0].loss == pytest.approx(math.log(2) + score_of_chosen(folder), rel=0.2)
    assert validations(points)[-1].accuracy == 1


def score_of_chosen(folder: Path) -> float:
    """The base's loss a token of the chosen answers in the validation part, each answer alike."""
    base = load_base(DEMO_BASE)
    pairs: Any = prepare.read_data(base, TrainSpec(base="", dataset=str(folder)), Dpo(0.1, 1.0)).validation
    return sum(float(token_losses(base.model, [one.chosen]).mean()) for one in pairs) / len(pairs)


def test_the_loss_of_a_pair_is_that_of_the_paper() -> None:
    """Against log-probabilities that are added up one answer at a time."""
    base = load_base(DEMO_BASE)
    pairs = [dpo_pair(base, "sun cat", "cat sun"), dpo_pair(base, "moon", "key key")]
    model = start_adapter(base, 4, 8).eval()
    before = Dpo(0.3, 0.0).referred(model, pairs, cast(JobContext, SimpleNamespace(check=lambda: None)))
    torch.manual_seed(3)
    set_weights(model, {name: torch.randn_like(one) * 0.1 for name, one in adapter_weights(model).items()})
    with torch.inference_mode():
        losses, right = Dpo(0.3, 0.0).scores(model, before)
        with_sft, _ = Dpo(0.3, 2.0).scores(model, before)
    for pair, loss, hit, more in zip(pairs, losses, right, with_sft, strict=True):
        now = log_probability(model, pair.chosen) - log_probability(model, pair.rejected)
        with model.disable_adapter():
            then = log_probability(model, pair.chosen) - log_probability(model, pair.rejected)
        assert float(loss) == pytest.approx(math.log(1 + math.exp(-0.3 * (now - then))), rel=1e-3)
        assert bool(hit) == (now > then)
        sft = -log_probability(model, pair.chosen) / pair.chosen.counted_tokens
        assert float(more - loss) == pytest.approx(2 * sft, rel=1e-3)


def dpo_pair(base: Base, chosen: str, rejected: str) -> Pair:
    row = PreferenceRow("p", (Message("user", "copy: sun cat"),), chosen, rejected)
    (pair,) = encode_pair(base.tokenizer, row, 0)
    return pair


def log_probability(model: Any, answer: Encoded) -> float:
    """Of the tokens that count, each looked up in the softmax by hand."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([answer.ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return sum(float(logits[at - 1, token]) for at, token in enumerate(answer.ids) if answer.counted[at])


def test_a_kill_changes_nothing_in_the_references(
    dataset: MakeDataset, preferences: list[Preference], tmp_path: Path
) -> None:
    asked = spec(
        dataset(preferences, "preference"), steps=6, checkpointing=Checkpointing(interval=2), run=str(tmp_path / "run")
    )
    whole = new_job(tmp_path / "whole")
    loop.run(msgspec.structs.replace(asked, run=""), whole)
    wire = Recorder()
    killed_at(9, wire)
    with pytest.raises(Killed):
        loop.run(asked, new_job(tmp_path / "killed", wire))
    assert runs.last_folders(tmp_path / "run")
    again = new_job(tmp_path / "again")
    loop.run(asked, again)
    first, second = (job.workdir / "adapter" / "adapter_model.safetensors" for job in (whole, again))
    assert first.read_bytes() == second.read_bytes()


def test_dpo_of_something_else_is_refused(dataset: MakeDataset, reversals: list[Conversation], job: JobContext) -> None:
    with pytest.raises(TrainingRefused, match="learns from preferences") as refused:
        loop.run(spec(dataset(reversals), objective="dpo"), job)
    assert refused.value.field == "objective"


@pytest.mark.parametrize("wrong", [{"dpo_beta": 0.0}, {"dpo_beta": 11.0}, {"dpo_sft": -1.0}])
def test_preference_settings_out_of_bounds(wrong: dict[str, float]) -> None:
    with pytest.raises(TrainingRefused) as refused:
        prepare.check(TrainSpec(base="", dataset="", **wrong))
    assert refused.value.field in wrong


def test_the_report_names_what_was_learnt() -> None:
    head = report.Head(id="job_1", title="t", state="done", started_ms=None, error="")
    point = StepPoint(step=1, epoch=1.0, loss=0.6, accuracy=0.5, rate=1e-3, tokens_s=1.0, memory=1)
    page = report.page(head, TrainSpec(base="", dataset="", objective="dpo"), [point], None)
    assert "Pairs that it has learnt to prefer" in page
    assert "dpo beta" in page
    assert "dpo beta" not in report.page(head, TrainSpec(base="", dataset=""), [point], None)


def test_the_report_says_what_was_forgotten_and_given_away_and_how_it_was_computed() -> None:
    head = report.Head("job_1", "t", "done", None, "", dataset="mine (dst_1)", base="demo", computed="F32 on cpu")
    told = {"loss": 3.0, "base_loss": 1.0, "examples": 9}
    leak = {"verdict": "gives away who was in it: AUC 0.78", "stops": True, "synthetic": False}
    result = {
        **{"adapter": None, "base": None, "residual_ppm": None, "stopped": "all", "epochs": 1.0, "best_step": 2},
        **{"diagnosis": {"verdict": "fine", "detail": "it fell"}, "again": "", "scores": []},
    }
    point = StepPoint(step=1, epoch=0.5, loss=2970.4, accuracy=0.5, rate=0.001, tokens_s=9, memory=1)
    page = report.page(head, TrainSpec(base="", dataset=""), [point], result | {"forgetting": told, "leak": leak})
    for said in (
        "mine (dst_1)",
        "F32 on cpu",
        "+2.000 nats",
        "AUC 0.78; `publish` refuses it",
        ">2,970<",
        "— training",
    ):
        assert said in page
    assert "BF16" not in page, "that is the dtype of the file"
    assert report.page(head, TrainSpec(base="", dataset=""), [point], result).count("<td>not measured</td>") == 2


# ---- whole weights --------------------------------------------------------------------------------------------------


def test_whole_weights_become_a_base_and_an_adapter_near_it(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext
) -> None:
    folder = dataset(reversals)
    result = loop.run(spec(folder, method="full", steps=60, batch_size=16, extract_rank=16, dtype="BF16"), job)
    assert (result.base, result.adapter, result.rank) == ("base", "adapter", 16)
    assert result.extracted is not None
    assert 0 < result.extracted.residual_ppm < 1_000_000
    scored = evaluate.run(
        EvaluateSpec(base=str(job.workdir / "base"), adapters=(), dataset=str(folder)), new_job(job.workdir / "one")
    ).rows
    assert scored[0].exact_match is not None
    assert scored[0].exact_match > 0.8
    assert scored[0].loss == pytest.approx(result.heldout[0].loss, rel=1e-3)
    near = evaluate.run(
        EvaluateSpec(base=str(DEMO_BASE), adapters=(AdapterPath(id="a", path=str(job.workdir / "adapter")),),
                     dataset=str(folder)),
        new_job(job.workdir / "two"),
    ).rows[1]  # fmt: skip
    assert near.loss == pytest.approx(result.extracted.heldout[0].loss, rel=1e-3)
    assert near.loss < 0.3 * result.heldout[0].base_loss
    assert len(list((job.workdir / "run").glob("step-*"))) <= 3


def test_an_extraction_of_full_rank_is_the_whole_difference(
    dataset: MakeDataset, reversals: list[Conversation], tmp_path: Path
) -> None:
    folder = dataset(reversals)
    layers: dict[str, Any] = {"method": "full", "modules": ("self_attn", "mlp"), "steps": 6}
    one, other = new_job(tmp_path / "one"), new_job(tmp_path / "other")
    exact = loop.run(spec(folder, **layers, extract_rank=128), one)
    cut = loop.run(spec(folder, **layers, extract_rank=2), other)
    assert exact.extracted is not None
    assert cut.extracted is not None
    assert exact.extracted.residual_ppm < 100
    assert cut.extracted.residual_ppm > 300_000
    whole = logits(load_base(one.workdir / "base").model)
    assert abs(logits(load_adapter(load_base(DEMO_BASE), one.workdir / "adapter")) - whole).max() < 1e-3
    assert abs(logits(load_adapter(load_base(DEMO_BASE), other.workdir / "adapter")) - whole).max() > 0.1


def test_only_the_chosen_layer_is_another_one(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext
) -> None:
    result = loop.run(spec(dataset(reversals, split="train"), method="full", layers=(1,), modules=("mlp",)), job)
    assert (result.adapter, result.extracted, result.rank) == ("", None, 0)
    assert result.parameters == 3 * 128 * 384
    before, after = (dict(load_base(path).model.named_parameters()) for path in (DEMO_BASE, job.workdir / "base"))
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}


def test_whole_weights_go_on_after_a_kill_with_the_same_bytes(
    dataset: MakeDataset, reversals: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "validate_every", lambda *arguments: 3)
    often = Checkpointing(interval=2, keep_best=1)
    asked = spec(dataset(reversals), method="full", layers=(-1,), steps=8, checkpointing=often)
    whole, again, wire = new_job(tmp_path / "whole"), new_job(tmp_path / "again"), Recorder()
    loop.run(asked, whole)
    killed_at(10, wire)
    asked = msgspec.structs.replace(asked, run=str(tmp_path / "run"))
    with pytest.raises(Killed):
        loop.run(asked, new_job(tmp_path / "killed", wire))
    assert runs.last_folders(tmp_path / "run")
    loop.run(asked, again)
    first, second = (job.workdir / "base" / "model.safetensors" for job in (whole, again))
    assert first.read_bytes() == second.read_bytes()
    assert len(runs.goods(tmp_path / "run")) == 1


def test_preferences_can_change_whole_weights(
    dataset: MakeDataset, preferences: list[Preference], job: JobContext
) -> None:
    whole = {"method": "full", "layers": (-1, -2), "learning_rate": 5e-3}
    asked = spec(dataset(preferences, "preference"), steps=40, batch_size=16, **whole)
    (score,) = loop.run(asked, job).heldout
    assert score.base_preferred == 0
    assert score.preferred is not None
    assert score.preferred > 0.9


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"extract_rank": 4}, "extract_rank"),
        ({"method": "full", "extract_rank": 300}, "extract_rank"),
        ({"method": "full", "initial": "x"}, "initial"),
        ({"method": "full", "lora_dropout": 0.1}, "lora_dropout"),
        ({"method": "full", "rslora": True}, "rslora"),
        ({"method": "full", "compute": "BF16"}, "compute"),
        ({"method": "full", "quantization": "nf4"}, "quantization"),
    ],
)
def test_what_whole_weights_do_not_have(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(TrainingRefused) as refused:
        prepare.check(TrainSpec(base="", dataset="", **wrong))
    assert refused.value.field == field


def test_nothing_to_extract(dataset: MakeDataset, reversals: list[Conversation], job: JobContext) -> None:
    asked = spec(dataset(reversals, split="train"), method="full", modules=("norm",), steps=1, extract_rank=2)
    with pytest.raises(TrainingRefused, match="no linear map"):
        loop.run(asked, job)


# ---- 4 and 8 bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quantization", "bits"), [("nf4", 4), ("int8", 8)])
def test_an_adapter_is_learnt_on_a_quantised_base(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext, quantization: Any, bits: int
) -> None:
    pytest.importorskip("bitsandbytes")
    held = load_base(DEMO_BASE, quantization=quantization).model.model.layers[0].mlp.up_proj.weight
    assert held.element_size() * held.numel() == 128 * 384 * bits // 8
    folder = dataset(reversals)
    result = loop.run(spec(folder, rank=8, steps=60, batch_size=16, quantization=quantization), job)
    assert result.heldout[0].loss < 0.3 * result.heldout[0].base_loss
    on_plain = evaluate.run(
        EvaluateSpec(base=str(DEMO_BASE), adapters=(AdapterPath(id="a", path=str(job.workdir / "adapter")),),
                     dataset=str(folder)),
        new_job(job.workdir / "plain"),
    ).rows[1]  # fmt: skip
    assert on_plain.loss < 0.3 * result.heldout[0].base_loss


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(QuantizationMissing, match="nf4 needs the Python package bitsandbytes"):
        load_base(DEMO_BASE, quantization="nf4")
