"""Adapters stacked over one base compute what PEFT computes of each, and of their averages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from peft import PeftModel

from orchd.average import worker
from orchd.average.course import Recipe
from orchd.average.gate import Gate, Question, single
from orchd.average.opened import Opened, opened
from orchd.average.stacking import Among, turned
from orchd.errors import AdapterUnfit
from orchd.lm.base import load_base
from orchd.lm.stacked import Stack
from tests.judging.conftest import People
from tests.train.conftest import DEMO_BASE, new_job

IDS = torch.arange(5, 45)[None]


def logits_of(model: object) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits  # type: ignore[operator, no-any-return]


def by_peft(folder: Path) -> torch.Tensor:
    """A budget may leave modules out: PEFT then adds nothing there."""
    return logits_of(PeftModel.from_pretrained(load_base(DEMO_BASE).model, folder).eval())


def stacked(source: Opened) -> Stack:
    stack = Stack(load_base(DEMO_BASE).model)
    for module in source.union.modules:
        factors = source.factors(module.name)
        stack.add(module.name, np.concatenate([f.a for f in factors]), np.concatenate([f.b for f in factors], axis=1))
    return stack


def test_each_by_itself_is_the_adapter_and_nothing_is_the_base(people: People) -> None:
    names = ["rev0", "rev1", "upper"]
    with opened([(name, str(people.adapters[name])) for name in names]) as leaves:
        source = Opened(leaves, keep=True)
        stack = stacked(source)
        base = logits_of(load_base(DEMO_BASE).model)
        for at, name in enumerate(names):
            stack.put(turned(Among(source, (at,)), single(1.0), None))
            wanted = by_peft(people.adapters[name])
            assert (wanted - base).abs().max() > 0.1
            assert torch.allclose(logits_of(stack.model), wanted, atol=1e-4)
        stack.put({})
        assert torch.equal(logits_of(stack.model), base)


@pytest.mark.parametrize("method", ["clip", "tsv", "mean", "median"])
@pytest.mark.parametrize("rank", ["2", "budget:2", "stacked"])
def test_what_is_judged_is_what_is_written(people: People, tmp_path: Path, method: str, rank: str) -> None:
    """Also of three adapters of four, the second of which is left out."""
    spec = people.spec("rev0", "rev1", "rev2", "upper")
    recipe = Recipe.of(method, rank, None, spec.adapters)
    with opened([(leaf.id, leaf.path) for leaf in recipe.leaves]) as leaves:
        source = Opened(leaves, keep=True)
        gate = Gate(recipe, source.inner(lambda: None))
        question = Question("choosing", (0, 2, 3), gate.decided((0, 2, 3), method, None), truncated=True)
        assert question.decision is not None
        among = Among(source, question.members)
        stack = stacked(source)
        stack.put(turned(among, question.decision, recipe.ranks(among, question.decision, lambda: None)))
        found = logits_of(stack.model)
    job = new_job(tmp_path / "job")
    kept = tuple(leaf for leaf in spec.adapters if leaf.id != "rev1")
    wanted = replace(spec, adapters=kept, method=method, rank=rank, dtype="F32", gate=None)
    result = worker.run(wanted, job)
    assert torch.allclose(found, by_peft(job.workdir / result.adapter), atol=2e-4)


def test_a_module_that_the_base_lacks_and_other_shapes_are_refused(people: People) -> None:
    stack = Stack(load_base(DEMO_BASE).model)
    two = np.zeros((2, 7), np.float32)
    with pytest.raises(AdapterUnfit, match="no module model\\.layers\\.99"):
        stack.add("model.layers.99.self_attn.q_proj", two, two.T)
    with pytest.raises(AdapterUnfit, match="is 7×7, this base's 128×128"):
        stack.add("model.layers.0.self_attn.q_proj", two, two.T)
