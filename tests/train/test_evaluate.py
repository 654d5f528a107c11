"""What an evaluation says: figures, paired tests, answers side by side, and its page."""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from orchd.importers.conversation import Conversation, Message, Passage
from orchd.importers.source import ImportLog
from orchd.jobs.context import JobContext
from orchd.lm.base import load_base
from orchd.lm.significance import Sums
from orchd.train import evaluate, measures
from orchd.train.answers_page import page
from orchd.train.datasets.build import Care, Parts, build
from orchd.train.datasets.store import ChatRow, TextRow, keep_marks
from orchd.train.score import ANSWERED_TOKENS, Exam, Mark, Question, make_exam
from orchd.train.specs import Answered, Comparison, EvaluateResult, EvaluateSpec, EvaluationRow, Measure

from .conftest import DEMO_BASE, MakeDataset, new_job


def exam_of(wanted: list[str]) -> Exam:
    questions = tuple(Question((1, 2), f"q{at}", text, 3, at) for at, text in enumerate(wanted))
    return Exam((), tuple(range(len(wanted))), questions, len(wanted))


def mark_of(answers: list[str], nats: list[float] | None = None) -> Mark:
    ones = np.full(len(answers), 2.0)
    losses = np.array(nats if nats is not None else [1.0] * len(answers))
    return Mark(Sums(losses, ones), Sums(ones / 2, ones), tuple(answers), len(answers))


def value(found: tuple[Measure, ...], metric: str) -> float:
    return next(one.value for one in found if one.metric == metric)


def test_free_text_has_chrf_and_rouge_and_a_perplexity() -> None:
    wanted = [f"answer number {at}" for at in range(12)]
    found = measures.measure(mark_of([*wanted[:6], *["nothing"] * 6], [0.5] * 6 + [1.5] * 6), exam_of(wanted))
    assert [one.metric for one in found] == [
        "loss", "perplexity", "token_accuracy", "exact_match", "chrf", "rouge_l"]  # fmt: skip
    loss, perplexity, *_ = found
    assert loss.value == 0.5
    assert perplexity.value == pytest.approx(math.exp(0.5))
    assert loss.low is not None
    assert loss.high is not None
    assert perplexity.high == pytest.approx(math.exp(loss.high))
    assert value(found, "exact_match") == 0.5
    assert 0.5 < value(found, "chrf") < 0.75
    assert value(found, "token_accuracy") == 0.5


def test_labels_have_precision_recall_and_f1_instead() -> None:
    wanted = ["yes"] * 9 + ["no"] * 3
    exam, always = exam_of(wanted), mark_of(["yes"] * 12)
    found = measures.measure(always, exam)
    assert value(found, "exact_match") == 0.75
    assert (value(found, "precision"), value(found, "recall")) == (0.375, 0.5)  # scikit-learn's macro figures
    assert value(found, "f1") == pytest.approx(0.428571, abs=1e-6)
    assert {one.metric for one in found}.isdisjoint({"chrf", "rouge_l"})
    low = next(one.low for one in found if one.metric == "f1")
    assert low is not None
    assert low < 0.428
    assert [one.label for one in measures.label_rows(always, exam)] == ["no", "yes"]


def test_a_paired_test_sees_what_two_intervals_would_not() -> None:
    """Each example is a little better, while examples differ far more than models do."""
    wanted = [f"text {at}" for at in range(20)]
    hard = [float(at) for at in range(20)]
    one, other = mark_of(wanted, [nats - 0.1 for nats in hard]), mark_of(wanted, hard)
    loss, tokens, exact, *_ = measures.compare(one, other, exam_of(wanted), adapter="a", other=None)
    assert loss.verdict == "better"
    assert loss.p < 0.001
    assert (exact.metric, exact.verdict, exact.p) == ("exact_match", "not told apart", 1.0)
    assert tokens.against_value == 0.5
    (back, *_) = measures.compare(other, one, exam_of(wanted), adapter=None, other="a")
    assert back.verdict == "worse"


def test_f1_is_tested_by_exchanging_answers() -> None:
    wanted = ["yes", "no"] * 10
    right, wrong = mark_of(wanted), mark_of(["yes"] * 20)
    found = {one.metric: one for one in measures.compare(right, wrong, exam_of(wanted), adapter="a", other=None)}
    assert found["f1"].verdict == "better"
    assert found["f1"].value == 1
    same = {one.metric: one for one in measures.compare(wrong, wrong, exam_of(wanted), adapter="a", other=None)}
    assert same["f1"].p == 1


def test_pieces_of_one_document_are_one_unit_and_long_conversations_are_left_out() -> None:
    base = load_base(DEMO_BASE)
    long = " ".join(["sun"] * 700)
    rows = [
        TextRow(id="a", text=long, group="book"),
        TextRow(id="b", text="moon and sun", group="book"),
        TextRow(id="c", text="another text"),
        ChatRow(id="d", messages=(Message("user", long), Message("assistant", "sun"))),
    ]
    exam = make_exam(base, rows)
    assert exam.examples == 3  # 700 words do not fit the demo base's 512 tokens
    assert exam.units == (0, 0, 0, 1)
    assert exam.questions == ()


def test_no_more_is_asked_than_answering_may_cost() -> None:
    base = load_base(DEMO_BASE)
    answer = " ".join(["sun"] * 99)
    rows = [
        ChatRow(id=str(at), messages=(Message("user", f"copy: {at}"), Message("assistant", answer))) for at in range(60)
    ]
    exam = make_exam(base, rows)
    assert exam.examples == 60
    assert len(exam.questions) == ANSWERED_TOKENS // 100
    assert [one.unit for one in exam.questions] == sorted(one.unit for one in exam.questions)
    assert exam.questions == make_exam(base, rows).questions
    assert exam.questions[0].asked.startswith("copy: ")


