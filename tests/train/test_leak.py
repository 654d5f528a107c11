"""What an adapter gives away: the figures against a slow reference, canaries, verbatim runs, the centroid."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from msgspec import to_builtins

from orchd.cli.nouns.adapter_leak import CHANCE, LIMIT, _canary, _sharing
from orchd.importers.conversation import Conversation, Message
from orchd.jobs.context import JobContext
from orchd.leaks import LABEL
from orchd.lm.adapter import start_adapter
from orchd.lm.base import load_base
from orchd.lm.chat import Encoded
from orchd.train import loop
from orchd.train.datasets.encode import encode_row
from orchd.train.datasets.store import ChatRow, TextRow
from orchd.train.leak import figures, measure, worker
from orchd.train.leak.canaries import ALTERNATIVES, alternatives, canaries
from orchd.train.leak.figures import LeakReport
from orchd.train.prepare import read_data
from orchd.train.specs import LeakSettings, LeakSpec, TrainResult, TrainSpec
from orchd.train.words import ENGLISH_WORDS, INVENTED_WORDS

from .conftest import DEMO_BASE, MakeDataset, new_job, pair

NOISE = 120
"""Rows of random words: nothing can be learnt from them but themselves."""


@pytest.fixture(scope="module")
def noise() -> list[Conversation]:
    rng = random.Random(5)

    def words(pool: tuple[str, ...], count: int) -> str:
        return " ".join(rng.choices(pool, k=count))

    return [pair(f"echo: {words(ENGLISH_WORDS, 3)}", words(INVENTED_WORDS, rng.randint(2, 6))) for _ in range(NOISE)]


def trained(folder: Path, job: JobContext, **more: Any) -> TrainResult:
    spec = {"rank": 8, "steps": 150, "batch_size": 8, "dtype": "F32", "compute": "F32", "leak_report": True}
    return loop.run(TrainSpec(base=str(DEMO_BASE), dataset=str(folder), **(spec | more)), job)


def report_of(result: TrainResult) -> LeakReport:
    assert result.leak is not None
    return result.leak


# ---- the slow reference: transformers and peft alone, row by row, pair by pair -----------------------------------


def slow_losses(model: Any, tokenizer: Any, file: Path) -> list[float]:
    """Mean nats of each answer's tokens, from the rows as they lie on the disk."""
    found = []
    for line in file.read_text().splitlines():
        messages = json.loads(line)["messages"]
        whole = tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")  # the answer ends with its turn
        asked = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt").input_ids
        start = len(tokenizer(asked, add_special_tokens=False).input_ids)
        with torch.no_grad():
            odds = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double().log_softmax(-1)
        nats = [-float(odds[at - 1, ids[0, at]]) for at in range(start, ids.shape[1])]
        found.append(sum(nats) / len(nats))
    return found


def slow_auc(members: list[float], others: list[float]) -> float:
    won = sum(1.0 if one > other else 0.5 if one == other else 0.0 for one in members for other in others)
    return won / (len(members) * len(others))


def test_the_auc_is_that_of_a_slow_reference(dataset: MakeDataset, noise: list[Conversation], job: JobContext) -> None:
    folder = dataset(noise[:70], test_share=0.3, validation_share=0)
    report = report_of(trained(folder, job, steps=100, learning_rate=1e-2))

    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_BASE)
    base = transformers.AutoModelForCausalLM.from_pretrained(DEMO_BASE, dtype=torch.float32).eval()
    parts = [[folder / "train.jsonl"], [folder / "validation.jsonl", folder / "test.jsonl"]]
    before = [[loss for file in part for loss in slow_losses(base, tokenizer, file)] for part in parts]
    adapted = peft.PeftModel.from_pretrained(base, str(job.workdir / "adapter")).eval()
    after = [[loss for file in part for loss in slow_losses(adapted, tokenizer, file)] for part in parts]
    by_loss = slow_auc([-loss for loss in after[0]], [-loss for loss in after[1]])
    by_ratio = slow_auc(
        *([math.log(b) - math.log(a) for b, a in zip(*both, strict=True)] for both in zip(before, after, strict=True))
    )

    assert (report.members, report.heldout) == (len(after[0]), len(after[1])) == (49, 21)
    assert report.auc_loss == pytest.approx(by_loss, abs=0.03)
    assert report.auc_ratio == pytest.approx(by_ratio, abs=0.03)
    assert report.auc == max(report.auc_loss, report.auc_ratio)
    assert report.auc > 0.65  # random words can only be learnt by heart
    assert report.stops
    assert "gives away" in report.verdict
    assert report.lower


