"""The rules of the plan, from made-up facts; then what is measured, on the demo base."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from orchd.errors import MemoryShort
from orchd.importers.conversation import Conversation
from orchd.jobs.context import JobContext
from orchd.lm.adapter import save_adapter, start_adapter
from orchd.lm.base import load_base
from orchd.train import afterwards, loop, measure, plan, planner, precision, prepare, retention
from orchd.train.base_facts import base_facts
from orchd.train.plan import Facts, Place
from orchd.train.plan_specs import Alone, BaseFacts, DataFacts, Machine, Pace, PlanSpec, Trial, ValidateSpec, Work
from orchd.train.retention_prompts import PROMPTS
from orchd.train.retention_store import SHIPPED
from orchd.train.specs import EarlyStopping, Finding, Settled, TrainSpec

from .conftest import DEMO_BASE, MakeDataset, Recorder, new_job, pair

SMOL = BaseFacts(
    width=576,
    inner=1536,
    layers=30,
    vocabulary=49_152,
    parameters=134_515_008,
    adapter_parameters=305_280,
    context=2048,
)
TINY = BaseFacts(
    width=128,
    inner=384,
    layers=3,
    vocabulary=1024,
    parameters=770_944,
    adapter_parameters=7_680,
    context=512,
    layer_parameters=639_744,
    file_bytes=1_541_888,
)
GB = 1_000_000_000


def facts(base: BaseFacts = SMOL, *, free: int | None = 64 * GB, **data: Any) -> Facts:
    given: dict[str, Any] = {"examples": 300, "distinct": 300, "answers": 300, "counted": 9_000}
    given |= {"tokens": 30_000, "longest": 100, "lengths": 50, "heldout": 30} | data
    alone = Alone(loss=3.0, accuracy=0.2, examples=32)
    machine = Machine(device="cpu", threads=1, compute="F32", free_memory=free, free_disk=64 * GB)
    return Facts(DataFacts(**given), [given["longest"]] * given["examples"], base, machine, alone)


def spec(**fields: Any) -> TrainSpec:
    return TrainSpec(base="b", dataset="d", **fields)


def settled(given: Facts, **fields: Any) -> Settled:
    return plan.settle(spec(**fields), given)[0]


def test_what_was_measured_is_what_is_planned() -> None:
    """Facts on training, sections 2, 6 and 11: the demo base's rate, SmolLM2's within a fifth, and 25·√n steps."""
    assert settled(facts(TINY)).learning_rate == 5e-3
    assert settled(facts(SMOL)).learning_rate == pytest.approx(1e-3, rel=0.2)
    for examples, steps in ((20, 112), (100, 250), (300, 433), (1000, 791)):
        assert settled(facts(examples=examples, distinct=examples)).steps == steps
    assert (settled(facts(TINY)).batch_size, settled(facts(SMOL)).batch_size) == (16, 8)
    assert settled(facts(TINY, examples=5)).batch_size == 5


def test_what_is_asked_for_is_kept_and_said() -> None:
    asked = {"rank": 4, "alpha": 3.0, "learning_rate": 2e-3, "batch_size": 3, "steps": 7, "warmup_steps": 2}
    found, lines = plan.settle(spec(**asked), facts())
    assert {name: getattr(found, name) for name in asked} == asked
    assert {line.name for line in lines if line.why == "as asked"} == set(asked)


def test_epochs_and_a_bound_on_the_steps() -> None:
    assert settled(facts(), epochs=2.0, batch_size=8).steps == 75
    assert settled(facts(), epochs=2.0, batch_size=8, gradient_accumulation_steps=5).steps == 15
    assert settled(facts(), epochs=2.0, batch_size=8, max_steps=40).steps == 40
    assert settled(facts(), max_steps=1000).steps == 433


def test_the_rate_falls_with_the_root_of_the_rank() -> None:
    rates = [settled(facts(TINY), rank=rank).learning_rate for rank in (4, 16, 64)]
    assert rates == [1e-2, 5e-3, 2.5e-3]
    assert settled(facts(TINY), rank=64, rslora=True).learning_rate == 5e-3


def test_a_training_that_goes_on_is_planned_otherwise() -> None:
    first, second = settled(facts()), settled(replace(facts(), initial_rank=8))
    assert (second.rank, second.steps) == (8, round(first.steps / 2))
    assert second.learning_rate == pytest.approx(first.learning_rate * math.sqrt(16 / 8), rel=0.05)
    in_rounds = settled(replace(facts(), initial_rank=16), schedule_total=300, steps=100)
    assert in_rounds.learning_rate == first.learning_rate, "the rounds of one schedule take one rate"
    assert in_rounds.warmup_steps == 30


def test_other_ways_of_learning_take_lower_rates() -> None:
    assert settled(replace(facts(TINY), preferences=True)).learning_rate == 2.5e-3
    assert settled(replace(facts(TINY), full=True)).learning_rate == 5e-4
    whole = plan.needed(replace(facts(), full=True), Place(False, 1024, 100, 16))
    assert whole - plan.needed(facts(), Place(False, 1024, 100, 16)) == 16 * 134_515_008 - 32 * 16 * 305_280


def test_more_to_learn_takes_a_higher_rank() -> None:
    assert settled(facts(TINY)).rank == 16
    assert settled(facts(TINY, counted=100_000)).rank == 32
    assert settled(facts(TINY, counted=10_000_000)).rank == plan.MAX_PLANNED_RANK


def test_what_a_pass_keeps() -> None:
    """SmolLM2 peaked at 2.8 GB (facts, section 11): 0.5 of weights, 0.4 of libraries, and this."""
    assert 1.5e9 < plan.needed(facts(), Place(False, 1024, 100, 16)) < 2.4e9


@pytest.mark.parametrize(
    ("free", "checkpointing", "row_tokens"),
    [(None, "off", 1024), (8 * GB, "off", 1024), (2 * GB, "on", 1024), (900_000_000, "on", 100)],
)
def test_layers_are_computed_twice_where_memory_is_short(free: int | None, checkpointing: str, row_tokens: int) -> None:
    found = settled(facts(free=free))
    assert (found.gradient_checkpointing, found.row_tokens) == (checkpointing, row_tokens)


def test_memory_that_is_missing_is_named_with_what_fits() -> None:
    """Every word of the hint is true: what it offers is planned without a complaint, and one step more is not."""
    long = facts(free=1_500_000_000, longest=2048)
    with pytest.raises(MemoryShort, match=r"and may take 1\.1 GB of the 1\.5 GB that are free: .* missing") as refused:
        settled(long)
    assert "`--gradient-checkpointing on --max-length 1024`" in refused.value.hint
    assert "300 of 300 examples are longer" in refused.value.hint
    assert plan.needed(facts(), Place(True, 1024, 1024, 16)) <= plan.MEMORY_SHARE * 1.5 * GB
    assert plan.needed(facts(), Place(True, 2048, 2048, 16)) > plan.MEMORY_SHARE * 1.5 * GB
    with pytest.raises(MemoryShort) as nothing:
        settled(facts(free=1_000_000))
    assert nothing.value.field == "base"
    with pytest.raises(MemoryShort, match="missing") as off:
        settled(facts(free=2 * GB), gradient_checkpointing="off")
    assert off.value.hint.startswith("This fits")
    assert "--gradient-checkpointing on`" in off.value.hint


@pytest.mark.parametrize(
    ("data", "alone", "said"),
    [
        ({"examples": 10, "distinct": 10}, 0.2, "10 different examples: below 20"),
        ({"examples": 1, "distinct": 1, "duplicates": 499}, 0.2, "1 example, and 499 more that are the same"),
        ({"examples": 400, "distinct": 3}, 0.2, "3 different examples, and 397 more that are the same"),
        ({"answers": 1}, 0.2, "every example has the same answer"),
        ({}, 0.99, "it is known already: 99% of the answers' tokens"),
    ],
)
def test_when_it_is_not_worth_it(data: dict[str, int], alone: float, said: str) -> None:
    given = facts(**data)
    (reason,) = plan.not_worth(given.data, Alone(loss=1.0, accuracy=alone, examples=32))
    assert said in reason
    assert plan.not_worth(facts().data, Alone(loss=1.0, accuracy=0.9, examples=32)) == ()


@pytest.mark.parametrize(
    ("fields", "data", "field", "said"),
    [
        ({"learning_rate": 1e-4}, {}, "learning_rate", "outside 0.0005…0.02, the range that suits this base"),
        ({"learning_rate": 0.03}, {}, "learning_rate", "128 wide"),
        ({"batch_size": 512, "steps": 9}, {}, "batch_size", "512 examples a step are more than the 300"),
        ({"epochs": 200.0}, {}, "epochs", "seen 200 times"),
        ({"rank": 4, "alpha": 400.0}, {}, "alpha", "alpha over rank is 100"),
        ({"steps": 10, "warmup_steps": 9}, {}, "warmup_steps", "leave less than half of 10"),
        ({"max_length": 64}, {"too_long": 12}, "max_length", "12 rows are longer than 64 tokens"),
        ({}, {"distinct": 30, "examples": 30}, "dataset", "30 examples are few"),
        ({}, {"heldout": 0}, "dataset", "no rows are put aside to test on"),
        ({"early_stopping": EarlyStopping(enabled=True)}, {}, "early_stopping.enabled", "nothing to validate on"),
    ],
)
def test_what_is_unwise(fields: dict[str, Any], data: dict[str, int], field: str, said: str) -> None:
    given, asked = facts(TINY, **data), spec(**fields)
    (found,) = plan.warnings(asked, settled(given, **fields), given)
    assert found.field == field
    assert said in found.message


@pytest.mark.parametrize("rate", [5e-3, 1e-2])
def test_the_demo_bases_own_rates_are_not_warned_of(rate: float) -> None:
    given = facts(TINY)
    assert list(plan.warnings(spec(), settled(given, learning_rate=rate), given)) == []


def test_dropout_is_planned_where_it_was_measured_to_help() -> None:
    assert settled(facts(TINY)).lora_dropout == plan.DROPOUT
    assert settled(facts(TINY), lora_dropout=0.0).lora_dropout == 0.0
    assert settled(facts(SMOL)).lora_dropout == 0.0
    assert settled(facts(SMOL), lora_dropout=0.1).lora_dropout == 0.1
    assert settled(facts(TINY), schedule_total=300, steps=100).lora_dropout == 0.0
    for other in ({"preferences": True}, {"full": True}):
        assert settled(replace(facts(TINY), **other)).lora_dropout == 0.0


def test_without_a_base_the_usual_range_counts() -> None:
    assert plan.odd_rate(spec(), 1e-4, 16, None) is None
    found = plan.odd_rate(spec(), 1e-2, 16, None)
    assert found is not None
    assert "outside 1e-05…0.001" in found.message


def test_what_is_recommended_is_what_would_be_planned() -> None:
    given = facts(TINY)
    found = list(
        plan.recommendations(spec(learning_rate=1e-4, rank=16, seed=3), ("learning_rate", "rank", "seed"), given)
    )
    assert [(one.field, one.value) for one in found] == [("learning_rate", 5e-3)]


def test_a_warm_up_is_recommended_for_the_steps_that_were_asked_for() -> None:
    asked = spec(max_steps=20, epochs=3, warmup_steps=500)
    found = {one.field: one.value for one in plan.recommendations(asked, ("warmup_steps",), facts(TINY))}
    assert found == {"warmup_steps": 2}


def test_time_is_the_sum_of_what_was_measured() -> None:
    trial = Trial(
        steps=4, step_s=0.1, tokens=100, pace=Pace(token_s=1e-3, pass_s=0.1, answer_s=0.01), loading_s=2.0,
        trying_s=0.7, memory=10**9, loss_before=3.0, loss_after=2.0, rate=1e-3, rates=(1e-3,),
    )  # fmt: skip
    after = (
        Work(phase="scoring", why="20 rows", tokens=4000, passes=30, answers=60),
        Work(phase="leak report", why="40 rows", tokens=8000, loaded=2),
    )
    given = replace(facts(validation=10, validation_tokens=1000, heldout=20), after=after)
    made = plan.make(spec(steps=50), given, trial, validations=4)
    scoring, leak = 4.0 + 3.0 + 0.6, 8.0 + 2 * 2.0
    assert made.seconds == pytest.approx(2.0 + 0.7 + 50 * 0.1 + 5 * 1000 * 1e-3 + scoring + leak, abs=0.1)
    lines = {line.name: line for line in made.lines}
    assert (lines["scoring_seconds"].value, lines["scoring_seconds"].why) == (pytest.approx(scoring), "20 rows")
    assert lines["leak_report_seconds"].value == pytest.approx(leak)
    assert "trial steps 0.7 s" in lines["seconds"].why
    assert made.memory == 10**9 + 3 * 305_280 * 16 * 4
    assert (made.kind, made.worth) == ("first", True)


# ---- measured -----------------------------------------------------------------------------------------------------


def trying(folder: Path, job: JobContext, **fields: Any) -> measure.Trying:
    asked, base = TrainSpec(base=str(DEMO_BASE), dataset=str(folder), **fields), load_base(DEMO_BASE)
    examples = prepare.read_data(base, asked).examples
    return measure.Trying(
        asked, base, examples, prepare.SFT, loop.backward, lambda size: loop.trial_batches(asked, examples, size), job
    )


def test_the_demo_base_in_figures() -> None:
    assert base_facts(DEMO_BASE) == TINY
    model: Any = start_adapter(load_base(DEMO_BASE), 4, 8)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert trained == 4 * TINY.adapter_parameters


def test_a_rate_that_makes_the_loss_greater_is_halved(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext
) -> None:
    given = trying(dataset(reversals, split="train"), job)
    known = measure.facts_of(given, facts(TINY).data, facts().machine)
    start, _ = plan.settle(given.spec, known)
    fine = measure.try_steps(given, start)
    assert fine.rates == (5e-3,)
    assert fine.loss_after < fine.loss_before
    assert all("lora" not in name for name, _ in given.base.model.named_parameters()), "the base is as it was"


@pytest.mark.parametrize(
    ("losses", "tried", "kept"),
    [
        ((3.0,), 1, 1.0),
        ((9.0, 8.5, 3.0), 3, 0.25),
        ((9.0, 10.0), 2, 1.0),
        ((math.nan, math.nan, 4.0), 3, 0.25),
        ((9.9, 9.8, 9.7, 9.6, 9.5), measure.MAX_RATES, 0.0625),
    ],
)
def test_half_of_a_rate_is_tried_while_that_is_no_worse(
    losses: tuple[float, ...],
    tried: int,
    kept: float,
    dataset: MakeDataset,
    reversals: list[Conversation],
    job: JobContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = trying(dataset(reversals, split="train"), job)
    left = iter(losses)
    attempt = measure._Attempt
    monkeypatch.setattr(measure, "_attempt", lambda *a: attempt(a[-1], 10.0, next(left), (1.0, 1.0)))
    start = msgspec.structs.replace(settled(facts(TINY)), learning_rate=1.0)
    found = measure.try_steps(given, start)
    assert (len(found.rates), found.rate) == (tried, kept)
    assert next(left, None) is None


def test_a_plan_of_a_training_that_was_run(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext, tmp_path: Path
) -> None:
    folder = dataset(reversals)
    asked = TrainSpec(base=str(DEMO_BASE), dataset=str(folder), max_steps=12)
    made = planner.run_plan(PlanSpec(train=asked, command="orchctl train start mine"), job)
    assert (made.kind, made.worth, made.command) == ("first", True, "orchctl train start mine")
    assert made.settled.steps == 12
    assert made.trial.step_s > 0
    assert made.seconds > 12 * made.trial.step_s
    assert made.alone.accuracy < 0.9
    said = {line.name for line in made.lines}
    assert {"steps", "batch_size", "max_length", "rank", "learning_rate", "seconds", "memory", "disk"} <= said
    assert all(line.why and line.shown for line in made.lines)
    result = loop.run(asked, JobContext(tmp_path, 1, Recorder()))
    assert result.settled == made.settled, "a training without settings takes the plan's"


def test_a_plan_that_goes_on_tries_the_adapter(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext
) -> None:
    folder, first = dataset(reversals, split="train"), job.workdir / "first"
    torch.manual_seed(0)
    save_adapter(start_adapter(load_base(DEMO_BASE), 4, 8), first, "F32")
    made = planner.run_plan(
        PlanSpec(train=TrainSpec(base=str(DEMO_BASE), dataset=str(folder), initial=str(first))), job
    )
    assert (made.kind, made.settled.rank) == ("continued", 4)
    assert made.settled.steps == round(plan.default_steps(made.data.examples) / 2)


def test_what_the_base_knows_is_not_worth_it(dataset: MakeDataset, job: JobContext) -> None:
    words = ("sun", "cat", "key", "moon", "dog", "tree")
    known = [pair(f"copy: {a} {b}", f"{a} {b}") for a in words for b in words if a != b]
    made = planner.run_plan(
        PlanSpec(train=TrainSpec(base=str(DEMO_BASE), dataset=str(dataset(known, split="train")))), job
    )
    assert not made.worth
    assert "it is known already" in made.reasons[0]


def test_settings_are_validated_on_the_data(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext
) -> None:
    asked = TrainSpec(base=str(DEMO_BASE), dataset=str(dataset(reversals)), learning_rate=1e-4, batch_size=500)
    given = ("learning_rate", "batch_size")
    found = planner.run_validate(ValidateSpec(train=asked, given=given), job)
    assert found.valid
    assert [one.field for one in found.warnings] == ["learning_rate", "batch_size", "steps"]
    assert {one.field: one.value for one in found.recommendations} == {"learning_rate": 5e-3, "batch_size": 16}
    wrong = Finding(field="rank", message="no")
    assert not planner.run_validate(ValidateSpec(train=asked, errors=(wrong,)), job).valid
    broken = msgspec.structs.replace(asked, dataset=str(job.workdir / "nowhere"))
    (error,) = planner.run_validate(ValidateSpec(train=broken), job).errors
    assert error.field == "dataset"


def test_memory_is_looked_at_before_training(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "free_bytes", lambda: 1_000_000)
    asked = TrainSpec(base=str(DEMO_BASE), dataset=str(dataset(reversals)))
    with pytest.raises(MemoryShort, match="missing"):
        loop.run(asked, job)
    found = planner.run_validate(ValidateSpec(train=asked), job)
    assert [one.field for one in found.errors] == ["base"]


@pytest.mark.parametrize("at", ["trial", "step"])
def test_memory_that_runs_out_all_the_same(
    at: str, dataset: MakeDataset, reversals: list[Conversation], job: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is torch's own: an exabyte is asked for."""

    def greedy(*arguments: Any, **more: Any) -> None:
        torch.empty(1 << 58)

    monkeypatch.setattr(loop, "backward", greedy)
    rate = 5e-3 if at == "step" else 0.0
    asked = TrainSpec(base=str(DEMO_BASE), dataset=str(dataset(reversals)), learning_rate=rate)
    with pytest.raises(MemoryShort, match=r"not enough memory: 1152921\.5 TB more were asked for") as told:
        loop.run(asked, job)
    assert "`--gradient-checkpointing on`" in told.value.hint