def test_an_evaluation_of_the_base_has_answers_speed_and_memory(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext
) -> None:
    asked = EvaluateSpec(base=str(DEMO_BASE), adapters=(), dataset=str(dataset(reversals)))
    result = evaluate.run(asked, job)
    (row,) = result.rows
    assert (result.split, result.asked, row.examples) == ("test", 12, 12)
    assert len(result.answers) == 12
    assert all(len(one.answers) == 1 for one in result.answers)
    assert result.answers[0].question.startswith("reverse: ")
    assert sorted(result.answers[0].wanted.split()) == sorted(result.answers[0].question.split()[1:])
    assert row.first_token_ms is not None
    assert row.first_token_ms > 0
    assert row.tokens_s is not None
    assert row.tokens_s > 0
    assert row.memory > 50_000_000
    assert row.loss_interval is not None
    assert 0 < row.loss_interval < row.loss


def test_what_the_base_alone_got_is_kept(
    dataset: MakeDataset, reversals: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset(reversals)
    asked = EvaluateSpec(base=str(DEMO_BASE), adapters=(), dataset=str(folder), speed=False, fingerprint="bse_x")
    first = evaluate.run(asked, new_job(tmp_path / "one"))
    keep_marks(folder, "bse_x", "test", first.marks)
    with monkeypatch.context() as changed:
        changed.setattr(evaluate, "mark", None)  # nothing is scored
        again = evaluate.run(asked, new_job(tmp_path / "two"))
    assert again.marks == ""
    for one in (first, again):
        assert (one.asked, one.answers) == (12, first.answers)
    (before,), (after,) = first.rows, again.rows
    assert msgspec.structs.replace(after, memory=0) == msgspec.structs.replace(before, memory=0)
    rows = (folder / "test.jsonl").read_text()
    (folder / "test.jsonl").write_text(rows.replace("reverse", "rotate"))
    other = evaluate.run(asked, new_job(tmp_path / "three"))
    assert other.marks
    assert other.rows[0].loss != before.loss
    assert evaluate.run(msgspec.structs.replace(asked, fingerprint=""), new_job(tmp_path / "four")).marks == ""


def test_what_nobody_asks_for_is_not_measured(
    dataset: MakeDataset, reversals: list[Conversation], job: JobContext
) -> None:
    asked = EvaluateSpec(base=str(DEMO_BASE), adapters=(), dataset=str(dataset(reversals)), speed=False, answers=False)
    result = evaluate.run(asked, job)
    (row,) = result.rows
    assert (row.first_token_ms, row.tokens_s, row.exact_match) == (None, None, None)
    assert (result.answers, result.asked, row.examples) == ((), 0, 12)
    assert row.loss > 0


def test_plain_text_is_measured_without_answers(tmp_path: Path, job: JobContext) -> None:
    passages = [Passage(id=str(at), text=f"Number {at} of the texts about suns.") for at in range(30)]
    folder = tmp_path / "texts"
    build(passages, ImportLog(kind="text"), folder, Parts(), "test", Care(drop_near=False))
    (row,) = evaluate.run(EvaluateSpec(base=str(DEMO_BASE), adapters=(), dataset=str(folder)), job).rows
    assert row.exact_match is None
    assert [one.metric for one in row.measures] == ["loss", "perplexity", "token_accuracy"]
    assert row.tokens_s is not None


def test_a_row_of_a_chat_asks_with_the_last_message_before_the_answer() -> None:
    base = load_base(DEMO_BASE)
    messages = (Message("user", "first"), Message("assistant", "one"), Message("user", "second"),
                Message("assistant", "two"), Message("user", "unanswered"))  # fmt: skip
    (question,) = make_exam(base, [ChatRow(id="x", messages=messages)]).questions
    assert (question.asked, question.answer) == ("second", "two")


# ---- the page --------------------------------------------------------------------------------------------------


def result_of(question: str, name: str = "mine") -> EvaluateResult:
    loss = Measure(metric="loss", value=1.25, low=1.0, high=1.5, examples=12)
    plain = {
        "loss": 1.25,
        "exact_match": 0.5,
        "examples": 12,
        "first_token_ms": 3.0,
        "tokens_s": 100.0,
        "memory": 10**8,
    }
    rows = (
        EvaluationRow(id=None, measures=(loss,), **plain),
        EvaluationRow(id="x", name=name, measures=(loss,), **plain),
    )
    beside = Comparison(
        adapter="x", against=None, metric="loss", value=1.25, against_value=2.5, low=-1.5, high=-1.0, p=0.0002,
        examples=12, verdict="better",
    )  # fmt: skip
    answers = (Answered(question=question, wanted="right", answers=("wrong", "right")),)
    return EvaluateResult(rows=rows, comparisons=(beside,), answers=answers, asked=12)


def test_the_page_shows_answers_side_by_side_and_fetches_nothing() -> None:
    shown = page("evaluate mine", result_of("What is it?"))
    assert "What is it?" in shown
    assert "<td>wrong</td><td class=right>right</td>" in shown
    assert "1.000 to 1.500" in shown
    assert "&lt; .001" in shown
    assert '<td class="better">better</td>' in shown
    assert not re.search(r"<script|<link|https?:|@import|url\(", shown)


def test_nothing_that_a_model_or_a_peer_wrote_is_read_as_html() -> None:
    shown = page("<b>title</b>", result_of("<script>alert(1)</script>", name="<img src=x>"))
    assert "<script" not in shown
    assert "<img" not in shown
    assert "<b>title" not in shown
    assert "&lt;script&gt;" in shown
