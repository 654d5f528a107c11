"""One page about an evaluation: every figure, what the paired tests say, and the answers side by side. Plain HTML,
nothing is fetched and no script runs. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from orchd.train.report import STYLE
from orchd.train.specs import Answered, Comparison, EvaluateResult, EvaluationRow, Measure

METRICS: Final = {
    "loss": "loss, nats a token",
    "perplexity": "perplexity",
    "token_accuracy": "tokens right",
    "exact_match": "exact match",
    "preferred": "better answer likelier",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1 over labels",
}
PLAIN: Final = frozenset({"loss", "perplexity"})
OWN_STYLE: Final = """
body{max-width:1100px}.wide{overflow-x:auto}
.wide td,.wide th{padding:.25em 1.2em .25em 0;text-align:left;vertical-align:top}
th{font-weight:600}small{color:#59636e}.better{color:#1a7f37}.worse{color:#d1242f}
.answers{width:100%;table-layout:fixed;margin:.9em 0}
.answers th{padding:.3em .7em;font-size:.85em;text-align:left;color:#59636e}
.answers td,.answers td:first-child{padding:.45em .7em;border:1px solid #d1d9e0;color:inherit}
.answers td{white-space:pre-wrap;overflow-wrap:anywhere}
.answers td.asked{border:0;padding:.2em 0;font-weight:600}.answers td.right{background:#dafbe1}
.answers tr:first-child td{border:0}
@media(prefers-color-scheme:dark){.answers td,.answers td:first-child{border-color:#3d444d}
.answers td.right{background:#12361f}
.better{color:#3fb950}.worse{color:#f85149}}"""


def page(title: str, result: EvaluateResult) -> str:
    """The whole page."""
    names = [_name(row) for row in result.rows]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{_about(result)}</p>",
        "<h2>Figures</h2>",
        _figures(result.rows, names),
        *([] if not result.comparisons else ["<h2>Beside each other</h2>", _comparisons(result)]),
        *([] if not any(row.labels for row in result.rows) else ["<h2>By label</h2>", _labels(result.rows, names)]),
        *([] if not result.answers else [_answers_head(result), *(_card(one, names) for one in result.answers)]),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{STYLE}{OWN_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _name(row: EvaluationRow) -> str:
    return row.name or row.id or "base"


def _about(result: EvaluateResult) -> str:
    asked = f", {result.asked} of them asked for an answer" if result.asked else ""
    examples = result.rows[0].examples if result.rows else 0
    return f"{examples} rows of the {escape(result.split)} part{asked}. Small figures are 95 % intervals."


def _figures(rows: Sequence[EvaluationRow], names: Sequence[str]) -> str:
    by_row = [{one.metric: one for one in row.measures} for row in rows]
    lines = [
        [f"<th>{label}</th>", *(_cell(found.get(metric)) for found in by_row)]
        for metric, label in METRICS.items()
        if any(metric in found for found in by_row)
    ]
    if any(row.first_token_ms is not None for row in rows):
        lines.append(["<th>first token</th>", *(_td(row.first_token_ms, "{:.1f} ms") for row in rows)])
        lines.append(["<th>tokens a second</th>", *(_td(row.tokens_s, "{:,.1f}") for row in rows)])
    if any(row.forgetting is not None for row in rows):
        lines.append(["<th>loss on the base's own answers</th>", *(_forgot(row) for row in rows)])
    lines.append(["<th>memory so far</th>", *(_td(row.memory / 1e6, "{:,.0f} MB") for row in rows)])
    return _table(["", *names], lines)


def _cell(one: Measure | None) -> str:
    if one is None:
        return "<td></td>"
    between = (
        "" if one.low is None else f"<br><small>{_text(one.metric, one.low)} to {_text(one.metric, one.high)}</small>"
    )
    return f"<td>{_text(one.metric, one.value)}{between}</td>"


def _forgot(row: EvaluationRow) -> str:
    told = row.forgetting
    if told is None:
        return "<td></td>"
    rise = f"{told.rise:+.3f} against the base's ({told.low:+.3f} to {told.high:+.3f}), divergence {told.kl:.3f}"
    return f"<td>{told.loss:.3f}<br><small>{rise}</small></td>"


def _td(value: float | None, form: str) -> str:
    return f"<td>{'' if value is None else form.format(value)}</td>"


def _text(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    if metric in PLAIN:
        if abs(value) < 1000:
            return f"{value:.3f}"
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3g}"
    return f"{100 * value:.1f} %"


def _comparisons(result: EvaluateResult) -> str:
    names = {row.id: _name(row) for row in result.rows}
    return _table(
        ["adapter", "beside", "figure", "its", "the other's", "difference", "p", "verdict"],
        [_comparison(one, names) for one in result.comparisons],
    )


def _comparison(one: Comparison, names: dict[str | None, str]) -> list[str]:
    between = "" if one.low is None else f"{_text(one.metric, one.low)} to {_text(one.metric, one.high)}"
    texts = [names[one.adapter], names[one.against], METRICS[one.metric], _text(one.metric, one.value)]
    texts += [_text(one.metric, one.against_value), between, "< .001" if one.p < 0.001 else f"{one.p:.3f}"]
    cells = [f"<td>{escape(text)}</td>" for text in texts]
    return [*cells, f'<td class="{one.verdict.partition(" ")[0]}">{one.verdict}</td>']


def _labels(rows: Sequence[EvaluationRow], names: Sequence[str]) -> str:
    return _table(
        ["model", "label", "precision", "recall", "F1", "examples"],
        [
            [
                f"<td>{escape(name)}</td><td>{escape(one.label)}</td>",
                *(_td(100 * share, "{:.1f} %") for share in (one.precision, one.recall, one.f1)),
                f"<td>{one.examples}</td>",
            ]
            for row, name in zip(rows, names, strict=True)
            for one in row.labels
        ],
    )


def _answers_head(result: EvaluateResult) -> str:
    told = f"{len(result.answers)} of {result.asked}, drawn by chance. Green is word for word right."
    return f"<h2>Answers</h2><p>{told}</p>"


def _card(one: Answered, names: Sequence[str]) -> str:
    """A question, what was wanted, and everybody's answer below each name."""
    columns = len(names) + 1
    heads = "".join(f"<th>{escape(name)}</th>" for name in ("wanted", *names))
    answers = "".join(
        f"<td{' class=right' if answer == one.wanted else ''}>{escape(answer) or '<small>(nothing)</small>'}</td>"
        for answer in one.answers
    )
    return (
        f'<table class="answers"><tr><td class="asked" colspan="{columns}">{escape(one.question)}</td></tr>'
        f"<tr>{heads}</tr><tr><td>{escape(one.wanted)}</td>{answers}</tr></table>"
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