def test_memory_that_runs_out_after_the_last_step_is_told_with_what_takes_less(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*arguments: Any, **more: Any) -> None:
        torch.empty(1 << 58)

    monkeypatch.setattr(loop.outcome, "leave", greedy)
    asked = {"steps": 1, "learning_rate": 5e-3, "rank": 8, "gradient_checkpointing": "on"}
    with pytest.raises(MemoryShort) as told:
        loop.run(TrainSpec(base=str(DEMO_BASE), dataset=str(dataset(reversals)), **asked), job)
    assert "`--rank 4`" in told.value.hint


def test_what_takes_less_memory() -> None:
    less = settled(facts(longest=700), gradient_checkpointing="on")
    for fields, offered in (({}, "--max-length 350"), ({"max_length": 200}, "--rank 8"), ({"rank": 4}, "smaller base")):
        less = msgspec.structs.replace(less, **fields)
        with pytest.raises(MemoryShort) as told, plan.memory_watched(less):
            raise MemoryError
        assert offered in told.value.hint
    with pytest.raises(RuntimeError, match="shapes"), plan.memory_watched(less):
        raise RuntimeError("shapes do not fit")


def test_a_share_of_the_rows_is_put_aside_by_groups(dataset: MakeDataset, reversals: list[Conversation]) -> None:
    grouped = [msgspec.structs.replace(one, group=str(at // 10)) for at, one in enumerate(reversals)]
    folder = dataset(grouped, split="train")
    aside = prepare.set_aside(prepare.read_part(folder, "train"), 0.25, 7)
    asked = TrainSpec(base=str(DEMO_BASE), dataset=str(folder), validation_split=0.25, seed=7)
    learnt, validated = prepare.read_data(load_base(DEMO_BASE), asked)
    assert len(aside) == len(validated) == 30
    assert len(learnt) == 90
    assert prepare.set_aside(prepare.read_part(folder, "train"), 0.25, 8) != aside
    rows = {row.id: row.group for row in prepare.read_part(folder, "train")}
    kept = {group for id, group in rows.items() if id not in aside}
    assert kept.isdisjoint(rows[id] for id in aside)


@pytest.mark.parametrize("split", [0.0, 0.25])
def test_each_part_is_read_once(
    split: float, dataset: MakeDataset, reversals: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = prepare.read_part
    monkeypatch.setattr(prepare, "read_part", lambda folder, part: read.append(part) or real(folder, part))
    asked = TrainSpec(base=str(DEMO_BASE), dataset=str(dataset(reversals)), validation_split=split)
    prepare.read_data(load_base(DEMO_BASE), asked)
    assert sorted(read) == ["train", "validation"]


# ---- what comes after the last step -------------------------------------------------------------------------------


def test_what_comes_after_the_last_step_is_what_is_done(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens are counted at the model's own door while the job is in each phase."""
    folder = dataset(reversals, test_share=0.2)
    asked = TrainSpec(
        base=str(DEMO_BASE), dataset=str(folder), steps=40, learning_rate=5e-3, leak_report=True, canaries=1,
        retention=str(next(SHIPPED.glob("*.jsonl"))),
    )  # fmt: skip
    base = load_base(DEMO_BASE)
    planned = {one.phase: one for one in afterwards.work_after(asked, base, prepare.read_data(base, asked).examples)}
    seen: dict[str, int] = {}
    enter = loop.enter

    def entered(t: loop.Training, phase: str) -> None:
        enter(t, phase)
        seen[phase] = 0
        if len(seen) == 1:
            inner = t.model.get_base_model().model
            inner.register_forward_pre_hook(count, with_kwargs=True)

    def count(module: Any, args: Any, kwargs: Any) -> None:
        seen[list(seen)[-1]] += kwargs["input_ids"].numel()

    monkeypatch.setattr(loop, "enter", entered)
    loop.run(asked, job)
    assert list(seen) == list(planned) == ["scoring", "leak report", "forgetting"]
    for phase, tokens in seen.items():
        one = planned[phase]
        assert one.tokens + one.answers == pytest.approx(tokens, rel=0.3), phase


def test_a_base_without_a_retention_set_makes_it_first(dataset: MakeDataset, reversals: list[Conversation]) -> None:
    asked = TrainSpec(base=str(DEMO_BASE), dataset=str(dataset(reversals, split="train")), retention="")
    base = load_base(DEMO_BASE)
    (made,) = afterwards.work_after(asked, base, prepare.read_data(base, asked).examples)
    assert (made.phase, made.passes % retention.ANSWER_TOKENS) == ("forgetting", 0)
    assert made.answers >= len(PROMPTS) * retention.ANSWER_TOKENS
    given = msgspec.structs.replace(asked, retention=str(next(SHIPPED.glob("*.jsonl"))))
    (kept,) = afterwards.work_after(given, base, prepare.read_data(base, given).examples)
    assert (kept.passes, kept.answers) == (0, 0)


def test_the_time_left_counts_what_is_still_to_come() -> None:
    now = 0.0
    left = afterwards.Countdown([("scoring", 10.0), ("leak report", 20.0)], monotonic=lambda: now)
    assert left.seconds == 30
    left.enter("scoring")
    now = 4.0
    assert left.seconds == 26
    now = 14.0
    assert left.seconds == 20, "it took longer than it was thought to"
    left.enter("leak report")
    assert left.seconds == 20
    now = 20.0
    assert left.seconds == 14


def test_the_daemon_is_told_what_is_left(dataset: MakeDataset, reversals: list[Conversation], tmp_path: Path) -> None:
    asked = TrainSpec(
        base=str(DEMO_BASE), dataset=str(dataset(reversals)), steps=3, learning_rate=5e-3, leak_report=True
    )
    wire = Recorder()
    loop.run(asked, new_job(tmp_path / "told", wire))
    told = [one for one in wire.sent if one["event"] == "progress" and one["figures"]["phase"] != "preparing"]
    assert all(one["after_s"] > 0 for one in told if one["done"] < 3)
    phases = list(dict.fromkeys(one["figures"]["phase"] for one in told))
    assert phases[-2:] == ["scoring", "leak report"]
    assert told[0]["after_s"] >= told[-1].get("after_s", 0.0)
