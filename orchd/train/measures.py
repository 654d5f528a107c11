"""From marks to figures: of one model, and of two beside each other on the same examples. numpy, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from orchd.lm.significance import FEWEST, FLIPS, Interval, Sums, interval, paired, share_interval
from orchd.train.answers import LabelScore, chrf, label_scores, labels_of, rouge_l
from orchd.train.specs import Comparison, Measure

if TYPE_CHECKING:
    from orchd.train.score import Exam, Mark

LESS_IS_BETTER: Final = frozenset({"loss"})
SIGNIFICANT: Final = 0.05
SEED: Final = 0
RESAMPLES: Final = 1_000
"""Of the examples, for the interval of what is no mean over them: precision, recall and F1 of labels."""


def measure(mark: Mark, exam: Exam) -> tuple[Measure, ...]:
    """Every figure of one model."""
    found = []
    for metric, sums in _sums(mark, exam).items():
        bounds = _above_nothing(interval(sums)) if metric in LESS_IS_BETTER else share_interval(sums)
        count = _examples(metric, mark)
        found.append(_measure(metric, sums.ratio, bounds, count))
        if metric == "loss":
            found.append(_measure("perplexity", _exp(sums.ratio), bounds and Interval(*map(_exp, bounds)), count))
    return (*found, *_label_measures(mark, exam))


def compare(mark: Mark, against: Mark, exam: Exam, *, adapter: str | None, other: str | None) -> tuple[Comparison, ...]:
    """Every figure of ``mark`` beside that of ``against``, with a paired test by unit."""
    found = []
    theirs = _sums(against, exam)
    for metric, sums in _sums(mark, exam).items():
        differences = Sums(sums.values - theirs[metric].values, sums.weights)
        p, bounds = paired(differences, SEED)
        if bounds is not None and metric not in LESS_IS_BETTER:
            bounds = Interval(max(-1.0, bounds.low), min(1.0, bounds.high))
        count = _examples(metric, mark)
        found.append(
            _comparison(
                metric,
                sums.ratio,
                theirs[metric].ratio,
                bounds,
                p,
                count,
                differences.units,
                adapter,
                other,
            )
        )
    labels = _labels(exam) if mark.answers and against.answers else ()
    if labels:
        value, against_value = _macro(labels, mark.answers, exam)[2], _macro(labels, against.answers, exam)[2]
        units = len({one.unit for one in exam.questions})
        p = _exchanged(labels, mark.answers, against.answers, exam)
        found.append(_comparison("f1", value, against_value, None, p, len(mark.answers), units, adapter, other))
    return tuple(found)


def label_rows(mark: Mark, exam: Exam) -> tuple[LabelScore, ...]:
    """By label, where the answers are labels."""
    labels = _labels(exam) if mark.answers else ()
    return label_scores(labels, mark.answers, _wanted(exam)) if labels else ()


def _sums(mark: Mark, exam: Exam) -> dict[str, Sums]:
    """By metric, what its ratio is of."""
    found = {"loss": mark.losses, "token_accuracy": mark.hits}
    if mark.preferred is not None:
        found["preferred"] = mark.preferred
    if not mark.answers:
        return found
    pairs = list(zip(mark.answers, _wanted(exam), strict=True))
    units, ones = [one.unit for one in exam.questions], [1.0] * len(pairs)
    found["exact_match"] = exam.sums(units, (float(one == other) for one, other in pairs), ones)
    if not _labels(exam):
        found["chrf"] = exam.sums(units, (chrf(*pair) for pair in pairs), ones)
        found["rouge_l"] = exam.sums(units, (rouge_l(*pair) for pair in pairs), ones)
    return found


def _examples(metric: str, mark: Mark) -> int:
    if metric == "preferred":
        return 0 if mark.preferred is None else int(mark.preferred.weights.sum())
    return mark.examples if metric in ("loss", "token_accuracy") else len(mark.answers)


def _wanted(exam: Exam) -> list[str]:
    return [one.answer for one in exam.questions]


def _labels(exam: Exam) -> tuple[str, ...]:
    return labels_of(_wanted(exam))


def _measure(metric: str, value: float, bounds: Interval | None, examples: int) -> Measure:
    low, high = bounds or (None, None)
    return Measure(metric=metric, value=value, low=low, high=high, examples=examples)


def _comparison(
    metric: str,
    value: float,
    against_value: float,
    bounds: Interval | None,
    p: float,
    examples: int,
    units: int,
    adapter: str | None,
    other: str | None,
) -> Comparison:
    low, high = bounds or (None, None)
    better = (value < against_value) if metric in LESS_IS_BETTER else (value > against_value)
    verdict: Literal["better", "worse", "not told apart", "too few rows"] = "not told apart"
    if units < FEWEST:
        verdict = "too few rows"
    elif p < SIGNIFICANT:
        verdict = "better" if better else "worse"
    return Comparison(
        adapter=adapter,
        against=other,
        metric=metric,
        value=value,
        against_value=against_value,
        low=low,
        high=high,
        p=p,
        examples=examples,
        units=units,
        verdict=verdict,
    )


def _above_nothing(bounds: Interval | None) -> Interval | None:
    return bounds and Interval(max(0.0, bounds.low), bounds.high)


def _exp(nats: float) -> float:
    """e to the nats; a loss that high that it has no exponential stands for a perplexity beyond any."""
    return math.exp(min(nats, 700.0))


# ---- precision, recall and F1: no means over the examples ----------------------------------------------------


def _label_measures(mark: Mark, exam: Exam) -> list[Measure]:
    """Means over the labels, with the middle 95 % of what other draws of the examples would have given."""
    labels = _labels(exam) if mark.answers else ()
    if not labels:
        return []
    rng, said, meant = np.random.default_rng(SEED), *_numbered(labels, mark.answers, exam)
    drawn = np.array(
        [_macro_of(said[at], meant[at], len(labels)) for at in rng.integers(0, len(said), (RESAMPLES, len(said)))]
    )
    edges = np.percentile(drawn, (2.5, 97.5), axis=0)
    values = _macro(labels, mark.answers, exam)
    bounds = [Interval(float(low), float(high)) if low < high else None for low, high in edges.T]
    return [
        _measure(metric, value, bounds[at], len(said))
        for at, (metric, value) in enumerate(zip(("precision", "recall", "f1"), values, strict=True))
    ]


def _exchanged(labels: Sequence[str], one: Sequence[str], other: Sequence[str], exam: Exam) -> float:
    """The share of random exchanges of the two models' answers that differ as much in F1."""
    (first, meant), (second, _) = _numbered(labels, one, exam), _numbered(labels, other, exam)
    observed = abs(_macro_of(first, meant, len(labels))[2] - _macro_of(second, meant, len(labels))[2])
    rng, beyond, tries = np.random.default_rng(SEED), 1, FLIPS // 10
    for _ in range(tries):
        swap = rng.integers(0, 2, len(meant)).astype(bool)
        a, b = np.where(swap, second, first), np.where(swap, first, second)
        difference = _macro_of(a, meant, len(labels))[2] - _macro_of(b, meant, len(labels))[2]
        beyond += abs(difference) >= observed - 1e-12
    return beyond / (tries + 1)