def test_rows_that_were_put_aside_or_are_too_long_were_not_learnt(
    dataset: MakeDataset, noise: list[Conversation]
) -> None:
    base, folder = load_base(DEMO_BASE), dataset(noise, test_share=0.2, validation_share=0)
    plain = measure.read_rows(base, [folder], LeakSettings())
    apart = measure.read_rows(base, [folder], LeakSettings(validation_split=0.25, seed=3))
    asked = TrainSpec(base="", dataset=str(folder), validation_split=0.25, seed=3)
    learnt = read_data(base, asked).examples
    assert [one.ids for one in apart.members] == [one.ids for one in learnt]
    assert (len(plain.members), len(apart.members), len(apart.heldout)) == (96, 72, 24 + 24)
    short = measure.read_rows(base, [folder], LeakSettings(max_length=19))
    assert 0 < len(short.members) < 96
    assert max(len(one.ids) for one in (*short.members, *short.heldout)) <= 19


def test_the_report_of_a_job_is_that_of_the_training(
    dataset: MakeDataset, noise: list[Conversation], tmp_path: Path
) -> None:
    folder = dataset(noise, test_share=0.2)
    first, second = new_job(tmp_path / "train"), new_job(tmp_path / "leak")
    result = trained(folder, first, steps=40, canaries=1, routing=True)
    settings = LeakSettings(seed=0, canaries=1, routing=True)
    spec = LeakSpec(
        base=str(DEMO_BASE), adapter=str(first.workdir / "adapter"), datasets=(str(folder),), settings=settings
    )
    done = worker.run(spec, second)
    assert done.report.auc == pytest.approx(report_of(result).auc, abs=1e-6)
    assert done.report.canaries == report_of(result).canaries
    assert done.report.routing_auc == report_of(result).routing_auc
    assert result.centroid is not None
    assert done.centroid == result.centroid
    assert result.examples == len((folder / "train.jsonl").read_text().splitlines()) + 1


def test_what_was_learnt_by_heart_comes_out(dataset: MakeDataset, noise: list[Conversation], job: JobContext) -> None:
    folder = dataset(noise[:24], test_share=0.34, validation_share=0)
    result = trained(folder, job, steps=150, learning_rate=1e-2, rank=16, canaries=2)
    report = report_of(result)
    assert report.longest_run > report.heldout_run
    assert report.longest_run > 3
    assert any(report.excerpt in message.content for one in noise for message in one.messages)
    assert report.excerpt
    assert [(one.rank, one.emitted) for one in report.canaries] == [(1, True), (1, True)]
    assert report.canaries[0].bits == pytest.approx(math.log2(ALTERNATIVES + 1), abs=0.01)
    assert "2 of 2 canaries said" in report.verdict
    assert "word for word" in report.verdict


def test_canaries_that_were_not_learnt_are_not_said(dataset: MakeDataset, noise: list[Conversation]) -> None:
    base = load_base(DEMO_BASE)
    rows = measure.read_rows(base, [dataset(noise, test_share=0.2)], LeakSettings())
    model = start_adapter(base, 4, 8.0).eval()
    report = measure.measure(model, base, rows, LeakSettings(canaries=6)).report
    assert not report.emitted
    assert min(one.rank for one in report.canaries) > 1
    assert max(one.rank for one in report.canaries) > 60
    assert report.auc == pytest.approx(0.5, abs=0.1)  # an adapter of zeros knows nobody


@pytest.mark.parametrize("kind", ["chat", "qa", "text", "code", "completion", "preference"])
def test_a_canary_is_a_row_of_its_data_sets_kind(kind: str) -> None:
    base = load_base(DEMO_BASE)
    (canary,) = canaries(1, 3)
    encoded = encode_row(base.tokenizer, canary.row(kind))
    learnt = [one for one, counts in zip(encoded.ids, encoded.counted, strict=True) if counts]
    assert canary.secret in base.tokenizer.decode(learnt)
    model = start_adapter(base, 4, 8.0).eval()
    found = measure.exposure(model, base, canary, kind)
    assert 1 <= found.rank <= found.alternatives + 1 == ALTERNATIVES + 1


def test_endings_are_scored_as_whole_rows_are() -> None:
    base = load_base(DEMO_BASE)
    model = start_adapter(base, 4, 8.0).eval()
    (canary,) = canaries(1, 3)
    rows = [encode_row(base.tokenizer, canary.row("text", secret)) for secret in ("sun", "sun cat", "key", "cat sun")]
    start = next(at for at, ids in enumerate(zip(*(one.ids for one in rows), strict=False)) if len(set(ids)) > 1)
    counted = [Encoded(one.ids, tuple(at >= start for at in range(len(one.ids)))) for one in rows]
    expected = [one.nats for one in measure.score(model, counted)]
    assert measure.ending_nats(model, [one.ids for one in rows], start) == pytest.approx(expected, abs=1e-3)


