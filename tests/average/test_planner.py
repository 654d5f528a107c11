"""The plan of an average: the figures, the words, the refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchd.average.likeness import ALIKE_COSINE, likeness
from orchd.average.planner import run_plan
from orchd.average.specs import AveragePlan, AverageSpec, PlanSpec, Refusal, WeightedAdapter
from orchd.average.votes import cast_votes
from orchd.errors import AverageSpecInvalid

from .bench import Bench, leaves
from .peft_folders import Lora, random_lora
from .test_recipes_at_work import peers


def plan(bench: Bench, folders: list[Path], *, authors: list[str] | None = None, **spec: Any) -> AveragePlan:
    through = spec.pop("through", False)
    refused = spec.pop("refused", ())
    named = [
        WeightedAdapter(id=leaf.id, path=leaf.path, author=author)
        for leaf, author in zip(leaves(folders), authors or [""] * len(folders), strict=True)
    ]
    job, wire = bench.job()
    names = tuple(f"called {leaf.id}" for leaf in named)
    made = AverageSpec(adapters=tuple(named), **{"method": "auto", "dtype": "F32", **spec})
    found = run_plan(PlanSpec(average=made, names=names, through=through, refused=refused), job)
    assert list(job.workdir.iterdir()) == []
    assert wire.sent[-1]["done"] == wire.sent[-1]["total"]
    return found


def alike(bench: Bench, count: int = 4) -> list[Path]:
    """A large common part: cosines near .7, no copies."""
    common = random_lora(0)
    made = []
    for seed in range(1, count + 1):
        own = random_lora(seed)
        made.append(Lora({n: (a, 0.7 * own.factors[n][1] + b) for n, (a, b) in common.factors.items()}))
    return bench.write(*made)


def unlike(bench: Bench, count: int = 4) -> list[Path]:
    return bench.write(*(random_lora(seed) for seed in range(10, 10 + count)))


def test_alike_adapters_are_clipped_and_unlike_ones_whitened(bench: Bench) -> None:
    same, other = plan(bench, alike(bench)), plan(bench, unlike(bench))
    assert (same.likeness, same.method, same.strength_ppm) == ("alike", "clip", 1_000_000)
    assert (other.likeness, other.method, other.strength_ppm) == ("unlike", "tsv", 400_000)
    assert same.cosine > ALIKE_COSINE > abs(other.cosine)
    assert any("better at it than any average" in told for told in other.warnings)
    assert not any("better at it than any average" in told for told in same.warnings)


@pytest.mark.parametrize("rank", [2, "budget:2", "energy:.9", "stacked"])
@pytest.mark.parametrize("method", ["auto", "mean", "median"])
def test_a_preview_is_what_comes_out(bench: Bench, method: str, rank: int | str) -> None:
    folders = alike(bench)
    told = plan(bench, folders, method=method, rank=rank, through=True)
    _, result = bench.average(folders, method=method, rank=rank)
    assert told.preview is not None
    assert told.method == result.method
    assert (told.preview.rank, told.preview.parameters) == (result.rank, result.parameters)
    assert told.preview.residual_ppm == pytest.approx(result.residual_ppm, abs=1)
    assert np.allclose(told.cosines, result.cosines)
    assert tuple(leaf.norm for leaf in told.leaves) == pytest.approx(result.norms)
    assert tuple(leaf.weight_ppm for leaf in told.leaves) == result.weights_ppm


def test_what_it_costs_is_measured(bench: Bench) -> None:
    folders = alike(bench)
    told = plan(bench, folders)
    assert told.bytes == sum((folder / "adapter_model.safetensors").stat().st_size for folder in folders)
    assert told.seconds > 0
    assert told.preview is None


def test_what_cannot_be_in_it_is_told_with_the_reason(bench: Bench) -> None:
    good = alike(bench, 3)
    narrow = random_lora(21)
    narrow.factors["model.layers.1.q_proj"] = (np.ones((3, 10), np.float32), np.ones((12, 3), np.float32))
    zero = Lora({n: (a, 0 * b) for n, (a, b) in random_lora(22).factors.items()})
    dora, biased = random_lora(23, use_dora=True), random_lora(24, bias="all")
    saved = random_lora(25, modules_to_save=["lm_head"])
    bad = bench.write(narrow, zero, dora, biased, saved, random_lora(26))
    (bad[5] / "adapter_model.safetensors").unlink()
    known = Refusal(id="adp_x", name="x", reason="it is for another base")
    told = plan(bench, [*good, *bad], refused=(known,))
    assert {leaf.id for leaf in told.leaves} == {folder.name for folder in good}
    reasons = {one.id: one.reason for one in told.refused}
    assert reasons.pop("adp_x") == known.reason
    for folder, words in zip(
        bad, ["12×10", "zero everywhere", "use_dora", "bias = all", "modules_to_save", "can't be read"], strict=True
    ):
        assert words in reasons.pop(folder.name)
    assert not reasons


def test_fewer_than_two_are_no_average(bench: Bench) -> None:
    with pytest.raises(AverageSpecInvalid, match=r"1 of these adapters can be averaged \(called .*use_dora"):
        plan(bench, bench.write(random_lora(1), random_lora(2, use_dora=True)))


def test_copies_and_one_author_are_one_vote(bench: Bench) -> None:
    folders = unlike(bench, 3)
    told = plan(bench, [*folders, *bench.write(random_lora(10))], authors=["a", "b", "b", "d"])
    votes = {leaf.id: leaf.vote for leaf in told.leaves}
    assert votes[folders[1].name] == votes[folders[2].name]
    assert len(set(votes.values())) == 2
    assert any("two votes nobody can be outvoted" in note for note in told.warnings)
    alone = plan(bench, bench.write(random_lora(10), random_lora(10)), authors=["a", "b"])
    assert (alone.likeness, alone.method) == ("one vote", "clip")
    assert any("adds little" in note for note in alone.warnings)


def test_adapters_of_one_author_alone_have_a_vote_each(bench: Bench) -> None:
    told = plan(bench, unlike(bench, 3), authors=["me", "me", "me"])
    assert (told.likeness, told.method) == ("unlike", "tsv")
    assert [leaf.vote for leaf in told.leaves] == [1, 2, 3]


def test_opposite_adapters_are_named(bench: Bench) -> None:
    one = random_lora(1)
    folders = [*bench.write(one, Lora({n: (-a, b) for n, (a, b) in one.factors.items()})), *unlike(bench, 2)]
    told = plan(bench, folders)
    (note,) = (note for note in told.warnings if "work against each other" in note)
    assert folders[0].name in note
    assert folders[1].name in note


def test_a_lowered_strength_and_a_share_are_told(bench: Bench) -> None:
    folders = peers(bench)
    assert any("lowered to 2" in note for note in plan(bench, folders, method="clip", strength=9.0).warnings)
    assert any("makes up 100%" in note for note in plan(bench, folders, method="krum").warnings)
    assert not any("makes up" in note for note in plan(bench, folders, method="clip").warnings)


def test_a_single_vote_is_no_pair() -> None:
    inner = np.ones((2, 2))
    assert likeness(inner, cast_votes(inner, ["a", "a"], [1, 1])).kind == "one vote"


@pytest.mark.parametrize("through", [False, True])
def test_numbers_that_are_none_are_listed_and_the_others_planned(bench: Bench, through: bool) -> None:
    folders = alike(bench)
    path = folders[1] / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(np.nan).astype("<f4").tobytes()
    path.write_bytes(data)
    found = plan(bench, folders, through=through)
    assert [(one.id, one.name) for one in found.refused] == [(folders[1].name, f"called {folders[1].name}")]
    assert found.refused[0].reason.endswith("holds NaN or infinity")
    assert len(found.leaves) == len(found.cosines) == len(folders) - 1
    with pytest.raises(AverageSpecInvalid, match="1 of these adapters can be averaged"):
        plan(bench, folders[:2])