def _macro(labels: Sequence[str], answers: Sequence[str], exam: Exam) -> tuple[float, float, float]:
    return _macro_of(*_numbered(labels, answers, exam), len(labels))


Numbers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def _numbered(labels: Sequence[str], answers: Sequence[str], exam: Exam) -> tuple[Numbers, Numbers]:
    """Answers and wanted labels as numbers, int64 (questions,); what is no label is one more than the last."""
    number = {label: at for at, label in enumerate(labels)}
    said = np.array([number.get(one, len(labels)) for one in answers], np.int64)
    return said, np.array([number[one] for one in _wanted(exam)], np.int64)


def _macro_of(said: Numbers, meant: Numbers, labels: int) -> tuple[float, float, float]:
    """Precision, recall and F1, each the mean over the labels that are wanted."""
    right = np.bincount(meant[said == meant], minlength=labels)
    claimed = np.bincount(said, minlength=labels + 1)[:labels]
    wanted = np.bincount(meant, minlength=labels)
    there = wanted > 0
    precision = (right / np.maximum(1, claimed))[there]
    recall = (right / np.maximum(1, wanted))[there]
    f1 = (2 * right / np.maximum(1, claimed + wanted))[there]
    return float(precision.mean()), float(recall.mean()), float(f1.mean())
