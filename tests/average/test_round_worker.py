"""A round's average against a slow dense reference: increments, momentum, votes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from orchd.average.round_worker import run, run_verify
from orchd.average.rounds_specs import IncrementPath, RoundResult, RoundSpec, VerifyRoundSpec, round_extra
from orchd.errors import LeafIsZero

from .bench import Bench
from .peft_folders import Lora, dense, random_lora


def averaged(bench: Bench, increments: list[IncrementPath], **spec: Any) -> tuple[dict[str, Any], RoundResult]:
    job, _ = bench.job()
    given = {"rank": 64, "dtype": "F32"} | spec
    result = run(RoundSpec(increments=tuple(increments), **given), job)
    return dense(job.workdir / result.adapter), result


def path(folder: Path, name: str, start: Path | None = None, weight: int = 1) -> IncrementPath:
    return IncrementPath(
        id=name, path=str(folder), start=None if start is None else str(start), weight_ppm=weight, author=name
    )


def scaled(seed: int, factor: float, rank: int = 3) -> Lora:
    made = random_lora(seed, rank)
    return Lora({name: (a, (b * factor).astype(np.float32)) for name, (a, b) in made.factors.items()}, made.config)


def length(deltas: list[Any]) -> float:
    return float(np.sqrt(sum((delta**2).sum() for delta in deltas)))


def expected(
    folders: dict[str, Path],
    starts: dict[str, Path | None],
    previous: Path | None,
    before: Path | None,
    momentum: float,
) -> dict[str, Any]:
    """Equal weights, clipped to the lower median of the increments' lengths."""
    names = list(dense(next(iter(folders.values()))))
    increments = {
        who: {name: dense(folder)[name] - (dense(starts[who])[name] if starts[who] else 0) for name in names}
        for who, folder in folders.items()
    }
    lengths = {who: length(list(each.values())) for who, each in increments.items()}
    limit = sorted(lengths.values())[(len(lengths) - 1) // 2]
    share = {who: min(1.0, limit / lengths[who]) / len(folders) for who in folders}
    found = {}
    for name in names:
        total = sum(share[who] * increments[who][name] for who in folders)
        if previous is not None:
            total = total + (1 + momentum) * dense(previous)[name]
        if before is not None:
            total = total - momentum * dense(before)[name]
        found[name] = total
    return found


def test_the_first_round_is_the_clipped_mean_of_the_increments(bench: Bench) -> None:
    folders = dict(zip("abc", bench.write(random_lora(1), scaled(2, 3.0), random_lora(3)), strict=True))
    found, result = averaged(bench, [path(folder, name) for name, folder in folders.items()])
    wanted = expected(folders, dict.fromkeys("abc"), None, None, 0.0)
    for name, delta in wanted.items():
        np.testing.assert_allclose(found[name], delta, atol=1e-4)
    assert result.votes == (1, 2, 3)
    assert result.taken_ppm[1] < result.taken_ppm[0]


def test_later_rounds_add_the_increments_and_the_momentum_to_the_global(bench: Bench) -> None:
    previous, before = bench.write(random_lora(8), random_lora(9))
    folders = dict(zip("abcd", bench.write(*(random_lora(seed) for seed in range(4))), strict=True))
    starts: dict[str, Path | None] = {"a": previous, "b": previous, "c": previous, "d": before}  # d is late
    increments = [path(folder, name, starts[name]) for name, folder in folders.items()]
    common = {"previous": str(previous), "before": str(before), "momentum_ppm": 500_000}
    found, _ = averaged(bench, increments, **common)
    for name, delta in expected(folders, starts, previous, before, 0.5).items():
        np.testing.assert_allclose(found[name], delta, atol=1e-4)


def test_the_order_of_the_members_does_not_matter_for_the_bytes(bench: Bench) -> None:
    previous, *folders = bench.write(*(random_lora(seed) for seed in range(4)))
    increments = [path(folder, name, previous) for name, folder in zip("abc", folders, strict=True)]
    found = []
    for order in (increments, increments[::-1]):
        job, _ = bench.job()
        result = run(RoundSpec(increments=tuple(order), previous=str(previous), rank=4), job)
        found.append((job.workdir / result.adapter / "adapter_model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_a_global_that_nobody_moved_is_not_averaged_and_who_did_not_move_it_has_no_vote(bench: Bench) -> None:
    previous, moved = bench.write(random_lora(1), random_lora(2))
    idle = path(previous, "idle", previous)
    with pytest.raises(LeafIsZero):
        averaged(bench, [idle], previous=str(previous))
    _, result = averaged(bench, [idle, path(moved, "moved", previous)], previous=str(previous))
    assert result.votes == (0, 1)
    assert result.taken_ppm == (0, 1_000_000)


def test_copies_are_one_vote_however_many_they_are(bench: Bench) -> None:
    folders = bench.write(random_lora(1), random_lora(2), random_lora(3), random_lora(3), random_lora(3))
    _, result = averaged(bench, [path(folder, f"m{number}") for number, folder in enumerate(folders)])
    assert len(set(result.votes)) == 3
    assert result.votes[2] == result.votes[3] == result.votes[4]
    assert sum(result.taken_ppm[2:]) <= 333_334


def test_one_that_is_a_hundred_times_louder_is_no_louder(bench: Bench) -> None:
    folders = bench.write(random_lora(1), random_lora(2), scaled(3, 100.0), random_lora(4))
    _, result = averaged(bench, [path(folder, f"m{number}") for number, folder in enumerate(folders)])
    assert result.taken_ppm[2] * result.norms[2] <= 1.01 * max(
        result.taken_ppm[at] * result.norms[at] for at in (0, 1, 3)
    )


def test_what_a_manifest_says_of_a_round_is_read_if_it_is_of_that_form() -> None:
    assert round_extra({}) is None
    assert round_extra({"round": {"start": b"short"}}) is None
    assert round_extra({"round": {"momentum_ppm": -1}}) is None
    found = round_extra({"round": {"start": b"\x01" * 32}})
    assert found is not None
    assert found.start == b"\x01" * 32


@pytest.mark.parametrize("rank", [4, 64])
def test_a_published_round_is_told_from_a_lie_by_its_increments_and_the_globals(bench: Bench, rank: int) -> None:
    previous, before = bench.write(random_lora(8), random_lora(9))
    folders = dict(zip("abcd", bench.write(*(random_lora(seed) for seed in range(4))), strict=True))
    spec = RoundSpec(
        increments=tuple(path(folder, name, previous) for name, folder in folders.items()),
        previous=str(previous),
        before=str(before),
        momentum_ppm=500_000,
        rank=rank,
    )
    job, _ = bench.job()
    made = job.workdir / run(spec, job).adapter
    honest = run_verify(VerifyRoundSpec(claimed=str(made), round=spec), bench.job()[0])
    assert honest.holds
    assert honest.relative_error < 0.005
    without_momentum = msgspec.structs.replace(spec, momentum_ppm=0)
    lie = run_verify(VerifyRoundSpec(claimed=str(made), round=without_momentum), bench.job()[0])
    assert not lie.holds
    assert "% off" in lie.detail