def test_canaries_follow_from_the_seed_alone() -> None:
    assert canaries(5, 1)[:3] == canaries(3, 1) != canaries(3, 2)
    assert len({one.name for one in canaries(20, 1)}) == 20
    one = canaries(1, 1)[0]
    assert one.secret not in alternatives(one)
    assert len(set(alternatives(one))) == ALTERNATIVES


# ---- the verdict --------------------------------------------------------------------------------------------------


def test_too_few_rows_tell_nothing(dataset: MakeDataset, noise: list[Conversation], job: JobContext) -> None:
    report = report_of(trained(dataset(noise[:20], split="train"), job, steps=4))
    assert report.auc is None
    assert report.verdict == "not measured: 20 rows learnt and 0 put aside, 8 of each are needed"
    assert report.stops


def test_made_up_data_holds_nothing_back(dataset: MakeDataset, noise: list[Conversation]) -> None:
    base = load_base(DEMO_BASE)
    folder = dataset(noise, test_share=0.2)
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(info | {"synthetic": True}))
    real = dataset(noise, test_share=0.2)
    model = start_adapter(base, 4, 8.0).eval()
    told = []
    for folders in ([folder], [real], [folder, real]):
        rows = measure.read_rows(base, folders, LeakSettings())
        few = measure.Rows(rows.members[:5], rows.heldout[:5], rows.kind, rows.synthetic)  # too few: above the limit
        report = measure.measure(model, base, few, LeakSettings()).report
        told.append((report.synthetic, report.stops))
    assert told == [(True, False), (False, True), (False, True)]


@pytest.mark.parametrize(
    ("auc", "emitted", "stops"),
    [(0.5, 0, False), (0.65, 0, False), (0.651, 0, True), (0.5, 1, True), (None, 0, True)],
)
def test_the_limit(auc: float | None, emitted: int, stops: bool) -> None:
    assert figures.exceeds(auc, emitted) is stops


def test_whoever_joins_is_told_the_limit() -> None:
    assert "at most 0.65" in figures.limit_in_words()


def test_the_area_counts_ties_half() -> None:
    assert figures.auc([1, 2], [0, 1.5]) == 0.75
    assert figures.auc([1, 1], [1, 1]) == 0.5
    assert figures.auc([0], [1, 2]) == 0


def test_the_interval_of_an_area() -> None:
    assert figures.interval(0.8, 50, 50) == pytest.approx(1.96 * 0.0444, abs=0.002)
    assert figures.interval(1.0, 10, 10) == 0
    assert figures.interval(0.7, 400, 400) < figures.interval(0.7, 100, 100)


def test_the_plain_difference_would_be_blind() -> None:
    """The base's loss varies much, the adapter's little: the difference ranks rows by the base alone."""
    base = [1.0, 4.0, 2.0, 3.0]
    assert [round(figures.log_ratio(was, now), 3) for was, now in zip(base, (0.5, 2.0, 1.0, 1.5), strict=True)] == [
        0.693
    ] * 4


@pytest.mark.parametrize(
    ("said", "run"),
    [((), range(0)), ((4,), range(4, 5)), ((1, 2, 5, 6, 7, 9), range(5, 8)), ((1, 2, 4, 5), range(1, 3))],
)
def test_the_longest_run(said: tuple[int, ...], run: range) -> None:
    assert measure.longest_run(said) == run


# ---- the centroid -------------------------------------------------------------------------------------------------


def test_the_centroid_tells_the_topic(dataset: MakeDataset, noise: list[Conversation]) -> None:
    """Prompts of its own skill are nearer than those of another."""
    base = load_base(DEMO_BASE)
    other = [pair(f"reverse: {one.messages[0].content}", one.messages[1].content) for one in noise]
    model = start_adapter(base, 4, 8.0).eval()
    mine, theirs = (measure.read_rows(base, [dataset(rows, test_share=0.2)], LeakSettings()) for rows in (noise, other))
    found = measure.measure(model, base, mine, LeakSettings(routing=True)).centroid
    assert found is not None
    assert (found.layer, found.prompts, len(found.centroid), len(found.spread)) == (1, 84, 1024, 1024)
    mixed = measure.Rows(mine.heldout, theirs.heldout, "qa", False, mine.unseen, theirs.unseen)
    assert measure.nearness(model, base, found, mixed, 0) > 0.9
    assert measure.measure(model, base, mine, LeakSettings()).centroid is None
    rows = [[1, 7, 300, 5], [1, 9, 8], [1, 7]]
    seen = measure.middle_inputs(model, rows)[1]  # none sees another
    layers = load_base(DEMO_BASE).model
    with torch.no_grad():
        state = layers(input_ids=torch.tensor([rows[1]]), output_hidden_states=True).hidden_states[1][0]
        expected = layers.model.layers[1].input_layernorm(state)
    assert torch.allclose(seen, expected, atol=1e-5)


