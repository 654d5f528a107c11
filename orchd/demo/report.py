"""`report.html`: one page with everything in it, made from the results of one run. It loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from orchd.demo.charts import PERCENT, Line, line_chart, loss_axis
from orchd.demo.flow import flow
from orchd.demo.picture import picture
from orchd.demo.results import Answer, Check, Contribution, Entrant, Results, Round, Score

REPORT, PICTURE = "report.html", "demo.svg"


def write_report(results: Results, folder: Path) -> Path:
    """Write the page and the picture into `folder`, each whole or not at all; the path of the page."""
    for name, text in ((PICTURE, picture(results)), (REPORT, page(results))):
        unfinished = folder / f".{name}.part"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(folder / name)
    return folder / REPORT


def page(results: Results) -> str:
    """The whole document."""
    here = files("orchd.demo")
    template = Template((here / "report.html").read_text(encoding="utf-8"))
    return template.substitute(
        style=(here / "report.css").read_text(encoding="utf-8"),
        verdict=_verdict(results.ok),
        exam_size=results.last.average.exam.examples,
        steps=results.steps,
        heroes=_heroes(results),
        given=_given(results),
        knows=_knows(results),
        flow=flow(results),
        round_words=_round_words(results),
        exact_chart=_exact_chart(results),
        loss_chart=_loss_chart(results),
        rounds=_rounds(results.rounds),
        exam=_exam(results.exam),
        answers="\n".join(_answer(results, answer) for answer in results.deployment.answers),
        served=_served(results),
        refused=_refused(results),
        revoked=_revoked(results),
        left=_left(results),
        checks="\n".join(_check(check) for check in results.checks()),
        footer=_footer(results),
    )


# ---- head ----------------------------------------------------------------------------------------------------


def _verdict(ok: bool) -> str:
    if ok:
        return '<span class="verdict good">every check held</span>'
    return '<span class="verdict bad">a check did not hold</span>'


def _heroes(results: Results) -> str:
    shown = (
        ("a", "A alone", results.entrant("a-alone").exam, "knows only its half"),
        ("b", "B alone", results.entrant("b-alone").exam, "knows only the other"),
        ("average", "A and B, averaged", results.last.average.exam, f"after {len(results.rounds)} rounds"),
    )
    return "\n".join(
        f'<div class="hero {colour}"><span class="who">{who}</span><b>{_percent(exam.exact_match)}</b>'
        f"<span>{words}</span></div>"
        for colour, who, exam, words in shown
    )


# ---- who knows what ------------------------------------------------------------------------------------------


def _given(results: Results) -> str:
    cards = [
        f'<div class="given {known.node.lower()}"><b>{known.node}</b>'
        f"<p>{known.train} sentences over {len(known.words)} words, {known.heldout} more kept back</p>"
        f"<p class=note>{escape(known.example[0])} → {escape(known.example[1])}<br>"
        f"from <code>{escape(known.source)}</code></p></div>"
        for known in results.knowledge
    ]
    exam = results.last.average.exam.examples
    cards.append(
        f'<div class="given average"><b>C</b><p>no sentences to learn from</p><p class=note>only the exam: {exam} '
        "sentences with words of both halves, on which nobody trains</p></div>"
    )
    return "\n".join(cards)


def _knows(results: Results) -> str:
    a, b = results.last.contributions
    average = results.last.average
    rows = [
        ("the base, as shipped", "muted", a.base, b.base, results.entrant("base").exam),
        ("A's adapter", "a", a.own, a.other, a.exam),
        ("B's adapter", "b", b.other, b.own, b.exam),
        ("the average", "average", average.own[0], average.own[1], average.exam),
    ]
    head = ("", "A's half", "B's half", "both mixed")
    return _table(
        head,
        [
            (f'<b class="{colour}">{who}</b>', *(_meter(score, colour) for score in scores))
            for who, colour, *scores in rows
        ],
    )


def _meter(score: Score, colour: str) -> str:
    width = f"width:{100 * score.exact_match:.1f}%"
    meter = f'<span class="meter"><i style="{width}"></i></span>'
    return f'<div class="cell {colour}">{_percent(score.exact_match)}{meter}</div>'


# ---- rounds --------------------------------------------------------------------------------------------------


def _round_words(results: Results) -> str:
    base, first = results.entrant("base").exam, results.rounds[0].average.exam
    return (
        f"After round 1 the average's loss has fallen from {base.loss:.1f} to {first.loss:.1f}, and yet "
        f"{_percent(first.exact_match)} of the sentences are right: one wrong letter spoils a sentence. The rounds "
        "after it start from the average, under one learning-rate schedule over all rounds, and there it comes."
    )


def _stops(results: Results) -> list[str]:
    return ["base", *(f"round {r.number}" for r in results.rounds)]


def _exact_chart(results: Results) -> str:
    base = 100 * results.entrant("base").exam.exact_match
    lines = [
        Line(
            label="average",
            colour="average",
            strong=True,
            values=(base, *(100 * r.average.exam.exact_match for r in results.rounds)),
        ),
        *(
            Line(
                label=f"{node}'s adapter",
                colour=node.lower(),
                values=(base, *(100 * r.contributions[i].exam.exact_match for r in results.rounds)),
            )
            for i, node in enumerate("AB")
        ),
    ]
    return line_chart(lines, PERCENT, _stops(results), title="Share of the exam that is right, by round")


def _loss_chart(results: Results) -> str:
    base = results.entrant("base").exam.loss
    lines = [
        Line(
            label="average, exam",
            colour="average",
            strong=True,
            values=(base, *(r.average.exam.loss for r in results.rounds)),
        )
    ]
    for i, node in enumerate("AB"):
        mine = [r.contributions[i] for r in results.rounds]
        own = (mine[0].base.loss, *(c.own.loss for c in mine))
        other = (results.rounds[0].contributions[1 - i].base.loss, *(c.other.loss for c in mine))
        lines.append(Line(label=f"{node}, own half", colour=node.lower(), values=own))
        lines.append(Line(label=f"{node}, other half", colour=node.lower(), values=other, dashed=True))
    axis = loss_axis([value for line in lines for value in line.values if value is not None])
    return line_chart(lines, axis, _stops(results), title="Loss by round")


def _rounds(rounds: Sequence[Round]) -> str:
    losses = ("A's loss: own, other", "B's loss: own, other")
    head = ("round", *losses, "average's loss", "right", "same recipe", "distance", "seconds")
    return _table(
        head,
        [
            (
                str(r.number),
                *(_losses(contribution) for contribution in r.contributions),
                _loss(r.average.exam),
                _percent(r.average.exam.exact_match),
                "yes" if r.average.agreed else '<span class="bad">NO</span>',
                f"{max(v.relative_error for v in r.average.verifications):.0e}",
                f"{r.seconds:.0f}",
            )
            for r in rounds
        ],
        numeric=range(1, len(head)),
    )


def _losses(contribution: Contribution) -> str:
    return f"{_loss(contribution.own)}, {_loss(contribution.other)}"


# ---- exam and answers ----------------------------------------------------------------------------------------


def _exam(entrants: Iterable[Entrant]) -> str:
    rows = []
    for entrant in entrants:
        best = entrant.key == "average"
        width = f"width:{100 * entrant.exam.exact_match:.1f}%"
        rows.append(
            f"<tr{' class=best' if best else ''}><td>{escape(entrant.label)}</td>"
            f'<td class="n">{entrant.steps or "–"}</td><td class="n">{_loss(entrant.exam)}</td>'
            f'<td class="n">{_percent(entrant.exam.exact_match)}</td>'
            f'<td class="{_colour(entrant.key)}"><span class="meter"><i style="{width}"></i></span></td></tr>'
        )
    head = '<tr><th></th><th class="n">steps</th><th class="n">loss</th><th class="n">right</th><th></th></tr>'
    return f'<table class="exam"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _colour(key: str) -> str:
    return {"a": "a", "b": "b", "average": "average"}.get(key.partition("-")[0], "muted")


def _answer(results: Results, answer: Answer) -> str:
    a_words, b_words = results.words_of("A"), results.words_of("B")
    asked = " ".join(
        f'<span class="{"a" if word in a_words else "b" if word in b_words else ""}">{escape(word)}</span>'
        for word in answer.prompt.split()
    )
    given = (("a", "A", answer.a), ("b", "B", answer.b), ("average", "average", answer.average))
    lines = "".join(
        f'<dt class="{colour}">{who}</dt><dd>{_compared(text, answer.expected)}</dd>' for colour, who, text in given
    )
    return (
        f'<article class="answer"><p class="asked">{asked}</p>'
        f'<p class="right">right: {escape(answer.expected)}</p><dl>{lines}</dl></article>'
    )


def _compared(text: str, expected: str) -> str:
    """The answer with every word struck that is not the right one in its place."""
    right = expected.split()
    words = text.split() or ["(nothing)"]
    shown = [
        escape(word) if i < len(right) and word == right[i] else f'<span class="wrong">{escape(word)}</span>'
        for i, word in enumerate(words)
    ]
    whole = '<span class="good">✓</span>' if text == expected else '<span class="bad">✗</span>'
    return f"{' '.join(shown)} {whole}"


def _served(results: Results) -> str:
    deployment = results.deployment
    parts = [
        f"Served by the {escape(deployment.target)} runtime from a GGUF file of {deployment.size / 1e6:.1f} MB. "
        f"Against the trained model: {escape(deployment.parity_detail)}.",
        *(escape(note) + "." for note in deployment.also),
    ]
    return " ".join(parts)


# ---- the hostile peer, what left, checks ---------------------------------------------------------------------


def _refused(results: Results) -> str:
    if not results.refused:
        return '<div class="refusal"><b class="bad">The tampered copy was NOT refused.</b></div>'
    admitted = "<p>Then C fetched it again, from the peers that had the real one, and admitted it.</p>"
    return "".join(
        f'<div class="refusal"><p>D, a fourth daemon, fetched A\'s adapter honestly, changed {r.bytes_changed} bytes '
        "of the weights on its own disk, and announced the copy. C asked D for it.</p>"
        f'<p><b class="bad">Refused, {r.code} {escape(r.name)}</b><br><code>{escape(r.reason)}</code></p>'
        f"{admitted if r.then_admitted else ''}</div>"
        for r in results.refused
    )


def _revoked(results: Results) -> str:
    revoked = results.revoked
    rows = [
        (
            escape(took.name),
            "A's own" if took.id == revoked.id else "contains it",
            f'<span class="{"good" if took.state == "quarantined" else "bad"}">{escape(took.state)}</span>',
        )
        for took in sorted(revoked.affected, key=lambda took: took.id != revoked.id)
    ]
    rows += [(f"deployment <code>{escape(name)}</code>", "served it", "the plain base") for name in revoked.rolled_back]
    mark = '<span class="good">✓</span>' if revoked.after == revoked.base else '<span class="bad">✗</span>'
    spared = " The average of the rounds does not contain that adapter, and stayed in use." if revoked.spared else ""
    return (
        f"<p>In the end A took back, for good, the adapter that it had trained alone (“{escape(revoked.reason)}”). C "
        f"had merged it with B's and served the result. {revoked.seconds:.1f} s after A's word, with nobody doing "
        f"anything at C, it stood there as below.{spared}</p>"
        f'<div class="scroll">{_table(("", "", "now"), rows)}</div>'
        f'<article class="answer"><p class="asked">{escape(revoked.question)}</p><dl>'
        f"<dt>before</dt><dd>{escape(revoked.before)}</dd>"
        f"<dt>after</dt><dd>{escape(revoked.after)} {mark}</dd>"
        f"<dt>base</dt><dd>{escape(revoked.base)}</dd></dl></article>"
    )


def _left(results: Results) -> str:
    left = results.departure
    main = ", ".join(f"{escape(protocol)} {size / 1000:.0f} kB" for protocol, size in left.by_protocol[:3])
    shown = (
        (f"{left.bytes / 1e6:.2f} MB", f"sent in {left.streams} streams: {main}"),
        (f"{left.records}", "signed records among them"),
        (f"{left.sentences_found} of {left.sentences_searched}", "sentences and translations found in it"),
        (f"{len(left.beyond_loopback)}", "connections beyond this machine"),
    )
    told = [f"<div><b>{number}</b><span>{words}</span></div>" for number, words in shown]
    if left.leak:
        told.append(
            f"<div><b>leak report</b><span>of A's last adapter, as it is signed: {escape(left.leak)}</span></div>"
        )
    return "\n".join(told)


def _check(check: Check) -> str:
    return f"<li{'' if check.ok else ' class=failed'}>{escape(check.name)}<small>{escape(check.detail)}</small></li>"


def _footer(results: Results) -> str:
    return (
        f"{results.nodes} daemons, {len(results.rounds)} rounds, seed {results.seed}, {results.seconds:.0f} seconds on "
        "this machine. Made by <code>orchctl demo</code>; the same object as JSON: <code>orchctl demo --json</code>."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = ()) -> str:
    right = set(numeric)

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=n' if i in right else ''}>{cell}</{tag}>" for i, cell in enumerate(row))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"


def _loss(score: Score) -> str:
    return f"{score.loss:.2f}" if score.loss >= 0.1 else f"{score.loss:.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
