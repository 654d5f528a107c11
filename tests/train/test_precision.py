from __future__ import annotations

import re
import resource
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from orchd.importers.conversation import Conversation
from orchd.jobs.context import JobContext
from orchd.jobs.sandbox import limits
from orchd.lm.adapter import start_adapter
from orchd.lm.base import load_base
from orchd.train import loop, precision, prepare, runs
from orchd.train.runs import State
from orchd.train.specs import TrainSpec

from .conftest import DEMO_BASE, MakeDataset, Recorder


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A folder that looks like a base that is worth a trial."""
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(precision.SMALL_BASE_BYTES)
    return tmp_path


@pytest.mark.parametrize(
    ("plain", "short", "wanted"),
    [(1.0, 0.2, torch.bfloat16), (1.0, 0.9, torch.float32), (1.0, 40.0, torch.float32), (0.1, 0.08, torch.bfloat16)],
)
def test_bf16_where_it_is_clearly_faster(plain: float, short: float, wanted: torch.dtype, large: Path) -> None:
    tried: list[torch.dtype] = []

    def seconds(dtype: torch.dtype, device: str) -> float:
        tried.append(dtype)
        return short if dtype == torch.bfloat16 else plain

    assert precision.choose(large, "cpu", seconds) == wanted
    assert tried.count(torch.bfloat16) == (1 if short > 5 * plain else 4), "a very slow one is tried once"


def test_a_small_base_is_not_tried() -> None:
    assert precision.choose(DEMO_BASE, "cpu", seconds=lambda *_: pytest.fail("tried")) == torch.float32


def test_a_real_trial_takes_time() -> None:
    assert precision.trial(torch.float32, "cpu") > 0


def test_free_memory_is_the_systems_or_the_groups(tmp_path: Path) -> None:
    memory, limit, used = tmp_path / "meminfo", tmp_path / "max", tmp_path / "current"
    memory.write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert precision.free_bytes(memory, (limit, used)) == 4_096_000
    limit.write_text("max\n")
    used.write_text("100\n")
    assert precision.free_bytes(memory, (limit, used)) == 4_096_000
    limit.write_text("1000100\n")
    assert precision.free_bytes(memory, (limit, used)) == 1_000_000
    limit.write_text("50\n")
    assert precision.free_bytes(memory, (limit, used)) == 0
    assert precision.free_bytes(tmp_path / "none", (tmp_path / "none", used)) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a limit that holds")
def test_free_memory_is_no_more_than_the_limit_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    used = int(re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024
    monkeypatch.setattr(limits.resource, "getrlimit", lambda which: (used + 50_000_000, resource.RLIM_INFINITY))
    free = precision.free_bytes()
    assert free is not None
    assert abs(free - 50_000_000) < 10_000_000


def test_layers_computed_twice_give_the_same_gradients(dataset: MakeDataset, reversals: list[Conversation]) -> None:
    found = []
    for twice in (False, True):
        base = load_base(DEMO_BASE)
        layers = 0

        def count(*arguments: Any) -> None:
            nonlocal layers
            layers += 1

        for layer in base.model.model.layers:
            layer.mlp.register_forward_pre_hook(count)
        if twice:
            precision.recompute(base.model)
        batch = prepare.read_data(base, TrainSpec(base="", dataset=str(dataset(reversals, split="train")))).examples[:8]
        torch.manual_seed(0)
        model = start_adapter(base, 4, 8, dropout=0.1).train()
        loop.backward(model, batch)
        found.append([p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None])
        assert layers == (6 if twice else 3)
    assert len(found[0]) == len(found[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("compute", ["F32", "BF16"])
def test_it_is_computed_in_what_was_asked_for_and_learnt_in_float32(
    compute: Any, dataset: MakeDataset, reversals: list[Conversation], job: JobContext, wire: Recorder
) -> None:
    spec = TrainSpec(
        base=str(DEMO_BASE),
        dataset=str(dataset(reversals, split="train")),
        rank=4,
        steps=3,
        dtype="F32",
        compute=compute,
        gradient_checkpointing="on",
    )
    loop.run(spec, job)
    said = [one["text"] for one in wire.sent if one["event"] == "log"]
    assert f"computed in {compute} on cpu, layers twice to save memory" in said
    (good,) = runs.goods(job.workdir / "run")
    assert good.train_loss > 0
    state = runs.chosen(job.workdir / "run")
    assert state is not None
    settled = runs.settled(job.workdir / "run")
    assert settled is not None
    assert (state.compute, settled.gradient_checkpointing) == (compute, "on")


def test_a_run_goes_on_in_what_it_began_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TrainSpec(base=str(DEMO_BASE), dataset="")
    monkeypatch.setattr(precision, "choose", lambda *_: torch.float32)
    assert loop.compute_in(spec, tmp_path) == "F32"
    with runs.whole_folder(runs.last_folder(tmp_path, 5)) as draft:
        (draft / runs.STATE_FILE).write_bytes(msgspec.json.encode(State(identity="x", compute="BF16")))
    assert loop.compute_in(spec, tmp_path) == "BF16"