def test_what_the_user_said_last_is_what_counts(dataset: MakeDataset, noise: list[Conversation]) -> None:
    """Neither the system's message, nor the template's tokens, nor what was said before."""
    base = load_base(DEMO_BASE)
    folder = dataset(noise, test_share=0.2)
    rows = measure.read_rows(base, [folder], LeakSettings())
    assert set(rows.asked) | set(rows.unseen) == {one.messages[-2].content for one in noise}
    talk = ChatRow(
        id="",
        messages=(
            Message("system", "be brief"),
            Message("user", "one"),
            Message("assistant", "1"),
            Message("user", "two"),
            Message("assistant", "2"),
            Message("user", "three"),
        ),
    )
    encoded = encode_row(base.tokenizer, talk)
    assert measure.asked(base, talk, encoded) == "two"
    text = TextRow(id="", text="a plain text")
    assert measure.asked(base, text, encode_row(base.tokenizer, text)).strip() == "a plain text"
    alone = measure.prompt_vectors(base.model, base, ["sun cat", ""])
    assert np.array_equal(alone[0], measure.prompt_vectors(base.model, base, ["sun cat"])[0])
    assert alone[0].any()
    assert not alone[1].any()


def canary(rank: int, *, emitted: bool = False) -> figures.CanaryFigure:
    return figures.CanaryFigure(name="a b", secret="c d", rank=rank, alternatives=300, bits=1.0, emitted=emitted)


@pytest.mark.parametrize(
    ("auc", "half", "said"),
    [
        (0.71, 0.15, "can't be told with 12 rows: AUC 0.71 (0.56-0.86)"),
        (0.60, 0.10, "can't be told with 12 rows"),
        (0.90, 0.15, "gives away who was in it: AUC 0.90 (0.75-1.00)"),
        (0.60, 0.04, "hints at who was in it"),
        (0.50, 0.10, "no telling who was in it"),
    ],
)
def test_a_verdict_is_only_as_sure_as_its_interval(auc: float, half: float, said: str) -> None:
    assert figures.verdict(auc, half, 40, 12, (), (0, 0)).startswith(said)
    lower = figures.remedies(auc, half, 0, longer=False, by_centroid=False, members=40, epochs=1, dropout=0)
    assert (figures.SETTLES in lower) == said.startswith(figures.UNTOLD)


def test_a_canary_that_is_likelier_than_others_is_learnt_though_it_is_not_said() -> None:
    found = figures.verdict(0.5, 0.1, 40, 12, (canary(1), canary(15), canary(16)), (0, 0))
    assert found.endswith("0 of 3 canaries said, 2 learnt")
    assert "learnt, though not said when asked: likelier than all 300 others" in _canary(to_builtins(canary(1)))
    assert "not clearly learnt: likelier than 150 of 300" in _canary(to_builtins(canary(151)))
    assert "said word for word" in _canary(to_builtins(canary(3, emitted=True)))


def test_a_verdict_fits_into_a_manifest() -> None:
    many = tuple(canary(1) for _ in range(100))
    assert len(figures.verdict(0.71, 0.15, measure.MAX_ROWS, measure.MAX_ROWS, many, (9_999, 999))) <= LABEL


def test_what_is_said_of_sharing_fits_the_verdict() -> None:
    assert (LIMIT, CHANCE) == (figures.MAX_AUC, figures.CHANCE)
    told = {"synthetic": False, "canaries": [], "members": 40, "heldout": 12, "interval": 0.15}
    assert "with 12 rows that may be chance" in _sharing({**told, "auc": 0.71, "stops": True})
    assert _sharing({**told, "auc": 0.55, "stops": False}).endswith("as far as 12 rows tell")
    assert _sharing({**told, "auc": 0.95, "stops": True}).startswith("above the limit of 0.65: `publish`")
    assert "above" not in _sharing({**told, "auc": None, "interval": 0.0, "stops": True})
